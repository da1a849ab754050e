"""The engine gives InsightFace's answers: for all available photos, images of any size, and any way of calling it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.album import IMAGE_ENDINGS, sample_album
from runner.bake.samples import sample_images
from runner.errors import JobError
from runner.faces.arrays import Image
from runner.faces.engine import Engine
from runner.images.decode import decode
from tests.support.engine_tools import MODEL, analyse, assert_same, expected, forget
from tests.support.shared_files import SHARED_PHOTOS


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.open(MODEL, threads=2) as opened:
        yield opened


@pytest.fixture(autouse=True, scope="module")
def _forgotten() -> Iterator[None]:
    yield
    for cached in (samples, album):
        cached.cache_clear()
    forget()


@cache
def samples() -> dict[str, Image]:
    return sample_images()


@cache
def album() -> dict[str, Image]:
    """Return the demonstration's photos and selfies, decoded as a run decodes them."""
    made = sample_album(samples())
    files = {photo.name: photo.data for photo in made.photos} | {f"selfie {own.name}": own.data for own in made.selfies}
    images = {}
    for name, data in files.items():
        try:
            images[name] = decode(data, max_pixels=10**8, max_bytes=10**8)
        except JobError:
            continue  # the album has files that are not images
    return images


def shared() -> dict[str, Path]:
    """Return the real photographs beside the repository, if there are any."""
    return {path.name: path for path in sorted(SHARED_PHOTOS.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS}


def itself(image: Image) -> Image:
    return image


def everything() -> dict[str, Image]:
    images = {**samples(), **album()}
    for name, path in shared().items():
        images[f"shared {name}"] = decode(path.read_bytes(), max_pixels=10**8, max_bytes=10**8)
    return images


def test_answers_equal_those_of_insightface_one_by_one_and_in_batches(engine: Engine) -> None:
    images = everything()
    answers = {name: expected(image) for name, image in images.items()}
    assert sum(len(faces) for faces in answers.values()) >= 80
    for name, image in images.items():
        assert_same(answers[name], analyse(engine, image), name)
    futures = {name: engine.submit(partial(itself, image)) for name, image in images.items()}
    for name, future in futures.items():
        assert_same(answers[name], future.result(), name)


@pytest.mark.parametrize(("threads", "batch_size"), [(1, 1), (1, 7), (2, 3), (3, 4), (5, 64)])
def test_answers_do_not_depend_on_threads_or_batch_size(threads: int, batch_size: int) -> None:
    images = samples()
    answers = {name: expected(image) for name, image in images.items()}
    with Engine.open(MODEL, threads=threads, batch_size=batch_size) as engine:
        submitted = [(name, engine.submit(partial(itself, image))) for _ in range(2) for name, image in images.items()]
        for name, future in submitted:
            assert_same(answers[name], future.result(), f"{name}, {threads} threads, {batch_size} crops")


def test_portable_graphs_give_the_same_answers() -> None:
    images = samples()
    with Engine.open(MODEL, threads=2, tuned=False) as engine:
        assert not engine.tuned
        for name, image in images.items():
            assert_same(expected(image), analyse(engine, image), name)


def test_portable_graphs_contain_only_standard_operators() -> None:
    for name in ("detector.onnx", "recogniser.onnx"):
        model = onnx.load(MODEL / name)
        assert {node.domain for node in model.graph.node} == {""}, name
        assert {entry.domain for entry in model.opset_import} == {""}, name
        assert "PRelu" not in {node.op_type for node in model.graph.node}


def group(faces: int) -> Image:
    """Return a group photo: the sample faces in rows of five."""
    source = samples()["t1.jpg"]
    portraits = [
        source[280:540, 720:900],
        source[200:460, 430:610],
        source[200:460, 20:200],
        source[210:470, 1090:1270],
    ]
    tiles = [cv2.resize(portraits[number % len(portraits)], (180, 260)) for number in range(faces)]
    rows = [np.hstack(tiles[start : start + 5]) for start in range(0, faces, 5)]
    return np.asarray(np.vstack(rows), np.uint8)


KINDS = {
    "one pixel": (1, 1),
    "a column": (700, 1),
    "a row": (1, 640),
    "too thin a row": (1, 641),
    "too thin a column": (10_000, 3),
    "very wide": (40, 20_000),
    "very tall": (33_000, 60),
    "tiny": (17, 23),
}


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_extreme_sizes_gives_the_same_faces(engine: Engine, kind: str) -> None:
    height, width = KINDS[kind]
    image = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    try:
        answer = expected(image)
    except cv2.error:  # InsightFace fails where one side of the image becomes 0 at 640 pixels
        answer = []
    assert_same(answer, analyse(engine, image), kind)


def test_twenty_faces_in_one_photo(engine: Engine) -> None:
    image = group(20)
    answer = expected(image)
    assert len(answer) == 20
    assert_same(answer, analyse(engine, image), "group")


def test_faces_in_a_very_wide_and_a_very_tall_photo(engine: Engine) -> None:
    portrait = samples()["t1.jpg"][280:540, 720:900]
    wide = np.hstack([portrait] * 12)
    tall = np.vstack([portrait] * 9)
    for name, image in (("wide", wide), ("tall", tall)):
        answer = expected(image)
        assert answer, name
        assert_same(answer, analyse(engine, image), name)


def test_faces_in_a_photo_of_a_hundred_megapixels(engine: Engine) -> None:
    image = np.asarray(cv2.resize(samples()["t1.jpg"], (12_000, 8_300)), np.uint8)
    answer = expected(image)
    assert len(answer) == 6
    assert_same(answer, analyse(engine, image), "a hundred megapixels")


def test_images_may_be_views_of_other_arrays(engine: Engine) -> None:
    whole = samples()["t1.jpg"]
    for name, view in (
        ("a part", whole[100:700, 200:1100]),
        ("mirrored", whole[:, ::-1]),
        ("upside down", whole[::-1]),
        ("transposed", whole.transpose(1, 0, 2)),
        ("read only", np.frombuffer(whole.tobytes(), np.uint8).reshape(whole.shape)),
    ):
        assert_same(expected(np.ascontiguousarray(view)), analyse(engine, view), name)


@st.composite
def parts(draw: st.DrawFn) -> Image:
    """Draw a part of a sample photo, stretched to any size."""
    whole = samples()[draw(st.sampled_from(sorted(samples())))]
    for _ in range(2):  # rows, then columns
        length = len(whole)
        start = draw(st.integers(0, int(0.6 * length)))
        whole = whole[start : start + draw(st.integers(length // 5, length))].transpose(1, 0, 2)
    size = draw(st.tuples(st.integers(1, 2200), st.integers(1, 2200)))
    return np.asarray(cv2.resize(np.ascontiguousarray(whole), size), np.uint8)


# A long campaign: ENGINE_EXAMPLES=2000 pytest tests/integration/test_engine_answers.py
@settings(
    max_examples=int(os.environ.get("ENGINE_EXAMPLES", "30")),
    deadline=None,
    suppress_health_check=list(HealthCheck),  # examples are made of pixels: slow and large by nature
)
@given(image=parts())
def test_any_part_of_a_photo_at_any_size_gives_the_same_faces(engine: Engine, image: Image) -> None:
    try:
        answer = expected(image)
    except cv2.error:
        answer = []
    assert_same(answer, analyse(engine, image), f"{image.shape}")
