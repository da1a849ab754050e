"""SCRFD, the face detector (https://arxiv.org/abs/2105.04714), decoded as InsightFace does.

The arithmetic follows insightface/model_zoo/scrfd.py step by step and in the same types, so that the same boxes come
out in the same order. Only work that does not change the result is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from runner.faces.arrays import Float32Array, Image, IndexArray
from runner.faces.preprocessing import LetterboxBuffer, letterbox_size, normalisation_table

STRIDES = (8, 16, 32)
ANCHORS = 2  # per cell
SCORE_THRESHOLD = 0.5
NMS_THRESHOLD = 0.4
# Patches of this many cells take 3 MB; an image with a face at every anchor would take ten times as much.
CELLS_PER_CHUNK = 1024
MEAN, DEVIATION = 127.5, 128.0


@dataclass(frozen=True, slots=True)
class Detections:
    """The n faces of one image by descending score: boxes (n, 4) as x1, y1, x2, y2, scores (n,) from 0.5 to 1.

    `landmarks` (n, 5, 2) are eyes, nose and corners of the mouth as x, y. All are in pixels of the image.
    """

    boxes: Float32Array
    scores: Float32Array
    landmarks: Float32Array

    def __len__(self) -> int:
        return len(self.scores)


NO_FACES = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 5, 2), np.float32))


class Detector:
    """Finds faces with one ONNX session, which any number of threads may share.

    The session returns scores, boxes and landmarks of all anchors. With `heads`, the matrices (3, 9 n + 1, 28) that
    `bake.passes.detector_heads` extracted from its graph, it returns scores and feature maps instead.
    """

    def __init__(self, session: Any, input_size: int, heads: Float32Array | None = None) -> None:
        self._session = session
        self._size = input_size
        self._heads = heads
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()]
        self._batched = len(session.get_outputs()[0].shape) == 3  # noqa: PLR2004 - batch, anchors, value
        self._anchors = {stride: _anchor_centres(input_size // stride, stride) for stride in STRIDES}
        self._buffer = LetterboxBuffer(input_size, normalisation_table(MEAN, DEVIATION))

    def detect(self, image: Image) -> Detections:
        """Return the faces of an image of any size; none for one so thin that no pixel is left when scaled.

        Raises `ValueError` unless it is an array of 8-bit BGR pixels (height, width, 3).
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:  # noqa: PLR2004 - rows, columns, channels
            raise ValueError(f"not an 8-bit BGR image: shape {image.shape}, {image.dtype}")
        height, width = image.shape[:2]
        size = letterbox_size(height, width, self._size)
        if size is None:
            return NO_FACES
        blob = self._buffer.fill(np.asarray(cv2.resize(image, size), np.uint8))
        outputs = self._session.run(self._outputs, {self._input: blob})
        scale = float(size[1]) / height
        return self._decode([output[0] for output in outputs] if self._batched else outputs, scale)

    def _decode(self, outputs: list[Float32Array], scale: float) -> Detections:
        scores, boxes, landmarks = [], [], []
        for level, stride in enumerate(STRIDES):
            found = np.flatnonzero(outputs[level] >= SCORE_THRESHOLD)
            if not len(found):
                continue
            centres = self._anchors[stride][found]
            scores.append(outputs[level][found].ravel())
            distances, offsets = self._regress(outputs[level + len(STRIDES) :: len(STRIDES)], level, found)
            distances, offsets = distances * stride, (offsets * stride).reshape(-1, 5, 2)
            boxes.append(np.hstack([centres - distances[:, :2], centres + distances[:, 2:]]))
            landmarks.append(centres[:, None, :] + offsets)
        if not scores:
            return NO_FACES
        all_scores = np.concatenate(scores)
        order = np.argsort(-all_scores, kind="stable")
        all_boxes = (np.vstack(boxes) / scale).astype(np.float32, copy=False)[order]
        all_landmarks = (np.vstack(landmarks) / scale).astype(np.float32, copy=False)[order]
        all_scores = all_scores[order]
        keep = non_maximum_suppression(all_boxes, all_scores)
        return Detections(all_boxes[keep], all_scores[keep], all_landmarks[keep])

    def _regress(self, outputs: list[Float32Array], level: int, found: IndexArray) -> tuple[Float32Array, Float32Array]:
        """Return distances (n, 4) and offsets (n, 10), in strides, of the n anchors `found` at one level."""
        if self._heads is None:
            distances, offsets = outputs
            return distances[found], offsets[found]
        cells, anchors = np.divmod(found, ANCHORS)
        features = outputs[0].reshape(outputs[0].shape[-3:])
        weights, bias = self._heads[level, :-1], self._heads[level, -1]
        chunks = [cells[start : start + CELLS_PER_CHUNK] for start in range(0, len(cells), CELLS_PER_CHUNK)]
        regressed = np.concatenate([patches(features, chunk) @ weights for chunk in chunks]) + bias
        chosen = regressed.reshape(len(found), ANCHORS, -1)[np.arange(len(found)), anchors]
        return chosen[:, :4], chosen[:, 4:]


def patches(features: Float32Array, cells: IndexArray) -> Float32Array:
    """Return the 3x3 neighbourhood of each of `cells` in `features` (n, height, width), zero beyond the edge.

    The rows (len(cells), 9 n) are in the order feature, row, column: im2col for a few cells.
    """
    count, height, width = features.shape
    rows, columns = np.divmod(cells, width)
    near_rows, near_columns = (places[:, None] + np.arange(-1, 2) for places in (rows, columns))
    around = near_rows[:, :, None].clip(0, height - 1) * width + near_columns[:, None, :].clip(0, width - 1)
    found = features.reshape(count, -1)[:, around.reshape(-1)].reshape(count, len(cells), -1).transpose(1, 0, 2)
    inside_rows, inside_columns = (near_rows >= 0) & (near_rows < height), (near_columns >= 0) & (near_columns < width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    if not inside.all():
        found = found * inside.reshape(len(cells), 1, -1)
    return found.reshape(len(cells), -1)


def non_maximum_suppression(boxes: Float32Array, scores: Float32Array) -> list[int]:
    """Return the indices of `boxes` (n, 4) that greedy non-maximum suppression keeps, by descending score."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while order.size:
        first, rest = order[0], order[1:]
        keep.append(int(first))
        width = np.maximum(0.0, np.minimum(x2[first], x2[rest]) - np.maximum(x1[first], x1[rest]) + 1)
        height = np.maximum(0.0, np.minimum(y2[first], y2[rest]) - np.maximum(y1[first], y1[rest]) + 1)
        overlap = width * height
        order = rest[overlap / (areas[first] + areas[rest] - overlap) <= NMS_THRESHOLD]
    return keep


def _anchor_centres(cells: int, stride: int) -> Float32Array:
    """Return the centres (cells * cells * 2, 2) of the anchors of a square feature map, in pixels of the input."""
    rows, columns = np.mgrid[:cells, :cells]
    centres = np.stack([columns, rows], axis=-1).astype(np.float32) * stride
    return np.repeat(centres.reshape(-1, 2), ANCHORS, axis=0)
