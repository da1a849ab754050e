"""The image for arm64: built here with few steps under emulation, started under it, and with InsightFace's answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runner.bake import proof
from runner.bake.samples import sample_images
from runner.faces.pack import read_manifest
from tests.support.engine_tools import expected
from tools.image_base import IMAGE, Engine

pytestmark = [pytest.mark.image, pytest.mark.timeout(7200)]

ARM64 = f"{IMAGE}-arm64"
MOST_BYTES = 450_000_000
PACK = "opt/spottmee-worker/share/spottmee-worker/model"
EMBED = """
import json
from pathlib import Path
from runner.faces.engine import Engine
from runner.images.decode import decode
from runner.settings import default_model_dir
found = {}
with Engine.open(default_model_dir(), threads=1) as engine:
    for path in Path("/photos").iterdir():
        data = path.read_bytes()
        faces = engine.submit(lambda: decode(data, max_pixels=10**8, max_bytes=2**25)).result()
        found[path.name] = [[face.box.tolist(), face.embedding.tolist()] for face in faces]
print(json.dumps(found))
"""
# Measured: 0.15 pixels and 0.9995.
SCALED_PIXELS, SCALED_COSINE = 0.5, 0.999


@pytest.fixture(scope="module")
def arm64(engine: Engine) -> Iterator[str]:
    """The image for arm64, built by `make image` on the stand-in base."""
    program = shutil.which("arch-test")
    if program is None or subprocess.run([program, "arm64"], capture_output=True, check=False).returncode != 0:
        pytest.skip(
            "this machine runs no arm64 programs: install qemu-user-static and arch-test, and register the former "
            "(docs/how-to/image.md, Another architecture)"
        )
    variables = {"BASE": engine.make_base("arm64"), "BUILD_BASE": engine.make_base(), "PLATFORM": "linux/arm64"}
    done = engine.build(image=ARM64, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    yield ARM64
    engine.podman("rmi", ARM64)


def in_container(engine: Engine, *arguments: str) -> str:
    return engine.podman(
        "--cgroup-manager=cgroupfs", "run", "--rm", "--arch=arm64", "--runtime=runc", "--network=host", "--pull=never",
        "--read-only", "--cap-drop=ALL", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", *arguments,
    )  # fmt: skip


def test_the_image_is_for_arm64_alone_and_as_small_as_the_other(engine: Engine, arm64: str) -> None:
    about = engine.podman("image", "inspect", arm64, "--format", "{{.Os}}/{{.Architecture}} {{.Size}}").split()
    assert about[0] == "linux/arm64"
    assert int(about[1]) <= MOST_BYTES
    root = Path(engine.podman("image", "mount", arm64))
    libraries = [path.name for path in root.glob("opt/spottmee-worker/lib/python3*/site-packages/**/*.so*")]
    manifest = read_manifest(root / PACK)
    engine.podman("image", "unmount", arm64)
    assert [name for name in libraries if "x86_64" in name] == []
    assert any("aarch64" in name for name in libraries)
    assert manifest.tuned_for == "", "graphs tuned for the machine that built the image"
    assert "aarch64" in in_container(engine, "--entrypoint=uname", arm64, "-m")


def test_the_worker_starts_and_says_what_is_missing(engine: Engine, arm64: str) -> None:
    assert "usage: spottmee-worker" in in_container(engine, arm64, "--help")


def test_photos_get_the_answers_of_insightface(engine: Engine, arm64: str, tmp_path: Path) -> None:
    """Those that it gives on this machine.

    OpenCV for arm64 rounds differently when it scales an image for the detector: a photo of the detector's own size
    shows that all else is the same.
    """
    whole = sample_images()["t1.jpg"]
    small = np.asarray(cv2.resize(whole, (640, 443)), np.uint8)
    for name, image in (("whole", whole), ("small", small)):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), image)  # lossless: both sides get the same pixels
    command = ["--entrypoint=/opt/spottmee-worker/bin/python", f"--volume={tmp_path}:/photos:ro", arm64, "-c", EMBED]
    found = json.loads(in_container(engine, *command))
    assert_close(found["small.png"], expected(small), proof.MAX_PIXELS, proof.MIN_COSINE)
    assert_close(found["whole.png"], expected(whole), SCALED_PIXELS, SCALED_COSINE)


def assert_close(found: list[Any], theirs: list[Any], pixels: float, cosine: float) -> None:
    assert len(found) == len(theirs) == 6
    for (box, embedding), face in zip(found, theirs, strict=True):
        assert np.abs(np.array(box) - face.bbox).max() <= pixels
        assert float(np.dot(embedding, face.normed_embedding)) >= cosine
