"""ArcFace, the recogniser (https://arxiv.org/abs/1801.07698): aligned crops in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.faces import preprocessing
from runner.faces.alignment import CROP_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Recogniser:
    """Embeds crops with one session, from any number of threads; its input is (pixel - mean) / deviation."""

    def __init__(self, session: Any, *, mean: float = 127.5, deviation: float = 127.5) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name
        self._table = preprocessing.normalised(mean, deviation)

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return an L2-normalised row for each 112x112 BGR crop."""
        blob = np.empty((len(crops), 3, CROP_SIZE, CROP_SIZE), np.float32)
        for rows, crop in zip(blob, crops, strict=True):
            preprocessing.write(rows, crop, self._table)
        raw: NDArray[np.float32] = self._session.run([self._output], {self._input: blob})[0]
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        return np.asarray(raw / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)
