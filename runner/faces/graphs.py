"""Rewriting of ONNX graphs when baking: the same sums in fewer and quicker steps.

Every function takes a loaded model and changes it in place; what comes out holds operators of the ONNX standard
alone, so that it runs on any processor and under any execution provider. docs/engine.md has the measurements.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# onnxruntime's blocked convolutions work on 16 channels at a time with AVX-512, on 8 with AVX2.
BLOCK = 16
# A PRelu's slope up to which 1 - s is taken into the weights before it, and out of them again.
STEEPEST = 0.99
_SPLIT_SIZES_ARE_AN_INPUT = 13  # the version of ONNX's operators from which they are one


def fix_input(model: ModelProto, shape: tuple[int | str, ...]) -> None:
    """Give the only input this shape (a word is a free dimension), and free what the outputs say of it.

    Old files name their constants among the inputs too; these names go, or the constants would not count as such.
    """
    constants = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, value in zip(dimensions, shape, strict=True):
        dimension.Clear()
        if isinstance(value, int):
            dimension.dim_value = value
        else:
            dimension.dim_param = value
    for output in model.graph.output:
        if isinstance(shape[0], str):  # ArcFace's files declare one row, whatever the batch
            output.type.tensor_type.shape.dim[0].dim_param = shape[0]
    del model.graph.value_info[:]


def keep_standard_domain(model: ModelProto) -> None:
    """Drop the declarations of onnxruntime's own operators, which it writes into every file it saves."""
    standard = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)


def number_names(model: ModelProto) -> None:
    """Name nodes, constants and what nodes make by their place: onnxruntime's names are others every time."""
    graph = model.graph
    kept = {item.name for item in (*graph.input, *graph.output)}
    names: dict[str, str] = {}
    for place, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{place}", ""
        for tensors in (node.input, node.output):
            for index, tensor in enumerate(tensors):
                if tensor and tensor not in kept:
                    tensors[index] = names.setdefault(tensor, f"tensor_{len(names)}")
    constants = {item.name: item for item in graph.initializer}
    used = [constants[name] for name in names if name in constants]
    for item in used:
        item.name = names[item.name]
    copies = [TensorProto.FromString(item.SerializeToString()) for item in used]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    del graph.value_info[:]


def quicken(model: ModelProto) -> None:
    """Replace what onnxruntime's blocked layout has no operator for, and merge convolutions that share their input."""
    graph = _Graph(model)
    for step in (_merge_convolutions, _replace_prelu, _split_small_groups):
        step(graph)
    graph.write()


