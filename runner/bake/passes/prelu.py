"""PRelu as two terms that onnxruntime computes in its blocked layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.bake.passes.graph import Graph, attributes, is_convolution

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto

# A slope up to which 1 - s is taken into the weights before it, and out of them again.
STEEPEST = 0.99


def replace_prelu(graph: Graph) -> None:
    """Compute PRelu(x) with slopes s as Relu((1 - s) x) + s x, which holds where no slope is above 1.

    onnxruntime has no blocked PRelu: each one cost a reordering before and after it, and its own kernel is several
    times slower from release 1.27 on. Here s x is a depthwise convolution of one pixel, of which the sum is a part.
    """
    readers, makers = graph.readers(), graph.makers()
    replacements: dict[int, list[NodeProto]] = {}
    for node in graph.nodes:
        slopes = graph.constants.get(node.input[1]) if node.op_type == "PRelu" else None
        if slopes is None or slopes.max() > 1:
            continue
        if slopes.size == 1:
            alpha = float(slopes.item())
            replacements[id(node)] = [graph.node("LeakyRelu", [node.input[0]], node.output[0], alpha=alpha)]
        elif slopes.shape == (len(slopes), 1, 1):
            maker = makers.get(node.input[0])
            own = is_convolution(graph, maker) and graph.only_reader(node.input[0], readers) is not None
            if maker is not None and own and slopes.max() <= STEEPEST:
                bent = _multiplied(graph, maker, 1 - slopes.reshape(-1, 1, 1, 1))
                replacements[id(maker)] = [bent]
                replacements[id(node)] = from_bent(graph, bent.output[0], slopes, node.output[0])
            else:
                replacements[id(node)] = _of_a_tensor(graph, node, slopes)
    graph.replace(replacements)


def from_bent(graph: Graph, bent: str, slopes: NDArray[Any], output: str) -> list[NodeProto]:
    """Return the nodes that make PRelu(x) of (1 - s) x, for slopes up to `STEEPEST`."""
    return _sum_of_terms(graph, bent, _scaled(graph, bent, slopes / (1 - slopes)), output)


def _of_a_tensor(graph: Graph, prelu: NodeProto, slopes: NDArray[Any]) -> list[NodeProto]:
    bent = _scaled(graph, prelu.input[0], 1 - slopes)
    return [bent, *_sum_of_terms(graph, bent.output[0], _scaled(graph, prelu.input[0], slopes), prelu.output[0])]


def _sum_of_terms(graph: Graph, bent: str, straight: NodeProto, output: str) -> list[NodeProto]:
    relu = graph.node("Relu", [bent])
    return [relu, straight, graph.node("Add", [straight.output[0], relu.output[0]], output)]


def _scaled(graph: Graph, tensor: str, factors: NDArray[Any]) -> NodeProto:
    """Return a node that multiplies each channel of `tensor` by its factor."""
    weights = graph.constant(factors.reshape(-1, 1, 1, 1))
    return graph.node("Conv", [tensor, weights], graph.name("scaled"), group=factors.size)


def _multiplied(graph: Graph, convolution: NodeProto, factors: NDArray[Any]) -> NodeProto:
    """Return the convolution with each output channel multiplied by its factor, and a new name for its output."""
    weights, *bias = (graph.constants[name] for name in convolution.input[1:])
    constants = [weights * factors, *(values * factors.ravel() for values in bias)]
    inputs = [convolution.input[0], *map(graph.constant, constants)]
    return graph.node("Conv", inputs, graph.name("bent"), **attributes(convolution))
