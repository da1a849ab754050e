"""External data: the larger tensors of a pack's graphs, in separate files, which onnxruntime maps into memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypeAlias

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data

# Smaller tensors stay in the ONNX file: each external one is mapped separately, in whole pages.
MIN_BYTES = 1024
ALIGNMENT = 64  # bytes: a cache line, and a vector register of AVX-512
# sha256 of a tensor's bytes → the file that has them, and the offset there.
StoredTensors: TypeAlias = dict[bytes, tuple[str, int]]


def path_beside(graph: Path) -> Path:
    """Return the path of a graph's external data."""
    return graph.with_suffix(".weights")


def save(model: ModelProto, target: Path, stored: StoredTensors) -> Path:
    """Write the graph to `target`, and its larger tensors, if any, to the file of its external data. Return `target`.

    Tensors that are already in `stored` are only referred to, and new ones are added to it: the two variants of a
    graph share 6 of 14 MB.
    """
    path = path_beside(target)
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            content = tensor.raw_data
            if len(content) < MIN_BYTES:
                continue
            digest = hashlib.sha256(content).digest()
            if digest not in stored:
                file.seek(-file.tell() % ALIGNMENT, os.SEEK_CUR)
                stored[digest] = path.name, file.tell()
                file.write(content)
            name, offset = stored[digest]
            set_external_data(tensor, name, offset, len(content))
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
        empty = file.tell() == 0
    if empty:
        path.unlink()
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target
