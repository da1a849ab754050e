"""The driver is found where the loader looks and where clouds mount it, and then by its name alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.faces.driver import DRIVER, DRIVER_FOLDERS

# Loads the driver, and then looks for it by its name, as onnxruntime's CUDA provider does.
PROGRAM = """
import ctypes, os, sys
from runner.faces import driver
print(driver.load_driver(sys.argv[1:]))
try:
    print(ctypes.CDLL(driver.DRIVER).cuInit(0))
except OSError:
    print("missing")
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the driver's name, whose cuInit says that there is no device (CUDA_ERROR_NO_DEVICE)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the stand-in for the driver needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "stand_in.c").write_text("int cuInit(unsigned flags) { return 100; }\n")
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-o", DRIVER, "stand_in.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / DRIVER


def loaded(folders: list[Path], **environment: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, folders)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("place", DRIVER_FOLDERS)
def test_the_driver_is_found_in_each_place(place: str, stand_in: Path, tmp_path: Path) -> None:
    folders = [tmp_path / other.lstrip("/") for other in DRIVER_FOLDERS]
    mounted = tmp_path / place.lstrip("/")
    mounted.mkdir(parents=True)
    shutil.copy(stand_in, mounted)
    assert loaded(folders) == [str(mounted / DRIVER), "100"]


def test_the_path_of_the_container_runtime_comes_first(stand_in: Path, tmp_path: Path) -> None:
    shutil.copy(stand_in, tmp_path)
    assert loaded([tmp_path], LD_LIBRARY_PATH=str(stand_in.parent)) == [DRIVER, "100"]


def test_a_broken_driver_is_skipped(stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / DRIVER).write_bytes(b"not a library")
    assert loaded([tmp_path, stand_in.parent]) == [str(stand_in), "100"]


def test_without_a_driver_nothing_is_loaded(tmp_path: Path) -> None:
    assert loaded([tmp_path]) == ["None", "missing"]
