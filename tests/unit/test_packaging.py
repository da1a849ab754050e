"""What `pip install` installs, and that the locks agree with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("run-cpu.txt", "run-gpu.txt", "bake.txt", "dev.txt")


def _pins(lock: str) -> dict[str, set[str]]:
    """Return package → its pinned versions (several where they differ by Python version)."""
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE
    ):
        pins.setdefault(name, set()).add(version)
    return pins


def test_the_wheel_contains_every_file_of_the_package(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "runner"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {name for name in listed.splitlines() if (ROOT / name).exists()}
    assert {Path(name).suffix for name in expected} >= {".py", ".lua", ".sql", ".typed"}
    source = tmp_path / "source"
    ours = ("pyproject.toml", "README.md", "LICENSE", "demo/__init__.py", "tools/__init__.py")
    for name in (*expected, *ours):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("spottmee_worker-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "spottmee-worker = runner.__main__:main" in opened.read(entry_points).decode()
        (licence,) = (name for name in names if name.endswith("LICENSE"))
        assert opened.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert expected - names == set()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"runner"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_and_no_address_and_one_opencv(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(_pins(lock)) > 10
    assert [name for name in _pins(lock) if name.startswith("opencv")] == ["opencv-python-headless"]


@pytest.mark.parametrize("lock", LOCKS[:-1])
def test_the_image_runs_what_was_tested(lock: str) -> None:
    tested, shipped = _pins("dev.txt"), _pins(lock)
    nvidia = {name for name in shipped if name.startswith("nvidia-")}
    if lock == "run-gpu.txt":
        assert "onnxruntime" not in shipped
        assert shipped.pop("onnxruntime-gpu") == tested["onnxruntime"]
        assert nvidia
    different = {name for name in shipped.keys() - nvidia if shipped[name] != tested.get(name)}
    assert different == set()
