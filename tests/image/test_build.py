"""The build of the image: reproducible, and from nothing but its arguments and sources."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runner.bake.sources import wheel_folder
from tools.image_base import IMAGE, ROOT, Engine
from tools.release.registry import local_registry

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]


def _layers(engine: Engine, image: str) -> list[str]:
    layers: list[str] = json.loads(engine.podman("image", "inspect", image, "--format", "{{json .RootFS.Layers}}"))
    return layers


def test_a_second_build_without_cache_gives_the_same_layers(engine: Engine, image: str) -> None:
    again = f"{IMAGE}-again"
    done = engine.build("--no-cache", image=again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _layers(engine, again) == _layers(engine, image)
    engine.podman("rmi", again)


def test_a_release_with_a_changed_line_of_code_shares_all_but_a_megabyte(
    engine: Engine, image: str, tmp_path: Path
) -> None:
    sources = tmp_path / "sources"
    for name in ("Makefile", "Dockerfile", ".dockerignore", "pyproject.toml", "LICENSE"):
        sources.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, sources)
    for name in ("docker", "requirements", "runner"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (sources / "runner" / "worker" / "loop.py").open("a") as module:
        module.write("CHANGED = True\n")
    changed = f"{IMAGE}-changed"
    done = replace(engine, sources=sources).build(image=changed)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = _pulled(engine, image, tmp_path / "before"), _pulled(engine, changed, tmp_path / "after")
    engine.podman("rmi", changed)
    different = {digest: size for digest, size in after.items() if digest not in before}
    assert len(different) == 1
    assert sum(different.values()) < 1_000_000
    assert sum(after.values()) > 100_000_000


def _pulled(engine: Engine, image: str, folder: Path) -> dict[str, int]:
    """Return the size of each layer as a node pulls it, in bytes, by digest."""
    engine.podman("push", "--quiet", image, f"oci:{folder}")
    (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
    blob = folder / "blobs" / entry["digest"].replace(":", "/")
    return {layer["digest"]: layer["size"] for layer in json.loads(blob.read_text())["layers"]}


@pytest.mark.usefixtures("image")
def test_the_revision_is_current_even_if_every_layer_is_cached(engine: Engine) -> None:
    for revision in ("one", "another"):
        done = engine.build(image=f"{IMAGE}-revision", REVISION=revision)
        assert done.returncode == 0, done.stderr[-3000:]
        labels = json.loads(engine.podman("image", "inspect", f"{IMAGE}-revision", "--format", "{{json .Labels}}"))
        assert labels["org.opencontainers.image.revision"] == revision
    engine.podman("rmi", f"{IMAGE}-revision")


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Return a folder with the original files of the default pack, and nothing else."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for path in wheel_folder().glob("*.onnx"):
        shutil.copy(path, folder)
    return folder


def _assert_same_pack(engine: Engine, filesystem: Path, image: str) -> None:
    """Check that the bake stage `image` holds the pack of the image at `filesystem`, and remove it."""
    mounted = Path(engine.podman("image", "mount", image))
    theirs = filesystem / "opt/spottmee-worker/share/spottmee-worker/model"
    for name in (f"{role}.{kind}" for role in ("detector", "recogniser") for kind in ("onnx", "weights")):
        assert (mounted / "model" / name).read_bytes() == (theirs / name).read_bytes()
    engine.podman("image", "unmount", image)
    engine.podman("rmi", image)


@pytest.mark.usefixtures("image")
def test_a_local_folder_with_genuine_files_can_be_the_pack(engine: Engine, filesystem: Path, originals: Path) -> None:
    baked = f"{IMAGE}-pack"
    done = engine.build("--target=bake", image=baked, PACK_SOURCE=str(originals))
    assert done.returncode == 0, done.stderr[-3000:]
    _assert_same_pack(engine, filesystem, baked)

    with (originals / "w600k_mbf.onnx").open("ab") as file:
        file.write(b"\0")
    done = engine.build("--target=bake", image=baked, PACK_SOURCE=str(originals))
    assert done.returncode != 0
    assert "w600k_mbf.onnx is a different file" in done.stderr + done.stdout


@pytest.mark.usefixtures("image")
def test_an_image_in_a_registry_can_be_the_pack(
    engine: Engine, filesystem: Path, originals: Path, tmp_path: Path
) -> None:
    """By its digest, as docs/how-to/image.md shows it."""
    baked, data = f"{IMAGE}-pack", tmp_path / "registry"
    data.mkdir()
    with local_registry(data) as registry:
        name = f"{registry.address}/packs/buffalo_sc"
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY *.onnx /\n")
        engine.buildah("build", f"--file={tmp_path / 'Dockerfile'}", f"--tag={name}", str(originals))
        engine.buildah("push", "--tls-verify=false", f"--digestfile={tmp_path / 'digest'}", name)
        engine.podman("rmi", name)
        pinned = f"docker-image://{name}@{(tmp_path / 'digest').read_text()}"
        done = engine.build("--target=bake", "--tls-verify=false", image=baked, PACK_SOURCE=pinned)
    assert done.returncode == 0, done.stderr[-3000:]
    _assert_same_pack(engine, filesystem, baked)


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PACK": "buffalo_l"}, "no package contains buffalo_l"),
        ({"PACK": "nonsense"}, "nonsense is neither a known pack"),
        ({"PACK_SOURCE": "/src/pyproject.toml", "PACK_SHA256": "0" * 64}, "is a different file: its sha256"),
    ],
)
def test_an_invalid_argument_fails_the_build_with_the_reason(
    engine: Engine, variables: dict[str, str], message: str
) -> None:
    output = ""
    for _ in range(3):  # with chroot isolation, buildah sometimes loses the last lines of a program that fails at once
        done = engine.build(image=f"{IMAGE}-wrong", **variables)
        assert done.returncode != 0
        output += done.stderr + done.stdout
        if message in output:
            break
    assert message in output
    assert "Traceback" not in output


def test_the_build_context_contains_only_the_sources(engine: Engine, tmp_path: Path) -> None:
    recipe = tmp_path / "Dockerfile"
    recipe.write_text("FROM scratch\nCOPY . /context/\n")
    seen = f"{IMAGE}-context"
    engine.run_in_repository(
        engine.command("buildah", "build", "--isolation=chroot", f"--file={recipe}", f"--tag={seen}", ".")
    )
    mounted = Path(engine.podman("image", "mount", seen), "context")
    names = {str(path.relative_to(mounted)) for path in mounted.rglob("*") if path.is_file()}
    engine.podman("image", "unmount", seen)
    engine.podman("rmi", seen)
    assert {"pyproject.toml", "docker/finish.py", "requirements/run-cpu.txt", "runner/cli/__init__.py"} <= names
    allowed = ("pyproject.toml", "LICENSE", "docker/finish.py", "requirements/", "runner/")
    assert [name for name in names if not name.startswith(allowed) or name.endswith(".pyc")] == []
