"""Convolutions in shapes that fill the blocks of onnxruntime's NCHWc layout."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from onnx import NodeProto, helper

from runner.bake.passes.graph import BLOCK, CONV_INPUTS_WITH_BIAS, Graph, attributes, is_convolution

_OPSET_WITH_SPLIT_INPUT = 13  # from here on, the sizes of Split are an input and no attribute


def merge_convolutions(graph: Graph) -> None:
    """Merge convolutions that read the same tensor with the same kernel size into one, and split its output.

    SCRFD's heads read one tensor with 2, 8 and 20 output channels; each padded to whole blocks, 64 instead of 32.
    """
    families: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        dense = is_convolution(graph, node) and attributes(node).get("group", 1) == 1
        if dense and len(node.input) == CONV_INPUTS_WITH_BIAS:
            weights = graph.constants[node.input[1]]
            padded = weights.shape[0] % BLOCK != 0
            families[f"{node.input[0]} {padded} {weights.shape[1:]} {sorted(attributes(node).items())}"].append(node)
    replacements: dict[int, list[NodeProto]] = {}
    for first, *others in families.values():
        if others:
            replacements |= {id(node): [] for node in others}
            replacements[id(first)] = _merged(graph, [first, *others])
    graph.replace(replacements)


def _merged(graph: Graph, family: list[NodeProto]) -> list[NodeProto]:
    weights, biases = ([graph.constants[node.input[place]] for node in family] for place in (1, 2))
    merged = graph.new_name("merged")
    inputs = [family[0].input[0], graph.add_constant(np.concatenate(weights))]
    inputs.append(graph.add_constant(np.concatenate(biases)))
    sizes = np.array([len(part) for part in weights], np.int64)
    outputs = [node.output[0] for node in family]
    if graph.opset < _OPSET_WITH_SPLIT_INPUT:
        split_inputs, split_sizes = [merged], {"split": sizes.tolist()}
    else:
        split_inputs, split_sizes = [merged, graph.add_constant(sizes)], {}
    split = helper.make_node("Split", split_inputs, outputs, name=graph.new_name("Split"), axis=1, **split_sizes)
    return [graph.new_node("Conv", inputs, merged, **attributes(family[0])), split]


def split_two_channel_groups(graph: Graph) -> None:
    """Compute a convolution with groups of two channels as the sum of two depthwise convolutions.

    Groups smaller than a block have no NCHWc kernel. Output channel c of such a group reads input channel c and the
    other one of the group; those come from a 1x1 convolution that swaps the two channels of every group.
    """
    replacements: dict[int, list[NodeProto]] = {}
    for node in graph.nodes:
        if not has_two_channel_groups(graph, node):
            continue
        weights = graph.constants[node.input[1]]
        channels = np.arange(len(weights))
        swap = np.zeros((len(weights), BLOCK, 1, 1), np.float32)
        swap[channels, (channels ^ 1) % BLOCK] = 1
        depthwise = {**attributes(node), "group": len(weights)}
        own, other = weights[channels, channels % 2], weights[channels, 1 - channels % 2]
        swapped, first, second = graph.new_name("swapped"), graph.new_name("own"), graph.new_name("other")
        swap_inputs = [node.input[0], graph.add_constant(swap)]
        replacements[id(node)] = [
            graph.new_node("Conv", swap_inputs, swapped, group=len(weights) // BLOCK),
            graph.new_node(
                "Conv", [node.input[0], graph.add_constant(own[:, None]), *node.input[2:]], first, **depthwise
            ),
            graph.new_node("Conv", [swapped, graph.add_constant(other[:, None])], second, **depthwise),
            graph.new_node("Add", [second, first], node.output[0]),
        ]
    graph.replace(replacements)


def has_two_channel_groups(graph: Graph, node: NodeProto) -> bool:
    """Return whether the node is a convolution with groups of two channels that fills whole blocks."""
    if not is_convolution(graph, node):
        return False
    weights = graph.constants[node.input[1]]
    return len(weights) % BLOCK == 0 and weights.shape[1] == 2 and 2 * attributes(node).get("group", 1) == len(weights)  # noqa: PLR2004 - two channels per group
