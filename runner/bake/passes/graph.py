"""A model's nodes and constants while they are being rewritten, and what every step asks of a node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# onnxruntime's blocked convolutions work on 16 channels at a time with AVX-512, on 8 with AVX2.
BLOCK = 16
WITH_BIAS = 3  # inputs of a convolution: the image, weights, bias
# Weights smaller than this part of the largest beside them change no answer: single precision rounds by 6e-8.
NEGLIGIBLE = 1e-6


class Graph:
    """A model's nodes, in order, and its constants by name; `write` puts them back into the model."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        self.outputs = [output.name for output in model.graph.output]
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._names = 0

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = self.name("constant")
        self.constants[name] = np.ascontiguousarray(values)
        return name

    def name(self, kind: str) -> str:
        """Return a name that the graph does not have yet."""
        self._names += 1
        return f"baked_{kind}_{self._names}"

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> NodeProto:
        """Return a new node, which is not in the graph yet; its only output has a new name unless one is given."""
        output = output or self.name(kind.lower())
        return helper.make_node(kind, inputs, [output], name=self.name(kind), **attributes)

    def makers(self) -> dict[str, NodeProto]:
        """Return the node that makes each tensor."""
        return {tensor: node for node in self.nodes for tensor in node.output}

    def readers(self) -> dict[str, list[NodeProto]]:
        """Return the nodes that read each tensor, once for each time they do."""
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input:
                readers[tensor].append(node)
        return readers

    def only_reader(self, tensor: str, readers: dict[str, list[NodeProto]]) -> NodeProto | None:
        """Return the node that alone reads the tensor, or None where others do, or who runs the graph."""
        return readers[tensor][0] if len(readers[tensor]) == 1 and tensor not in self.outputs else None

    def replace(self, replacements: dict[int, list[NodeProto]]) -> None:
        """Put other nodes, or none, in the place of those with these `id`s."""
        self.nodes = [new for node in self.nodes for new in replacements.get(id(node), [node])]

    def rename(self, tensor: str, name: str) -> None:
        """Give what a node makes another name."""
        for node in self.nodes:
            for tensors in (node.input, node.output):
                for place, found in enumerate(tensors):
                    if found == tensor:
                        tensors[place] = name

    def write(self) -> None:
        """Put nodes and constants back into the model, without those that no output needs any more."""
        needed = set(self.outputs)
        kept: list[NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(reversed(kept))
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(values, name) for name, values in self.constants.items() if name in needed
        )


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def is_convolution(graph: Graph, node: NodeProto | None) -> bool:
    """Return whether the node is a convolution over an image with constant weights."""
    if node is None or node.op_type != "Conv" or any(name not in graph.constants for name in node.input[1:]):
        return False
    return graph.constants[node.input[1]].ndim == 4  # noqa: PLR2004 - outputs, inputs, height, width


def is_pointwise(graph: Graph, node: NodeProto | None) -> bool:
    """Return whether the node multiplies all channels of each pixel with a constant matrix, and adds a bias."""
    return reads_windows(graph, node, 1)


def reads_windows(graph: Graph, node: NodeProto | None, side: int) -> bool:
    """Return whether the node is a full convolution of each pixel and what is around it, `side` wide, with a bias."""
    if node is None or not is_convolution(graph, node) or len(node.input) != WITH_BIAS:
        return False
    found = attributes(node)
    steps = {found.get("group", 1), *found.get("strides", [1]), *found.get("dilations", [1])}
    around = set(found.get("pads", [0]))
    return steps == {1} and around == {side // 2} and graph.constants[node.input[1]].shape[2:] == (side, side)


def largest(weights: NDArray[Any], axis: int = 0) -> NDArray[Any]:
    """Return the size of the largest weight of each place along an axis: of each output's (0) or input's (1)."""
    others = tuple(place for place in range(weights.ndim) if place != axis)
    return np.asarray(np.abs(weights).max(axis=others))
