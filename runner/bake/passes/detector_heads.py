"""SCRFD's heads: scores for every cell in the graph, boxes and landmarks only for cells with a face, outside of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from runner.bake.passes.graph import BLOCK, Graph, attributes, is_same_size
from runner.faces.arrays import Float32Array
from runner.faces.pack import LEVELS

KERNEL = 3  # of a head's convolution
# Cells before channels, in SCRFD's exports with a batch and in those before it, of which the batch is always one.
_ROWS_OF_CELLS = ([0, 2, 3, 1], [2, 3, 0, 1])


@dataclass(frozen=True, slots=True)
class _Head:
    """The three convolutions that read the feature map of one stride."""

    features: str
    scores: NodeProto
    boxes: NodeProto
    landmarks: NodeProto


def extract_regression_heads(model: ModelProto) -> Float32Array | None:
    """Remove boxes and landmarks from a detector's outputs, and return the matrices that compute them.

    They are 28 of the 30 channels of a detector's heads, over 8,400 cells of which few contain a face. The graph
    returns the scores and, in place of boxes and landmarks, the feature maps that the heads read. The result (3, 9 n +
    1, 28), for n features, holds one matrix per stride: a cell's 3x3 patch, in the order feature, row, column, followed
    by 1, times this matrix gives box (4) and landmarks (10) of each of its two anchors.

    Returns None and does not change the model if the heads are not three 3x3 convolutions of one feature map.
    """
    graph = Graph(model)
    heads = [head for level in range(LEVELS) if (head := _head(graph, graph.outputs[level::LEVELS])) is not None]
    weights = [_regression_matrix(graph, head) for head in heads]
    if len(heads) != LEVELS or len({matrix.shape for matrix in weights}) != 1:
        return None
    graph.replace({id(head.scores): _by_taps(graph, head.scores) for head in heads})
    del model.graph.output[LEVELS:]
    for level, head in enumerate(heads):
        graph.rename(head.features, f"features_{level}")
        model.graph.output.append(helper.make_tensor_value_info(f"features_{level}", TensorProto.FLOAT, [None] * 4))
    graph.outputs = [output.name for output in model.graph.output]
    graph.write_back()
    return np.stack(weights)


def _head(graph: Graph, outputs: list[str]) -> _Head | None:
    """Return the convolutions behind three outputs: scores, boxes and landmarks of one stride."""
    producers = graph.producers()
    scores, boxes, landmarks = (_convolution(graph, producers, output) for output in outputs)
    if scores is None or boxes is None or landmarks is None:
        return None
    if len({node.input[0] for node in (scores, boxes, landmarks)}) != 1:
        return None
    return _Head(scores.input[0], scores, boxes, landmarks)


def _convolution(graph: Graph, producers: dict[str, NodeProto], output: str) -> NodeProto | None:
    """Return the 3x3 convolution whose channels are in `output`, cell by cell."""
    node = producers.get(output)
    for op_type in ("Sigmoid", "Reshape", "Transpose"):
        if node is not None and node.op_type == op_type:
            if op_type == "Transpose" and attributes(node).get("perm") not in _ROWS_OF_CELLS:
                return None
            node = producers.get(node.input[0])
    return node if is_same_size(graph, node, KERNEL) else None


def _regression_matrix(graph: Graph, head: _Head) -> Float32Array:
    anchors = len(graph.constants[head.scores.input[1]])
    parts = []
    for node in (head.boxes, head.landmarks):
        weights, bias = (graph.constants[name] for name in node.input[1:])
        together = np.concatenate([weights.reshape(len(weights), -1), bias[:, None]], axis=1)
        parts.append(together.reshape(anchors, -1, together.shape[1]))
    rows = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(rows.reshape(-1, rows.shape[2]).T, np.float32)


def _by_taps(graph: Graph, convolution: NodeProto) -> list[NodeProto]:
    """Return a 3x3 convolution with few outputs as a 1x1 convolution per tap, shifted and added up.

    Two outputs would be padded to a block of 16 for each of 9 taps; the taps of both fill two blocks once: a quarter
    of the multiplications. The order of the additions differs.
    """
    weights, bias = (graph.constants[name] for name in convolution.input[1:])
    outputs, inputs, places = len(weights), weights.shape[1], KERNEL * KERNEL
    taps = -(-outputs * places // BLOCK) * BLOCK
    if taps >= BLOCK * places:
        return [convolution]
    tap_weights = np.zeros((taps, inputs, 1, 1), np.float32)
    tap_weights[: outputs * places, :, 0, 0] = (
        weights.reshape(outputs, inputs, places).transpose(0, 2, 1).reshape(-1, inputs)
    )
    shifts = np.zeros((taps, 1, KERNEL, KERNEL), np.float32)
    shifts[: outputs * places, 0] = np.tile(np.eye(places, dtype=np.float32), (outputs, 1)).reshape(-1, KERNEL, KERNEL)
    sums = np.zeros((outputs, taps, 1, 1), np.float32)
    sums[:, : outputs * places, 0, 0] = np.repeat(np.eye(outputs, dtype=np.float32), places, axis=1)
    tap = graph.new_node("Conv", [convolution.input[0], graph.add_constant(tap_weights)])
    shift = graph.new_node("Conv", [tap.output[0], graph.add_constant(shifts)], group=taps, pads=[1] * 4)
    sum_inputs = [shift.output[0], graph.add_constant(sums), graph.add_constant(bias)]
    return [tap, shift, graph.new_node("Conv", sum_inputs, convolution.output[0])]
