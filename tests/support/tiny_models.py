"""Small ONNX graphs of the shapes of a detector and a recogniser, with random weights: they find no faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = (1, 4, 10)  # numbers per anchor: score, box, landmarks


def detector(path: Path, *, side: int | str = "side", outputs: int = 9) -> Path:
    """Write a detector: convolutions with strides 8, 16 and 32, and two anchors per cell."""
    random = np.random.default_rng(1)
    nodes, weights, names = [], [], []
    for size in SIZES:
        for stride in (8, 16, 32):
            name = f"{size}_{stride}"
            weights.append(
                numpy_helper.from_array(
                    random.normal(0, 1e-4, (2 * size, 3, stride, stride)).astype(np.float32), f"w{name}"
                )
            )
            weights.append(numpy_helper.from_array(np.array([1, -1, size], np.int64), f"s{name}"))
            nodes += [
                helper.make_node("Conv", ["x", f"w{name}"], [f"c{name}"], strides=[stride, stride]),
                helper.make_node("Transpose", [f"c{name}"], [f"t{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t{name}", f"s{name}"], [name]),
            ]
            names.append(name)
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in names[:outputs]]
    return _write(path, nodes, [1, 3, side, side], found, weights)


def recogniser(path: Path, *, size: int = 512, side: int = 112) -> Path:
    """Write a recogniser that computes `size` numbers from the mean colour."""
    weight = numpy_helper.from_array(np.random.default_rng(2).normal(size=(3, size)).astype(np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    found = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size])]
    return _write(path, nodes, ["n", 3, side, side], found, [weight])


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    shape: list[int | str],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> Path:
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "tiny", [entry], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    return path
