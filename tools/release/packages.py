"""The wheel and the source distribution, byte for byte the same for the same commit."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from tools.release.source import ReleaseError, Source

_BACKEND = """
import os, sys
from setuptools import build_meta
os.umask(0o022)
out = sys.argv[1]  # setuptools writes arguments of its own there
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""


def build_packages(source: Source, out: Path) -> list[Path]:
    """Build wheel and sdist into `out` and return their paths. Raises `ReleaseError`."""
    done = subprocess.run(
        [sys.executable, "-c", _BACKEND, str(out.resolve())],
        cwd=source.folder,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(source.date), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ReleaseError(f"the packages could not be built: {done.stderr.strip()[-2000:]}")
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    normalise(sdist, source.date)
    return [wheel, sdist]


def normalise(archive: Path, date: int) -> None:
    """Rewrite a .tar.gz with sorted entries, one date, no owner names, and modes independent of the umask.

    setuptools and helm write the time and the user of the build into their archives. The file gets the date as well,
    because `helm push` writes it into the chart's manifest.
    """
    buffer = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new:
        for entry in sorted(old.getmembers(), key=lambda entry: entry.name):
            plain = tarfile.TarInfo(entry.name)
            plain.type, plain.size, plain.linkname, plain.mtime = entry.type, entry.size, entry.linkname, date
            plain.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            new.addfile(plain, old.extractfile(entry) if entry.isfile() else None)
    archive.write_bytes(gzip.compress(buffer.getvalue(), mtime=date))
    os.utime(archive, (date, date))
