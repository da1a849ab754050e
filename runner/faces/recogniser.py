"""ArcFace, the recogniser (https://arxiv.org/abs/1801.07698): from aligned crops to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runner.faces.alignment import CROP_SIZE
from runner.faces.arrays import Float32Array, Image
from runner.faces.preprocessing import normalisation_table, write_planes


class Recogniser:
    """Embeds crops with one ONNX session, which any number of threads may share.

    The network reads (pixel - mean) / deviation.
    """

    def __init__(self, session: Any, *, mean: float = 127.5, deviation: float = 127.5) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name
        self._table = normalisation_table(mean, deviation)

    def embed(self, crops: Sequence[Image]) -> Float32Array:
        """Return the embeddings (n, 512) of n crops (112, 112, 3), each of L2 norm 1 (0 where the network gives 0).

        Raises what onnxruntime raises.
        """
        blob = np.empty((len(crops), 3, CROP_SIZE, CROP_SIZE), np.float32)
        for planes, crop in zip(blob, crops, strict=True):
            write_planes(planes, crop, self._table)
        raw: Float32Array = self._session.run([self._output], {self._input: blob})[0]
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        return np.asarray(raw / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)
