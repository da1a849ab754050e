"""What a run imports: a container lives for seconds, and every burst pays for every module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import material
from demo.images import ImageServer

if TYPE_CHECKING:
    from tests.support.run_tools import Service

# Packages that a whole run with a photo and a comparison may import, besides the standard library.
ALLOWED = {
    "cv2",
    "numpy",
    "onnxruntime",
    "pgvector",
    "psycopg",
    "psycopg_binary",
    "redis",
    "runner",
    "simplejpeg",
    "typing_extensions",  # psycopg, before Python 3.13
    "cryptography",  # redis, where another package has brought it: its version alone
    "cython_runtime",  # compiled into psycopg and simplejpeg
}
HELPERS = ("_cython_", "_sysconfigdata_", "__")  # of compiled modules, of the interpreter, of editable installs
# Modules of the standard library that cost milliseconds and that a run does not need. Not asyncio and ssl: redis and
# psycopg import both (docs/explanation/performance.md says what leaving them out would bring).
REFUSED = {
    "doctest",
    "http.server",
    "multiprocessing",
    "pydoc",
    "sqlite3",
    "tkinter",
    "unittest",
    "urllib.request",
    "xml",
}
ROOMS = {"errors", "faces", "images", "logs", "queue", "settings", "worker"}
ELSEWHERE = ("demo", "runner.bake", "runner.cluster", "runner.cli.doctor", "tools")
COMMANDS = "runner.cli."
# Runs the command line, and at the very end writes to its first argument what is imported and garbage-collected.
CHILD = """
import gc, json, os, sys
before = set(sys.modules)
leave = os._exit

def report(code):
    modules = sorted(set(sys.modules) - before)
    with open(sys.argv[1], "w") as file:
        json.dump({"modules": modules, "collects": gc.isenabled(), "frozen": gc.get_freeze_count()}, file)
    leave(code)

os._exit = report  # a run ends with it, and does not return
from runner.cli import main
main(sys.argv[2:])
"""


@pytest.fixture
def loaded(service: Service, tmp_path: Path) -> dict[str, object]:
    """What is imported at the end of a run that has processed a photo and a comparison."""
    photo = material.first_photo()
    with ImageServer({"first.jpg": photo}) as images:
        photos = service.api.upload({"first.jpg": images.url("first.jpg")})
        answer = service.api.compare(photo, list(photos.values()))
        report_file = tmp_path / "modules.json"
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(report_file), "run", "--max-jobs", "2"],
            env=dict(service.environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["succeeded"] == 2
    assert service.api.result(answer) is not None
    document: dict[str, object] = json.loads(report_file.read_text("utf-8"))
    return document


def test_a_run_imports_only_what_it_needs(loaded: dict[str, object]) -> None:
    names = loaded["modules"]
    assert isinstance(names, list)
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    foreign = {top for top in tops if not top.startswith(HELPERS)}
    assert foreign <= ALLOWED
    assert {"cv2", "onnxruntime", "psycopg", "redis", "simplejpeg"} <= foreign  # it was a real run
    assert not REFUSED & set(names)
    own = {name for name in names if name.startswith(("runner.", "demo", "tools"))}
    assert {f"runner.{room}" for room in ROOMS} <= own
    assert not {name for name in own if name.startswith(ELSEWHERE)}
    assert {name for name in own if name.startswith(COMMANDS)} == {"runner.cli.flags", "runner.cli.run"}


def test_settings_and_kinds_are_known_before_anything_slow_is_imported() -> None:
    code = "import runner.settings, runner.worker.app, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"cv2", "numpy", "onnxruntime", "psycopg", "redis", "ssl"} & set(done.stdout.split())


def test_after_the_start_up_the_garbage_collector_is_enabled_and_ignores_older_objects(
    loaded: dict[str, object],
) -> None:
    assert loaded["collects"] is True
    assert isinstance(loaded["frozen"], int)
    assert loaded["frozen"] > 10_000
