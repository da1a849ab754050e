"""PRelu as the sum of two terms, for which onnxruntime's NCHWc layout has operators."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto

from runner.bake.passes.graph import Graph, attributes, is_convolution, prelu_slopes

# The largest slope s for which the preceding weights are scaled by 1 - s, by which the other term is then divided.
MAX_SLOPE = 0.99


def replace_prelu(graph: Graph) -> None:
    """Compute PRelu(x) with slopes s as Relu((1 - s) x) + s x, which holds for slopes up to 1.

    PRelu has no NCHWc kernel: each one cost a reordering before and after it, and from release 1.27 on its own kernel
    is several times slower. s x is a depthwise 1x1 convolution, into which onnxruntime fuses the sum.
    """
    consumers, producers = graph.consumers(), graph.producers()
    replacements: dict[int, list[NodeProto]] = {}
    for node in graph.nodes:
        slopes = prelu_slopes(graph, node)
        if slopes is None or slopes.max() > 1:
            continue
        if slopes.size == 1:
            alpha = float(slopes.item())
            replacements[id(node)] = [graph.new_node("LeakyRelu", [node.input[0]], node.output[0], alpha=alpha)]
        elif slopes.shape == (len(slopes), 1, 1):
            producer = producers.get(node.input[0])
            own = is_convolution(graph, producer) and graph.sole_consumer(node.input[0], consumers) is not None
            if producer is not None and own and slopes.max() <= MAX_SLOPE:
                scaled = _with_scaled_outputs(graph, producer, 1 - slopes.reshape(-1, 1, 1, 1))
                replacements[id(producer)] = [scaled]
                replacements[id(node)] = prelu_of_scaled(graph, scaled.output[0], slopes, node.output[0])
            else:
                replacements[id(node)] = _prelu_of_tensor(graph, node, slopes)
    graph.replace(replacements)


def prelu_of_scaled(graph: Graph, scaled: str, slopes: NDArray[Any], output: str) -> list[NodeProto]:
    """Return nodes that compute PRelu(x) from `scaled` = (1 - s) x, for slopes s up to `MAX_SLOPE`."""
    return _sum_of_terms(graph, scaled, _depthwise(graph, scaled, slopes / (1 - slopes)), output)


def _prelu_of_tensor(graph: Graph, prelu: NodeProto, slopes: NDArray[Any]) -> list[NodeProto]:
    scaled = _depthwise(graph, prelu.input[0], 1 - slopes)
    linear = _depthwise(graph, prelu.input[0], slopes)
    return [scaled, *_sum_of_terms(graph, scaled.output[0], linear, prelu.output[0])]


def _sum_of_terms(graph: Graph, scaled: str, linear: NodeProto, output: str) -> list[NodeProto]:
    relu = graph.new_node("Relu", [scaled])
    return [relu, linear, graph.new_node("Add", [linear.output[0], relu.output[0]], output)]


def _depthwise(graph: Graph, tensor: str, factors: NDArray[Any]) -> NodeProto:
    """Return a node that multiplies each channel of `tensor` by its factor."""
    weights = graph.add_constant(factors.reshape(-1, 1, 1, 1))
    return graph.new_node("Conv", [tensor, weights], graph.new_name("scaled"), group=factors.size)


def _with_scaled_outputs(graph: Graph, convolution: NodeProto, factors: NDArray[Any]) -> NodeProto:
    """Return the convolution with each output channel multiplied by its factor, under a new name."""
    weights, *bias = (graph.constants[name] for name in convolution.input[1:])
    constants = [weights * factors, *(values * factors.ravel() for values in bias)]
    inputs = [convolution.input[0], *map(graph.add_constant, constants)]
    return graph.new_node("Conv", inputs, graph.new_name("bent"), **attributes(convolution))
