"""Convolutions in forms that fill onnxruntime's blocks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from runner.bake.passes.graph import BLOCK, WITH_BIAS, Graph, attributes, is_convolution

if TYPE_CHECKING:
    from onnx import NodeProto

_SPLIT_SIZES_ARE_AN_INPUT = 13  # the version of ONNX's operators from which they are one


def merge_convolutions(graph: Graph) -> None:
    """Compute convolutions of the same input and window as one.

    SCRFD's heads read one tensor with 2, 8 and 20 output channels, each padded to whole blocks: 64 instead of 32.
    """
    families: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        if is_convolution(graph, node) and attributes(node).get("group", 1) == 1 and len(node.input) == WITH_BIAS:
            weights = graph.constants[node.input[1]]
            small = weights.shape[0] % BLOCK != 0
            families[f"{node.input[0]} {small} {weights.shape[1:]} {sorted(attributes(node).items())}"].append(node)
    replacements: dict[int, list[NodeProto]] = {}
    for first, *others in families.values():
        if others:
            replacements |= {id(node): [] for node in others}
            replacements[id(first)] = _merged(graph, [first, *others])
    graph.replace(replacements)


def _merged(graph: Graph, family: list[NodeProto]) -> list[NodeProto]:
    weights, biases = ([graph.constants[node.input[place]] for node in family] for place in (1, 2))
    together = graph.name("merged")
    inputs = [family[0].input[0], graph.constant(np.concatenate(weights)), graph.constant(np.concatenate(biases))]
    sizes = np.array([len(part) for part in weights], np.int64)
    outputs = [node.output[0] for node in family]
    if graph.opset < _SPLIT_SIZES_ARE_AN_INPUT:
        split = helper.make_node("Split", [together], outputs, name=graph.name("Split"), axis=1, split=sizes.tolist())
    else:
        split = helper.make_node("Split", [together, graph.constant(sizes)], outputs, name=graph.name("Split"), axis=1)
    return [graph.node("Conv", inputs, together, **attributes(family[0])), split]


def split_pairs(graph: Graph) -> None:
    """Compute a convolution of groups of two channels as the sum of two depthwise ones.

    Groups smaller than a block have no blocked kernel. Output channel c of a group of two reads its input channels c
    and c's neighbour; the neighbours come from a convolution of one pixel that swaps the channels of every pair.
    """
    replacements: dict[int, list[NodeProto]] = {}
    for node in graph.nodes:
        if not has_pairs(graph, node):
            continue
        weights = graph.constants[node.input[1]]
        channels = np.arange(len(weights))
        swap = np.zeros((len(weights), BLOCK, 1, 1), np.float32)
        swap[channels, (channels ^ 1) % BLOCK] = 1
        depthwise = {**attributes(node), "group": len(weights)}
        own, other = weights[channels, channels % 2], weights[channels, 1 - channels % 2]
        swapped, first, second = graph.name("swapped"), graph.name("own"), graph.name("other")
        replacements[id(node)] = [
            graph.node("Conv", [node.input[0], graph.constant(swap)], swapped, group=len(weights) // BLOCK),
            graph.node("Conv", [node.input[0], graph.constant(own[:, None]), *node.input[2:]], first, **depthwise),
            graph.node("Conv", [swapped, graph.constant(other[:, None])], second, **depthwise),
            graph.node("Add", [second, first], node.output[0]),
        ]
    graph.replace(replacements)


def has_pairs(graph: Graph, node: NodeProto) -> bool:
    """Return whether the node is a convolution of groups of two channels, in whole blocks."""
    if not is_convolution(graph, node):
        return False
    weights = graph.constants[node.input[1]]
    return len(weights) % BLOCK == 0 and weights.shape[1] == 2 and 2 * attributes(node).get("group", 1) == len(weights)  # noqa: PLR2004 - two channels a group
