"""Alignment: from five landmarks to the upright crop that the recogniser was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CROP_SIZE = 112
# Where ArcFace expects eyes, nose and mouth corners in a crop of 112 pixels (insightface/utils/face_align.py).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
).astype(np.float64)
_TEMPLATE_POINTS = [complex(x, y) for x, y in TEMPLATE.tolist()]
_TEMPLATE_MEAN = sum(_TEMPLATE_POINTS) / 5


def similarity(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the 2x3 similarity transform that maps `landmarks` (5, 2) onto the template with the least squares.

    Umeyama's estimate (1991, https://doi.org/10.1109/34.88573) that InsightFace takes from scikit-image, in closed
    form for two dimensions: with points as complex numbers, scale and rotation are one complex factor. Landmarks
    that all coincide have no such transform; they give NaN, as there, and a crop that is black.
    """
    points = [complex(x, y) for x, y in landmarks.tolist()]  # for five points quicker than arrays: 3 against 11 us
    mean = sum(points) / 5
    spread, factor = 0.0, 0j
    for point, target in zip(points, _TEMPLATE_POINTS, strict=True):
        centred = point - mean
        spread += centred.real**2 + centred.imag**2
        factor += centred.conjugate() * (target - _TEMPLATE_MEAN)
    factor = factor / spread if spread > 0 else complex("nan")
    shift = _TEMPLATE_MEAN - factor * mean
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def crop(image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the aligned 112x112 BGR crop of one face."""
    matrix = similarity(landmarks)
    return cv2.warpAffine(image, matrix, (CROP_SIZE, CROP_SIZE), borderValue=0.0)  # type: ignore[return-value]  # OpenCV's stubs know no types of pixels
