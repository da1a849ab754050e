"""Channel pruning: channels that training has left without an effect are not computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from runner.bake.passes.convolutions import has_two_channel_groups
from runner.bake.passes.graph import (
    BLOCK,
    CONV_INPUTS_WITH_BIAS,
    NEGLIGIBLE,
    Graph,
    attributes,
    is_convolution,
    is_pointwise,
    largest,
    prelu_slopes,
)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The nodes around a convolution with groups of two channels, each the only consumer of the one before it.

    A convolution over all channels, PRelu, the grouped convolution, PRelu, and a pointwise convolution.
    """

    first: NodeProto
    first_prelu: NodeProto
    grouped: NodeProto
    second_prelu: NodeProto
    pointwise: NodeProto


@dataclass(frozen=True, slots=True)
class _Pruned:
    """What is left of a convolution with groups of two channels.

    `outputs` are the output channels that are kept, `inputs` the input channel that each of them reads at its own
    position, `weights` (outputs, 2, height, width) their weights, and `constant` which of the old output channels
    read nothing and are therefore the same for every pixel.
    """

    outputs: NDArray[np.intp]
    inputs: NDArray[np.intp]
    weights: NDArray[np.float32]
    constant: NDArray[np.bool_]

    @property
    def width(self) -> int:
        """The number of channels, rounded up to whole blocks."""
        return -(-len(self.outputs) // BLOCK) * BLOCK

    def padded(self, values: NDArray[Any], axis: int = 0) -> NDArray[Any]:
        """Return the values of the kept channels, padded with zeros to whole blocks."""
        padding = [(0, 0)] * values.ndim
        padding[axis] = (0, self.width - len(self.outputs))
        return np.pad(values, padding)


def prune_channels(graph: Graph) -> None:
    """Remove output channels of two-channel groups that nothing reads, and input channels that are zero.

    In ArcFace's MobileFaceNet, 45 of the 128 channels of the first convolution are zero, and 24 of those after it are
    never read. Both layers, and the pointwise convolution after them, which takes a tenth of the recogniser's time,
    are computed with 112 channels. A group of which both channels are read stays; of any other, the output is
    computed from one channel at its own position.
    """
    for pattern in _patterns(graph):
        _prune(graph, pattern)


def _patterns(graph: Graph) -> list[_Pattern]:
    producers, consumers = graph.producers(), graph.consumers()
    found = []
    for grouped in graph.nodes:
        if not has_two_channel_groups(graph, grouped) or len(grouped.input) != CONV_INPUTS_WITH_BIAS:
            continue
        first_prelu = producers.get(grouped.input[0])
        first = producers.get(first_prelu.input[0]) if first_prelu is not None else None
        second_prelu = graph.sole_consumer(grouped.output[0], consumers)
        pointwise = graph.sole_consumer(second_prelu.output[0], consumers) if second_prelu is not None else None
        if first_prelu is None or first is None or second_prelu is None or pointwise is None:
            continue
        alone = all(graph.sole_consumer(node.output[0], consumers) is not None for node in (first, first_prelu))
        dense = is_convolution(graph, first) and attributes(first).get("group", 1) == 1
        if not alone or not dense or len(first.input) != CONV_INPUTS_WITH_BIAS or not is_pointwise(graph, pointwise):
            continue
        if _has_slope_per_channel(graph, first_prelu) and _has_slope_per_channel(graph, second_prelu):
            found.append(_Pattern(first, first_prelu, grouped, second_prelu, pointwise))
    return found


def _has_slope_per_channel(graph: Graph, node: NodeProto) -> bool:
    slopes = prelu_slopes(graph, node)
    return slopes is not None and slopes.shape == (len(slopes), 1, 1) and len(slopes) > 1


def _prune(graph: Graph, pattern: _Pattern) -> None:
    constants = graph.constants
    first, first_bias = (constants[name] for name in pattern.first.input[1:])
    weights, bias = (constants[name] for name in pattern.grouped.input[1:])
    last, last_bias = (constants[name] for name in pattern.pointwise.input[1:])
    slopes, next_slopes = constants[pattern.first_prelu.input[1]], constants[pattern.second_prelu.input[1]]
    # A channel without weights and bias is zero everywhere: after PRelu too, and in the padding like every channel.
    size = np.maximum(largest(first), np.abs(first_bias))
    pruned = _pruned(weights, size > NEGLIGIBLE * size.max(), largest(last, axis=1))
    if pruned is None:
        return
    # The output of a channel that reads nothing is constant, and is added to the bias of the pointwise convolution.
    constant = np.where(bias > 0, bias, bias * next_slopes.ravel())[pruned.constant]
    last_bias = last_bias + (last[:, pruned.constant, 0, 0] * constant).sum(axis=1)
    for node, place, values in (
        (pattern.first, 1, pruned.padded(first[pruned.inputs])),
        (pattern.first, 2, pruned.padded(first_bias[pruned.inputs])),
        (pattern.first_prelu, 1, pruned.padded(slopes[pruned.inputs])),
        (pattern.grouped, 1, pruned.padded(pruned.weights)),
        (pattern.grouped, 2, pruned.padded(bias[pruned.outputs])),
        (pattern.second_prelu, 1, pruned.padded(next_slopes[pruned.outputs])),
        (pattern.pointwise, 1, pruned.padded(last[:, pruned.outputs], axis=1)),
        (pattern.pointwise, 2, last_bias),
    ):
        node.input[place] = graph.add_constant(np.asarray(values, np.float32))
    for attribute in pattern.grouped.attribute:
        if attribute.name == "group":
            attribute.i = pruned.width // 2


def _pruned(weights: NDArray[Any], alive: NDArray[np.bool_], used: NDArray[Any]) -> _Pruned | None:
    """Return the pruned convolution, or None if it takes as many blocks.

    `alive` says which inputs are not zero everywhere, `used` is the largest weight with which each output is read.
    """
    channel = np.arange(len(weights))
    own, other = weights[channel, channel % 2], weights[channel, 1 - channel % 2]
    least = NEGLIGIBLE * np.abs(weights).max()
    reads_own, reads_other = (largest(own) > least) & alive, (largest(other) > least) & alive[channel ^ 1]
    own, other = own * reads_own[:, None, None], other * reads_other[:, None, None]
    is_used = used > NEGLIGIBLE * used.max()
    reads_both = is_used & reads_own & reads_other
    in_group = reads_both | reads_both[channel ^ 1]
    alone = is_used & (reads_own ^ reads_other) & ~in_group
    outputs = np.concatenate([channel[in_group], channel[alone]])
    place = np.arange(len(outputs))
    in_place = (in_group | reads_own)[outputs]
    kept = np.zeros((len(outputs), *weights.shape[1:]), np.float32)
    kept[place, place % 2] = np.where(in_place[:, None, None], own[outputs], other[outputs])
    kept[place, 1 - place % 2] = other[outputs] * in_group[outputs][:, None, None]
    constant = ~(reads_own | reads_other | in_group)
    pruned = _Pruned(outputs, np.where(in_place, outputs, outputs ^ 1), kept, constant)
    return pruned if pruned.width < len(weights) else None
