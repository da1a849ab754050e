"""A model's nodes and constants while passes rewrite them, and predicates about nodes.

Names that passes give to nodes and tensors are written into the pack: another name changes its checksums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

# Channels of a block in onnxruntime's NCHWc layout with AVX-512; with AVX2 it has 8.
BLOCK = 16
CONV_INPUTS_WITH_BIAS = 3  # image, weights, bias
# Weights below this fraction of the largest beside them change no answer: single precision rounds by 6e-8.
NEGLIGIBLE = 1e-6


class Graph:
    """A model's nodes in topological order, and its constants by name; `write_back` puts them into the model."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        self.outputs = [output.name for output in model.graph.output]
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._names = 0

    def add_constant(self, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = self.new_name("constant")
        self.constants[name] = np.ascontiguousarray(values)
        return name

    def new_name(self, kind: str) -> str:
        """Return a name that the graph does not use yet."""
        self._names += 1
        return f"baked_{kind}_{self._names}"

    def new_node(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> NodeProto:
        """Return a node that is not in the graph yet; its only output gets a new name unless one is given."""
        output = output or self.new_name(op_type.lower())
        return helper.make_node(op_type, inputs, [output], name=self.new_name(op_type), **attributes)

    def producers(self) -> dict[str, NodeProto]:
        """Return the node that produces each tensor."""
        return {tensor: node for node in self.nodes for tensor in node.output}

    def consumers(self) -> dict[str, list[NodeProto]]:
        """Return the nodes that read each tensor, as often as they do."""
        consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input:
                consumers[tensor].append(node)
        return consumers

    def sole_consumer(self, tensor: str, consumers: dict[str, list[NodeProto]]) -> NodeProto | None:
        """Return the only node that reads the tensor; None if there are others, or if it is an output of the graph."""
        return consumers[tensor][0] if len(consumers[tensor]) == 1 and tensor not in self.outputs else None

    def replace(self, replacements: dict[int, list[NodeProto]]) -> None:
        """Replace each node whose `id` is a key by the nodes of its value."""
        self.nodes = [new for node in self.nodes for new in replacements.get(id(node), [node])]

    def rename(self, tensor: str, name: str) -> None:
        """Rename a tensor wherever nodes produce or read it."""
        for node in self.nodes:
            for tensors in (node.input, node.output):
                for place, found in enumerate(tensors):
                    if found == tensor:
                        tensors[place] = name

    def write_back(self) -> None:
        """Put the nodes and constants that an output needs into the model."""
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
    """Return whether the node is a two-dimensional convolution with constant weights."""
    if node is None or node.op_type != "Conv" or any(name not in graph.constants for name in node.input[1:]):
        return False
    return graph.constants[node.input[1]].ndim == 4  # noqa: PLR2004 - outputs, inputs, height, width


def is_pointwise(graph: Graph, node: NodeProto | None) -> bool:
    """Return whether the node is a 1x1 convolution over all channels, with a bias."""
    return is_same_size(graph, node, 1)


def is_same_size(graph: Graph, node: NodeProto | None, kernel: int) -> bool:
    """Return whether the node is a convolution over all channels with a bias, a square kernel, and stride 1.

    Its padding keeps the size of the image.
    """
    if node is None or not is_convolution(graph, node) or len(node.input) != CONV_INPUTS_WITH_BIAS:
        return False
    found = attributes(node)
    steps = {found.get("group", 1), *found.get("strides", [1]), *found.get("dilations", [1])}
    padding = set(found.get("pads", [0]))
    return steps == {1} and padding == {kernel // 2} and graph.constants[node.input[1]].shape[2:] == (kernel, kernel)


def prelu_slopes(graph: Graph, node: NodeProto | None) -> NDArray[Any] | None:
    """Return the constant slopes of a PRelu, None for any other node."""
    return graph.constants.get(node.input[1]) if node is not None and node.op_type == "PRelu" else None


def largest(weights: NDArray[Any], axis: int = 0) -> NDArray[Any]:
    """Return the largest magnitude among the weights of each output channel (axis 0) or input channel (axis 1)."""
    others = tuple(place for place in range(weights.ndim) if place != axis)
    return np.asarray(np.abs(weights).max(axis=others))
