"""Fitting, filling, suppressing and aligning: the arithmetic, held against the libraries that InsightFace uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from insightface.model_zoo.scrfd import SCRFD
from insightface.utils import face_align

from runner.faces import alignment, detector, preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray

# InsightFace itself uses a method that scikit-image has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_fit_is_insightfaces(height: int, width: int) -> None:
    ratio = float(height) / width
    if ratio > 1.0:
        new_height = 640
        new_width = int(new_height / ratio)
    else:
        new_width = 640
        new_height = int(new_width * ratio)
    expected = None if 0 in (new_width, new_height) else (new_width, new_height)
    assert detector.fit(height, width, 640) == expected


@pytest.mark.parametrize(
    ("height", "width", "fitted"),
    [(1, 1, (640, 640)), (1, 640, (640, 1)), (1, 641, None), (641, 1, None), (640, 1, (1, 640)), (10**8, 1, None)],
)
def test_fit_of_the_thinnest(height: int, width: int, fitted: tuple[int, int] | None) -> None:
    assert detector.fit(height, width, 640) == fitted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 160), st.integers(1, 160)), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_canvas_is_blob_from_image_whatever_it_held_before(sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    canvas = detector._Canvas(160)
    for height, width in sizes:
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = np.zeros((160, 160, 3), np.uint8)
        whole[:height, :width] = image
        expected = cv2.dnn.blobFromImage(whole, 1.0 / 128.0, (160, 160), (127.5, 127.5, 127.5), swapRB=True)
        np.testing.assert_array_equal(canvas.holding(image), expected)


@pytest.mark.parametrize(("mean", "deviation"), [(127.5, 127.5), (127.5, 128.0), (0.0, 1.0)])
def test_planes_are_blob_from_image_bit_for_bit(mean: float, deviation: float) -> None:
    image = np.arange(112 * 112 * 3, dtype=np.uint32).astype(np.uint8).reshape(112, 112, 3)
    found = np.empty((3, 112, 112), np.float32)
    preprocessing.write(found, image, preprocessing.normalised(mean, deviation))
    expected = cv2.dnn.blobFromImages([image], 1.0 / deviation, (112, 112), (mean,) * 3, swapRB=True)
    np.testing.assert_array_equal(found, expected[0])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_suppress_is_insightfaces(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.hstack([corners, corners + random.uniform(1, 60, (count, 2))]).astype(np.float32)
    scores = random.choice(np.array([0.5, 0.6, 0.7, 0.9], np.float32), count)  # many ties: their order counts
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    theirs = SCRFD.__new__(SCRFD)
    theirs.nms_thresh = detector.NMS_THRESHOLD
    assert detector.suppress(boxes, scores) == list(theirs.nms(np.hstack([boxes, scores[:, None]])))


def landmarks(seed: int) -> NDArray[np.float32]:
    """Five points as a turned, scaled and jittered face of 22 pixels and more has them.

    Of smaller ones, far from the origin, InsightFace's single precision tells.
    """
    random = np.random.default_rng(seed)
    angle, scale = random.uniform(-np.pi, np.pi), 10 ** random.uniform(-0.7, 1)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (alignment.TEMPLATE + random.normal(0, 3, (5, 2))) @ turn.T + random.uniform(-200, 4000, 2)
    return points.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_similarity_is_umeyamas(seed: int) -> None:
    points = landmarks(seed)
    theirs, ours = face_align.estimate_norm(points), alignment.similarity(points)
    mapped = [points @ matrix[:, :2].T + matrix[:, 2] for matrix in (theirs, ours)]
    assert np.abs(mapped[0] - mapped[1]).max() < 0.01


@pytest.mark.parametrize("points", [np.full((5, 2), 30.0), np.full((5, 2), np.nan)])
def test_landmarks_that_say_nothing_give_a_black_crop(points: NDArray[np.float64]) -> None:
    image = np.full((90, 90, 3), 200, np.uint8)
    crop = alignment.crop(image, points.astype(np.float32))
    assert crop.shape == (112, 112, 3)
    assert crop.sum() == 0


def test_a_crop_beyond_the_image_is_black_there() -> None:
    image = np.full((60, 60, 3), 255, np.uint8)
    crop = alignment.crop(image, (alignment.TEMPLATE - 56).astype(np.float32))
    assert crop[80, 80].tolist() == [255, 255, 255]
    assert crop[10, 10].tolist() == [0, 0, 0]
