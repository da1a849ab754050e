"""Alignment: from five landmarks to the upright crop that ArcFace was trained on."""

from __future__ import annotations

import cv2
import numpy as np

from runner.faces.arrays import Float32Array, Float64Array, Image

CROP_SIZE = 112
# Where ArcFace expects eyes, nose and corners of the mouth (insightface/utils/face_align.py).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
).astype(np.float64)
_TEMPLATE_POINTS = [complex(x, y) for x, y in TEMPLATE.tolist()]
_TEMPLATE_MEAN = sum(_TEMPLATE_POINTS) / 5


def similarity_transform(landmarks: Float32Array) -> Float64Array:
    """Return the (2, 3) similarity transform that maps `landmarks` (5, 2) onto the template by least squares.

    Umeyama's estimate (1991, https://doi.org/10.1109/34.88573), which InsightFace takes from scikit-image, in closed
    form for two dimensions: with points as complex numbers, scale and rotation are one complex factor. Landmarks that
    all coincide give NaN, as in scikit-image.
    """
    points = [complex(x, y) for x, y in landmarks.tolist()]  # for five points faster than arrays: 3 against 11 us
    mean = sum(points) / 5
    spread, factor = 0.0, 0j
    for point, target in zip(points, _TEMPLATE_POINTS, strict=True):
        centred = point - mean
        spread += centred.real**2 + centred.imag**2
        factor += centred.conjugate() * (target - _TEMPLATE_MEAN)
    factor = factor / spread if spread > 0 else complex("nan")
    shift = _TEMPLATE_MEAN - factor * mean
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def aligned_crop(image: Image, landmarks: Float32Array) -> Image:
    """Return the aligned crop (112, 112, 3) of the face with these `landmarks` (5, 2), in pixels of `image`.

    It is black outside the image, and all black for landmarks that coincide or are NaN.
    """
    matrix = similarity_transform(landmarks)
    return cv2.warpAffine(image, matrix, (CROP_SIZE, CROP_SIZE), borderValue=0.0)  # type: ignore[return-value]  # OpenCV's stubs have no pixel types