class _Graph:
    """A model's nodes and constants while they are being rewritten."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
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

    def uses(self) -> dict[str, int]:
        """Return how many nodes and outputs read each tensor."""
        counts: dict[str, int] = defaultdict(int)
        for node in self.nodes:
            for tensor in node.input:
                counts[tensor] += 1
        for output in self._model.graph.output:
            counts[output.name] += 1
        return counts

    def write(self) -> None:
        """Put nodes and constants back into the model, without constants that nothing reads any more."""
        read = self.uses()
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.initializer[:]
        graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in self.constants.items() if name in read)


def _merge_convolutions(graph: _Graph) -> None:
    """Compute convolutions of the same input and window as one.

    SCRFD's heads read one tensor with 2, 8 and 20 output channels, each padded to whole blocks: 64 instead of 32.
    """
    families: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        if _is_convolution(graph, node) and _attributes(node).get("group", 1) == 1 and len(node.input) == 3:  # noqa: PLR2004 - input, weights, bias
            weights = graph.constants[node.input[1]]
            small = weights.shape[0] % BLOCK != 0
            families[f"{node.input[0]} {small} {weights.shape[1:]} {sorted(_attributes(node).items())}"].append(node)
    merged = {id(family[0]): family for family in families.values() if len(family) > 1}
    gone = {id(node) for family in merged.values() for node in family[1:]}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if id(node) in merged:
            nodes += _merged(graph, merged[id(node)])
        elif id(node) not in gone:
            nodes.append(node)
    graph.nodes = nodes


def _merged(graph: _Graph, family: list[NodeProto]) -> list[NodeProto]:
    weights, biases = ([graph.constants[node.input[place]] for node in family] for place in (1, 2))
    together = graph.name("merged")
    inputs = [family[0].input[0], graph.constant(np.concatenate(weights)), graph.constant(np.concatenate(biases))]
    sizes = np.array([len(part) for part in weights], np.int64)
    outputs = [node.output[0] for node in family]
    if graph.opset < _SPLIT_SIZES_ARE_AN_INPUT:
        split = helper.make_node("Split", [together], outputs, name=graph.name("Split"), axis=1, split=sizes.tolist())
    else:
        split = helper.make_node("Split", [together, graph.constant(sizes)], outputs, name=graph.name("Split"), axis=1)
    return [_node(graph, "Conv", inputs, together, **_attributes(family[0])), split]


def _split_small_groups(graph: _Graph) -> None:
    """Compute a convolution of groups of two channels as the sum of two depthwise ones.

    Groups smaller than a block have no blocked kernel. Output channel c of a group of two reads its input channels c
    and c's neighbour; the neighbours come from a convolution of one pixel that swaps the channels of every pair.
    """
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if not _has_pairs(graph, node):
            nodes.append(node)
            continue
        weights = graph.constants[node.input[1]]
        channels = np.arange(len(weights))
        swap = np.zeros((len(weights), BLOCK, 1, 1), np.float32)
        swap[channels, (channels ^ 1) % BLOCK] = 1
        depthwise = {**_attributes(node), "group": len(weights)}
        own, other = weights[channels, channels % 2], weights[channels, 1 - channels % 2]
        swapped, first, second = graph.name("swapped"), graph.name("own"), graph.name("other")
        nodes += [
            _node(graph, "Conv", [node.input[0], graph.constant(swap)], swapped, group=len(weights) // BLOCK),
            _node(graph, "Conv", [node.input[0], graph.constant(own[:, None]), *node.input[2:]], first, **depthwise),
            _node(graph, "Conv", [swapped, graph.constant(other[:, None])], second, **depthwise),
            _node(graph, "Add", [second, first], node.output[0]),
        ]
    graph.nodes = nodes


def _has_pairs(graph: _Graph, node: NodeProto) -> bool:
    if not _is_convolution(graph, node):
        return False
    weights = graph.constants[node.input[1]]
    return len(weights) % BLOCK == 0 and weights.shape[1] == 2 and 2 * _attributes(node).get("group", 1) == len(weights)  # noqa: PLR2004 - two channels a group


def _replace_prelu(graph: _Graph) -> None:
    """Compute PRelu(x) with slopes s as Relu((1 - s) x) + s x, which holds where no slope is above 1.

    onnxruntime has no blocked PRelu: each one cost a reordering before and after it, and its own kernel is several
    times slower from release 1.27 on. Here s x is a depthwise convolution of one pixel, of which the sum is a part.
    """
    uses = graph.uses()
    # What makes a tensor that nobody else reads, where that is a convolution.
    makers = {
        node.output[0]: node for node in graph.nodes if uses[node.output[0]] == 1 and _is_convolution(graph, node)
    }
    nodes: dict[int, list[NodeProto]] = {id(node): [node] for node in graph.nodes}
    for node in graph.nodes:
        slopes = graph.constants.get(node.input[1]) if node.op_type == "PRelu" else None
        if slopes is None or slopes.max() > 1:
            continue
        if slopes.size == 1:
            leaky = helper.make_node(
                "LeakyRelu", [node.input[0]], [node.output[0]], name=graph.name("LeakyRelu"), alpha=float(slopes.item())
            )
            nodes[id(node)] = [leaky]
        elif slopes.shape == (len(slopes), 1, 1):
            maker, factors = makers.get(node.input[0]), slopes.reshape(-1, 1, 1, 1)
            if maker is not None and _is_cheap(graph, maker):
                nodes[id(maker)], nodes[id(node)] = [], _of_an_image(graph, node, factors, maker)
            elif maker is not None and slopes.max() <= STEEPEST:
                nodes[id(maker)], nodes[id(node)] = [], _of_a_product(graph, node, factors, maker)
            else:
                nodes[id(node)] = _of_a_tensor(graph, node, factors)
    graph.nodes = [replacement for node in graph.nodes for replacement in nodes[id(node)]]


def _of_a_tensor(graph: _Graph, prelu: NodeProto, slopes: NDArray[Any]) -> list[NodeProto]:
    """Return `prelu` as two depthwise convolutions of one pixel."""
    bent = _scaled(graph, prelu.input[0], 1 - slopes)
    return [bent, *_bent_and_straight(graph, bent, _scaled(graph, prelu.input[0], slopes), prelu.output[0])]


def _of_an_image(graph: _Graph, prelu: NodeProto, slopes: NDArray[Any], maker: NodeProto) -> list[NodeProto]:
    """Return `prelu` as two convolutions like the one before it: on 3 channels that is cheaper than over its output."""
    bent = _convolution(graph, maker, 1 - slopes)
    return [bent, *_bent_and_straight(graph, bent, _convolution(graph, maker, slopes), prelu.output[0])]


def _of_a_product(graph: _Graph, prelu: NodeProto, slopes: NDArray[Any], maker: NodeProto) -> list[NodeProto]:
    """Return `prelu` over the convolution before it, whose weights take in the factor 1 - s."""
    bent = _convolution(graph, maker, 1 - slopes)
    straight = _scaled(graph, bent.output[0], slopes / (1 - slopes))
    return [bent, *_bent_and_straight(graph, bent, straight, prelu.output[0])]


def _bent_and_straight(graph: _Graph, bent: NodeProto, straight: NodeProto, output: str) -> list[NodeProto]:
    relu = _node(graph, "Relu", [bent.output[0]], graph.name("relu"))
    return [relu, straight, _node(graph, "Add", [straight.output[0], relu.output[0]], output)]


def _scaled(graph: _Graph, tensor: str, factors: NDArray[Any]) -> NodeProto:
    """Return a node that multiplies each channel of `tensor` by its factor."""
    return _node(graph, "Conv", [tensor, graph.constant(factors)], graph.name("scaled"), group=len(factors))


def _convolution(graph: _Graph, node: NodeProto, factors: NDArray[Any]) -> NodeProto:
    """Return the convolution `node` with each output channel multiplied by its factor."""
    weights, *bias = (graph.constants[name] for name in node.input[1:])
    constants = [weights * factors, *(values * factors.ravel() for values in bias)]
    inputs = [node.input[0], *map(graph.constant, constants)]
    return _node(graph, "Conv", inputs, graph.name("scaled"), **_attributes(node))


def _is_cheap(graph: _Graph, node: NodeProto) -> bool:
    return bool(graph.constants[node.input[1]].shape[1] == 3)  # noqa: PLR2004 - the colours of an image


def _is_convolution(graph: _Graph, node: NodeProto) -> bool:
    """Return whether the node is a convolution over an image with constant weights."""
    if node.op_type != "Conv" or any(name not in graph.constants for name in node.input[1:]):
        return False
    return graph.constants[node.input[1]].ndim == 4  # noqa: PLR2004 - outputs, inputs, height, width


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _node(graph: _Graph, kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=graph.name(kind), **attributes)
