"""A registry on this machine for rehearsals: Debian's docker-registry, with its data in a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.servers import free_port
from tools.release.images import Registry
from tools.release.source import ReleaseError

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_START_SECONDS = 60


@contextmanager
def local_registry(folder: Path) -> Iterator[Registry]:
    """Run a registry whose data is in `folder`. Raises `ReleaseError` if the program is missing or does not start."""
    program = shutil.which("docker-registry")
    if program is None:
        raise ReleaseError("docker-registry not found: apt-get install docker-registry, or name one with REGISTRY=…")
    port = free_port()
    config = folder / "registry.yaml"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    with subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            _wait(f"http://127.0.0.1:{port}/v2/")
            yield Registry(f"127.0.0.1:{port}", plain=True)
        finally:
            run.terminate()


def _wait(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise ReleaseError(f"docker-registry did not answer at {url} within {_START_SECONDS} s") from None
            time.sleep(0.1)
