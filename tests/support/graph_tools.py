"""Small ONNX graphs, and a check that they compute the same outputs after graph passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runner.bake.variants import apply_passes

RNG = np.random.default_rng(7)
SEEDED = RNG.bit_generator.state
Weights = dict[str, NDArray[Any]]


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Weights,
    outputs: Sequence[str],
    *,
    shape: Sequence[int | str],
    opset: int,
    rank: int = 4,
) -> onnx.ModelProto:
    """Return a model with the input `x` of this shape; int64 weights stay int64, all others become float32."""
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", floats, list(shape))],
        [helper.make_tensor_value_info(name, floats, [None] * rank) for name in outputs],
        [numpy_helper.from_array(_typed(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _typed(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype == np.int64 else np.asarray(values, np.float32)


def run(graph: onnx.ModelProto, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    answers: list[NDArray[np.float32]] = session(graph).run(None, {"x": image})
    return answers


def session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def operators(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, size: tuple[int, ...], *, atol: float = 1e-5) -> None:
    onnx.checker.check_model(after, full_check=True)
    image = RNG.normal(size=size).astype(np.float32)
    for expected, found in zip(run(before, image), run(after, image), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol)


def optimised(before: onnx.ModelProto) -> onnx.ModelProto:
    after = onnx.ModelProto()
    after.CopyFrom(before)
    apply_passes(after)
    return after
