"""Letterboxing, non-maximum suppression and alignment, compared with InsightFace and the libraries that it uses."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from insightface.model_zoo.scrfd import SCRFD
from insightface.utils import face_align
from numpy.typing import NDArray

from runner.faces import alignment, detector
from runner.faces.preprocessing import LetterboxBuffer, letterbox_size, normalisation_table, write_planes

# InsightFace calls a method that scikit-image has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_letterbox_size_is_the_same_as_insightface(height: int, width: int) -> None:
    ratio = float(height) / width
    if ratio > 1.0:
        new_height = 640
        new_width = int(new_height / ratio)
    else:
        new_width = 640
        new_height = int(new_width * ratio)
    expected = None if 0 in (new_width, new_height) else (new_width, new_height)
    assert letterbox_size(height, width, 640) == expected


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, (640, 640)), (1, 640, (640, 1)), (1, 641, None), (641, 1, None), (640, 1, (1, 640)), (10**8, 1, None)],
)
def test_letterbox_size_is_none_where_a_side_would_be_zero(
    height: int, width: int, size: tuple[int, int] | None
) -> None:
    assert letterbox_size(height, width, 640) == size


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 160), st.integers(1, 160)), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_reused_letterbox_buffer_equals_blob_from_image(sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    buffer = LetterboxBuffer(160, normalisation_table(detector.MEAN, detector.DEVIATION))
    for height, width in sizes:
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = np.zeros((160, 160, 3), np.uint8)
        whole[:height, :width] = image
        expected = cv2.dnn.blobFromImage(whole, 1.0 / 128.0, (160, 160), (127.5, 127.5, 127.5), swapRB=True)
        np.testing.assert_array_equal(buffer.fill(image), expected)


@pytest.mark.parametrize(("mean", "deviation"), [(127.5, 127.5), (127.5, 128.0), (0.0, 1.0)])
def test_planes_equal_blob_from_image_bit_for_bit(mean: float, deviation: float) -> None:
    image = np.arange(112 * 112 * 3, dtype=np.uint32).astype(np.uint8).reshape(112, 112, 3)
    found = np.empty((3, 112, 112), np.float32)
    write_planes(found, image, normalisation_table(mean, deviation))
    expected = cv2.dnn.blobFromImages([image], 1.0 / deviation, (112, 112), (mean,) * 3, swapRB=True)
    np.testing.assert_array_equal(found, expected[0])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_non_maximum_suppression_keeps_the_same_boxes_as_insightface(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.hstack([corners, corners + random.uniform(1, 60, (count, 2))]).astype(np.float32)
    scores = random.choice(np.array([0.5, 0.6, 0.7, 0.9], np.float32), count)  # many ties: their order matters
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    theirs = SCRFD.__new__(SCRFD)
    theirs.nms_thresh = detector.NMS_THRESHOLD
    assert detector.non_maximum_suppression(boxes, scores) == list(theirs.nms(np.hstack([boxes, scores[:, None]])))


def landmarks(seed: int) -> NDArray[np.float32]:
    """Return the landmarks of a rotated, scaled and jittered face of at least 22 pixels.

    For smaller faces far from the origin, the rounding of InsightFace's single precision shows.
    """
    random = np.random.default_rng(seed)
    angle, scale = random.uniform(-np.pi, np.pi), 10 ** random.uniform(-0.7, 1)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (alignment.TEMPLATE + random.normal(0, 3, (5, 2))) @ turn.T + random.uniform(-200, 4000, 2)
    return points.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_similarity_transform_is_umeyamas_estimate(seed: int) -> None:
    points = landmarks(seed)
    theirs, ours = face_align.estimate_norm(points), alignment.similarity_transform(points)
    mapped = [points @ matrix[:, :2].T + matrix[:, 2] for matrix in (theirs, ours)]
    assert np.abs(mapped[0] - mapped[1]).max() < 0.01


@pytest.mark.parametrize("points", [np.full((5, 2), 30.0), np.full((5, 2), np.nan)])
def test_landmarks_that_coincide_or_are_nan_give_a_black_crop(points: NDArray[np.float64]) -> None:
    image = np.full((90, 90, 3), 200, np.uint8)
    crop = alignment.aligned_crop(image, points.astype(np.float32))
    assert crop.shape == (112, 112, 3)
    assert crop.sum() == 0


def test_a_crop_is_black_outside_the_image() -> None:
    image = np.full((60, 60, 3), 255, np.uint8)
    crop = alignment.aligned_crop(image, (alignment.TEMPLATE - 56).astype(np.float32))
    assert crop[80, 80].tolist() == [255, 255, 255]
    assert crop[10, 10].tolist() == [0, 0, 0]
