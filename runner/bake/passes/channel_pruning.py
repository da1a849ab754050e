"""Channels that training has left without an effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.bake.passes.convolutions import has_pairs
from runner.bake.passes.graph import (
    BLOCK,
    NEGLIGIBLE,
    WITH_BIAS,
    Graph,
    attributes,
    is_convolution,
    is_pointwise,
    largest,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A convolution of groups of two channels, and what stands around it.

    `before` → `bend` → `pairs` → `next_bend` → `after`: convolution, PRelu, `pairs`, PRelu, pointwise convolution.
    """

    before: NodeProto
    bend: NodeProto
    pairs: NodeProto
    next_bend: NodeProto
    after: NodeProto


def drop_channels(graph: Graph) -> None:
    """Leave out what a convolution of groups of two channels makes without need, and what is made for it without need.

    In ArcFace's MobileFaceNet 45 of 128 channels of the first convolution are zero, and 24 of those that follow are
    never read; both layers, and the convolution after them, which takes a tenth of the recogniser's time, are
    computed with 112 channels. Channels that are left lie in pairs where both of a pair are read together, and by
    themselves where one is.
    """
    for pattern in _patterns(graph):
        _rebuild(graph, pattern)


def _patterns(graph: Graph) -> list[_Pairs]:
    makers, readers = graph.makers(), graph.readers()
    found = []
    for pairs in graph.nodes:
        if not has_pairs(graph, pairs) or len(pairs.input) != WITH_BIAS:
            continue
        bend = makers.get(pairs.input[0])
        before = makers.get(bend.input[0]) if bend is not None else None
        next_bend = graph.only_reader(pairs.output[0], readers)
        after = graph.only_reader(next_bend.output[0], readers) if next_bend is not None else None
        if bend is None or before is None or next_bend is None or after is None:
            continue
        alone = all(graph.only_reader(node.output[0], readers) is not None for node in (before, bend))
        full = is_convolution(graph, before) and attributes(before).get("group", 1) == 1
        if not alone or not full or len(before.input) != WITH_BIAS:
            continue
        if _bends(graph, bend) and _bends(graph, next_bend) and is_pointwise(graph, after):
            found.append(_Pairs(before, bend, pairs, next_bend, after))
    return found


def _bends(graph: Graph, node: NodeProto) -> bool:
    slopes = graph.constants.get(node.input[1]) if node.op_type == "PRelu" else None
    return slopes is not None and slopes.shape == (len(slopes), 1, 1) and len(slopes) > 1


def _rebuild(graph: Graph, pattern: _Pairs) -> None:
    constants = graph.constants
    first, first_bias = (constants[name] for name in pattern.before.input[1:])
    weights, bias = (constants[name] for name in pattern.pairs.input[1:])
    last, last_bias = (constants[name] for name in pattern.after.input[1:])
    slopes, next_slopes = constants[pattern.bend.input[1]], constants[pattern.next_bend.input[1]]
    # A channel without weights and bias is zero everywhere: after PRelu too, and beyond the edge like all others.
    size = np.maximum(largest(first), np.abs(first_bias))
    layout = _layout(weights, size > NEGLIGIBLE * size.max(), largest(last, axis=1))
    if layout is None:
        return
    # What reads nothing is the same for every pixel: a part of the next bias.
    steady = np.where(bias > 0, bias, bias * next_slopes.ravel())[layout.steady]
    last_bias = last_bias + (last[:, layout.steady, 0, 0] * steady).sum(axis=1)
    for node, place, values in (
        (pattern.before, 1, layout.padded(first[layout.sources])),
        (pattern.before, 2, layout.padded(first_bias[layout.sources])),
        (pattern.bend, 1, layout.padded(slopes[layout.sources])),
        (pattern.pairs, 1, layout.padded(layout.weights)),
        (pattern.pairs, 2, layout.padded(bias[layout.channels])),
        (pattern.next_bend, 1, layout.padded(next_slopes[layout.channels])),
        (pattern.after, 1, layout.padded(last[:, layout.channels], axis=1)),
        (pattern.after, 2, last_bias),
    ):
        node.input[place] = graph.constant(np.asarray(values, np.float32))
    for attribute in pattern.pairs.attribute:
        if attribute.name == "group":
            attribute.i = layout.width // 2


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is left of a convolution of groups of two.

    `channels` are the outputs that are computed, `sources` the input that each of them finds in its own place,
    `weights` (channels, 2, height, width) those of the group, and `steady` the outputs that are left out because
    they read nothing.
    """

    channels: NDArray[np.intp]
    sources: NDArray[np.intp]
    weights: NDArray[np.float32]
    steady: NDArray[np.bool_]

    @property
    def width(self) -> int:
        """The number of channels, filled up to whole blocks."""
        return -(-len(self.channels) // BLOCK) * BLOCK

    def padded(self, values: NDArray[Any], axis: int = 0) -> NDArray[Any]:
        """Return the values of the channels, with zeros up to whole blocks."""
        sides = [(0, 0)] * values.ndim
        sides[axis] = (0, self.width - len(self.channels))
        return np.pad(values, sides)


def _layout(weights: NDArray[Any], alive: NDArray[np.bool_], wanted: NDArray[Any]) -> _Layout | None:
    """Return the smaller form of a convolution of groups of two, or None where it takes as many blocks.

    `alive` says which inputs are not zero everywhere, `wanted` how much of each output is used.
    """
    channel = np.arange(len(weights))
    own, other = weights[channel, channel % 2], weights[channel, 1 - channel % 2]
    least = NEGLIGIBLE * np.abs(weights).max()
    reads_own, reads_other = (largest(own) > least) & alive, (largest(other) > least) & alive[channel ^ 1]
    own, other = own * reads_own[:, None, None], other * reads_other[:, None, None]
    used = wanted > NEGLIGIBLE * wanted.max()
    both = used & reads_own & reads_other
    in_pairs = both | both[channel ^ 1]
    by_itself = used & (reads_own ^ reads_other) & ~in_pairs
    channels = np.concatenate([channel[in_pairs], channel[by_itself]])
    place = np.arange(len(channels))
    in_place = (in_pairs | reads_own)[channels]
    kept = np.zeros((len(channels), *weights.shape[1:]), np.float32)
    kept[place, place % 2] = np.where(in_place[:, None, None], own[channels], other[channels])
    kept[place, 1 - place % 2] = other[channels] * in_pairs[channels][:, None, None]
    steady = ~(reads_own | reads_other | in_pairs)
    layout = _Layout(channels, np.where(in_place, channels, channels ^ 1), kept, steady)
    return layout if layout.width < len(weights) else None
