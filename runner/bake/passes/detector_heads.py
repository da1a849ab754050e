"""SCRFD's heads: scores for every cell in the graph, boxes and landmarks by the caller, for cells with a face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from runner.bake.passes.graph import BLOCK, Graph, attributes, reads_windows
from runner.faces.pack import LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

SIDE = 3  # of the window of cells that a head reads
_COLOURS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True, slots=True)
class _Head:
    """The three convolutions that read the features of one stride."""

    features: str
    score: NodeProto
    boxes: NodeProto
    landmarks: NodeProto


def take_out_heads(model: ModelProto) -> NDArray[np.float32] | None:
    """Take boxes and landmarks out of a detector's graph, and return what they are computed with.

    They are 28 of 30 channels of a detector's heads, for 8,400 cells, of which few hold a face. Instead of them the
    graph gives the features that the heads read, after the scores. Returns weights (3, 9 n + 1, 28), for each stride:
    the box (4) and the landmarks (10) of a cell's one anchor, and then of the other, are its window of 3x3 cells
    with n features each, in the order feature, row, column, and a 1, times this matrix. None, and the graph is as it
    was, where heads are others than three convolutions of such windows.
    """
    graph = Graph(model)
    heads = [head for level in range(LEVELS) if (head := _head(graph, graph.outputs[level::LEVELS])) is not None]
    weights = [_weights(graph, head) for head in heads]
    if len(heads) != LEVELS or len({one.shape for one in weights}) != 1:
        return None
    graph.replace({id(head.score): _by_taps(graph, head.score) for head in heads})
    del model.graph.output[LEVELS:]
    for level, head in enumerate(heads):
        graph.rename(head.features, f"features_{level}")
        model.graph.output.append(helper.make_tensor_value_info(f"features_{level}", TensorProto.FLOAT, [None] * 4))
    graph.outputs = [output.name for output in model.graph.output]
    graph.write()
    return np.stack(weights)


def _head(graph: Graph, outputs: list[str]) -> _Head | None:
    """Return the convolutions that three outputs come from: scores, boxes and landmarks of one stride."""
    makers = graph.makers()
    convolutions = [_convolution(graph, makers, output) for output in outputs]
    score, boxes, landmarks = convolutions
    if score is None or boxes is None or landmarks is None:
        return None
    if len({node.input[0] for node in (score, boxes, landmarks)}) != 1:
        return None
    return _Head(score.input[0], score, boxes, landmarks)


def _convolution(graph: Graph, makers: dict[str, NodeProto], output: str) -> NodeProto | None:
    """Return the convolution of 3x3 cells that `output` is made of, by bringing its channels to the end."""
    node = makers.get(output)
    for kind in ("Sigmoid", "Reshape", "Transpose"):
        if node is not None and node.op_type == kind:
            if kind == "Transpose" and attributes(node).get("perm") != _COLOURS_LAST:
                return None
            node = makers.get(node.input[0])
    return node if reads_windows(graph, node, SIDE) else None


def _weights(graph: Graph, head: _Head) -> NDArray[np.float32]:
    anchors = len(graph.constants[head.score.input[1]])
    parts = []
    for node in (head.boxes, head.landmarks):
        weights, bias = (graph.constants[name] for name in node.input[1:])
        together = np.concatenate([weights.reshape(len(weights), -1), bias[:, None]], axis=1)
        parts.append(together.reshape(anchors, -1, together.shape[1]))
    rows = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(rows.reshape(-1, rows.shape[2]).T, np.float32)


def _by_taps(graph: Graph, convolution: NodeProto) -> list[NodeProto]:
    """Return a convolution of few outputs as what each of its 9 places gives, moved there, and added up.

    Two outputs would be padded to a block of 16, for each of 9 places; the places of both fill two blocks once:
    a quarter of the multiplications. Sums are in another order.
    """
    weights, bias = (graph.constants[name] for name in convolution.input[1:])
    outputs, inputs, places = len(weights), weights.shape[1], SIDE * SIDE
    taps = -(-outputs * places // BLOCK) * BLOCK
    if taps >= BLOCK * places:
        return [convolution]
    each = np.zeros((taps, inputs, 1, 1), np.float32)
    each[: outputs * places, :, 0, 0] = weights.reshape(outputs, inputs, places).transpose(0, 2, 1).reshape(-1, inputs)
    moved = np.zeros((taps, 1, SIDE, SIDE), np.float32)
    moved[: outputs * places, 0] = np.tile(np.eye(places, dtype=np.float32), (outputs, 1)).reshape(-1, SIDE, SIDE)
    added = np.zeros((outputs, taps, 1, 1), np.float32)
    added[:, : outputs * places, 0, 0] = np.repeat(np.eye(outputs, dtype=np.float32), places, axis=1)
    tap = graph.node("Conv", [convolution.input[0], graph.constant(each)])
    move = graph.node("Conv", [tap.output[0], graph.constant(moved)], group=taps, pads=[1] * 4)
    inputs_of_sum = [move.output[0], graph.constant(added), graph.constant(bias)]
    return [tap, move, graph.node("Conv", inputs_of_sum, convolution.output[0])]
