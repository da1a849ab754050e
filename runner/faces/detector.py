"""SCRFD, the face detector (https://arxiv.org/abs/2105.04714), decoded as InsightFace does.

The arithmetic follows insightface/model_zoo/scrfd.py step by step, in the same types: the same boxes in the same
order come out. Only the work that leaves the result as it is was left out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runner.faces import preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIDES = (8, 16, 32)
ANCHORS = 2
SCORE_THRESHOLD = 0.5
NMS_THRESHOLD = 0.4
# The windows of so many cells fit into 3 MB; an image in which every anchor sees a face would take ten times that.
CELLS_AT_ONCE = 1024
MEAN, DEVIATION = 127.5, 128.0
_NORMALISED = preprocessing.normalised(MEAN, DEVIATION)


@dataclass(frozen=True, slots=True)
class Detections:
    """The faces of one image, the surest first: boxes (n, 4), scores (n,), landmarks (n, 5, 2), in its pixels."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


NONE = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 5, 2), np.float32))


class _Canvas(threading.local):
    """A thread's input of the network, kept for its next photo: RGB planes (1, 3, size, size)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._blob: NDArray[np.float32] | None = None  # not before it is needed: the thread that loads has no photo
        self._height, self._width = 0, 0

    def holding(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the input with `image`, BGR (h, w, 3), in its upper left, and black around it."""
        height, width = image.shape[:2]
        if self._blob is None:
            self._blob = np.full((1, 3, self._size, self._size), _NORMALISED[0], np.float32)
        if height < self._height:
            self._blob[0, :, height : self._height, : self._width] = _NORMALISED[0]
        if width < self._width:
            self._blob[0, :, : self._height, width : self._width] = _NORMALISED[0]
        preprocessing.write(self._blob[0, :, :height, :width], image, _NORMALISED)
        self._height, self._width = height, width
        return self._blob


class Detector:
    """Finds faces with one session, from any number of threads.

    The session gives scores, boxes and landmarks of all anchors, or scores and features, where there are `heads`:
    what `passes.detector_heads` took out of its graph.
    """

    def __init__(self, session: Any, input_size: int, heads: NDArray[np.float32] | None = None) -> None:
        self._session = session
        self._size = input_size
        self._heads = heads
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()]
        self._batched = len(session.get_outputs()[0].shape) == 3  # noqa: PLR2004 - batch, anchors, value
        self._anchors = {stride: _anchor_centres(input_size // stride, stride) for stride in STRIDES}
        self._canvas = _Canvas(input_size)

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Return the faces of `image`, BGR (height, width, 3), of any size. Raises `ValueError` for another array."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:  # noqa: PLR2004 - rows, columns, colours
            raise ValueError(f"no BGR image of 8 bits: {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        size = fit(height, width, self._size)
        if size is None:
            return NONE
        blob = self._canvas.holding(np.asarray(cv2.resize(image, size), np.uint8))
        outputs = self._session.run(self._outputs, {self._input: blob})
        scale = float(size[1]) / height
        return self._decode([output[0] for output in outputs] if self._batched else outputs, scale)

    def _decode(self, outputs: list[NDArray[np.float32]], scale: float) -> Detections:
        scores, boxes, landmarks = [], [], []
        for level, stride in enumerate(STRIDES):
            found = np.flatnonzero(outputs[level] >= SCORE_THRESHOLD)
            if not len(found):
                continue
            centres = self._anchors[stride][found]
            scores.append(outputs[level][found].ravel())
            distances, offsets = self._regressed(outputs[level + len(STRIDES) :: len(STRIDES)], level, found)
            distances, offsets = distances * stride, (offsets * stride).reshape(-1, 5, 2)
            boxes.append(np.hstack([centres - distances[:, :2], centres + distances[:, 2:]]))
            landmarks.append(centres[:, None, :] + offsets)
        if not scores:
            return NONE
        all_scores = np.concatenate(scores)
        order = np.argsort(-all_scores, kind="stable")
        all_boxes = (np.vstack(boxes) / scale).astype(np.float32, copy=False)[order]
        all_landmarks = (np.vstack(landmarks) / scale).astype(np.float32, copy=False)[order]
        all_scores = all_scores[order]
        keep = suppress(all_boxes, all_scores)
        return Detections(all_boxes[keep], all_scores[keep], all_landmarks[keep])

    def _regressed(
        self, outputs: list[NDArray[np.float32]], level: int, found: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return distances (n, 4) and offsets (n, 10) for the anchors `found` at one stride."""
        if self._heads is None:
            distances, offsets = outputs
            return distances[found], offsets[found]
        cells, anchors = np.divmod(found, ANCHORS)
        features = outputs[0].reshape(outputs[0].shape[-3:])
        weights, constant = self._heads[level, :-1], self._heads[level, -1]
        parts = [cells[start : start + CELLS_AT_ONCE] for start in range(0, len(cells), CELLS_AT_ONCE)]
        both = np.concatenate([windows(features, part) @ weights for part in parts]) + constant
        chosen = both.reshape(len(found), ANCHORS, -1)[np.arange(len(found)), anchors]
        return chosen[:, :4], chosen[:, 4:]


def windows(features: NDArray[np.float32], cells: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the 3x3 cells around each of `cells` of `features` (n, height, width), zero beyond the edge.

    As rows (cell, 9 n), in the order feature, row, column.
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


def fit(height: int, width: int, size: int) -> tuple[int, int] | None:
    """Return the width and height of an image scaled into a square of `size`.

    None for an image so thin that nothing of it would be left: there InsightFace fails, and here it shows no face.
    """
    ratio = float(height) / width
    fitted = (int(size / ratio), size) if ratio > 1.0 else (size, int(size * ratio))
    return None if 0 in fitted else fitted


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> list[int]:
    """Return the indices that greedy non-maximum suppression keeps, the surest first."""
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


def _anchor_centres(cells: int, stride: int) -> NDArray[np.float32]:
    rows, columns = np.mgrid[:cells, :cells]
    centres = np.stack([columns, rows], axis=-1).astype(np.float32) * stride
    return np.repeat(centres.reshape(-1, 2), ANCHORS, axis=0)
