"""External data: each tensor is stored once, and onnxruntime finds all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from runner.bake import external_data

RNG = np.random.default_rng(3)
BOTH = RNG.normal(size=(1, 600)).astype(np.float32)
ALONE = RNG.normal(size=(1, 600)).astype(np.float32)
SMALL = RNG.normal(size=(1, 1)).astype(np.float32)


def model(*constants: np.ndarray) -> onnx.ModelProto:
    """Return a graph that adds its constants to its input."""
    floats = TensorProto.FLOAT
    nodes = [helper.make_node("Add", [f"x{n}", f"c{n}"], [f"x{n + 1}"]) for n in range(len(constants))]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x0", floats, [1, 600])],
        [helper.make_tensor_value_info(f"x{len(constants)}", floats, [1, 600])],
        [numpy_helper.from_array(values, f"c{n}") for n, values in enumerate(constants)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)


def answer(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x0": np.zeros((1, 600), np.float32)})[0])


def test_tensors_that_two_graphs_share_are_stored_once(tmp_path: Path) -> None:
    stored: external_data.StoredTensors = {}
    first = external_data.save(model(BOTH, SMALL), tmp_path / "a.onnx", stored)
    second = external_data.save(model(SMALL, ALONE, BOTH, ALONE), tmp_path / "b.tuned.onnx", stored)
    np.testing.assert_allclose(answer(first), BOTH + SMALL, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer(second), SMALL + 2 * ALONE + BOTH, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "a.weights").read_bytes() == BOTH.tobytes()
    assert (tmp_path / "b.tuned.weights").read_bytes() == ALONE.tobytes()
    assert all(offset % external_data.ALIGNMENT == 0 for _, offset in stored.values())


def test_tensors_are_aligned(tmp_path: Path) -> None:
    odd = RNG.normal(size=(1, 601)).astype(np.float32)
    stored: external_data.StoredTensors = {}
    external_data.save(model(odd, ALONE), tmp_path / "a.onnx", stored)
    assert sorted(offset for _, offset in stored.values()) == [0, 2432]
    content = (tmp_path / "a.weights").read_bytes()
    assert content[:2404] == odd.tobytes()
    assert content[2432:] == ALONE.tobytes()


def test_a_graph_without_large_tensors_has_no_external_data(tmp_path: Path) -> None:
    path = external_data.save(model(SMALL), tmp_path / "a.onnx", {})
    assert [one.name for one in tmp_path.iterdir()] == ["a.onnx"]
    np.testing.assert_allclose(answer(path), np.broadcast_to(SMALL, (1, 600)))
