"""The weights of a pack's graphs, in files beside them, where onnxruntime maps them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

# Smaller tensors stay in the ONNX file: each one beside it is mapped by itself, in whole pages.
LEAST_BYTES = 1024
ALIGNMENT = 64  # of what processors load at once


def beside(graph: Path) -> Path:
    """Return where the weights of a graph are."""
    return graph.with_suffix(".weights")


def save(model: ModelProto, target: Path, stored: dict[bytes, tuple[str, int]]) -> Path:
    """Write the graph to `target`, and its larger tensors to the file beside it, if there are any.

    `stored` says by sha256 where another graph of the folder has put a tensor already, and learns where this one puts
    its own: two forms of a graph have 6 of 14 MB in common.
    """
    from onnx import TensorProto
    from onnx.external_data_helper import set_external_data

    path = beside(target)
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            content = tensor.raw_data
            if len(content) < LEAST_BYTES:
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
