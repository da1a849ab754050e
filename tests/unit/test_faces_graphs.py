"""The rewriting of graphs: what comes out computes the same, and holds nothing that only some processors can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runner.faces import graphs
from tests.support.graph_tools import RNG, Weights, assert_same, kinds, model, quickened

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize("channels", [3, 16, 20])
def test_prelu_becomes_two_depthwise_terms(channels: int) -> None:
    slopes = RNG.uniform(-1, 1, (channels, 1, 1))
    before = model(
        [helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": slopes}, ["y"], shape=["n", channels, 9, 7], opset=11
    )
    after = quickened(before)
    assert kinds(after) == {"Conv": 2, "Relu": 1, "Add": 1}
    assert_same(before, after, (2, channels, 9, 7))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("steepest", "passes"), [(0.9, 1), (0.999, 2)])
def test_a_prelu_after_another_convolution_takes_one_factor_from_its_weights(
    with_bias: bool, steepest: float, passes: int
) -> None:
    """Unless that factor is next to nothing, by which the other term would have to be divided."""
    slopes = np.append(RNG.uniform(-1, 0.9, 15), steepest).reshape(16, 1, 1)
    weights: Weights = {"w": RNG.normal(size=(16, 16, 3, 3)), "s": slopes}
    if with_bias:
        weights["b"] = RNG.normal(size=16)
    inputs = ["x", "w", "b"] if with_bias else ["x", "w"]
    before = model(
        [helper.make_node("Conv", inputs, ["c"], pads=[1, 1, 1, 1]), helper.make_node("PRelu", ["c", "s"], ["y"])],
        weights,
        ["y"],
        shape=["n", 16, 9, 7],
        opset=11,
    )
    after = quickened(before)
    assert kinds(after) == {"Conv": 1 + passes, "Relu": 1, "Add": 1}
    assert_same(before, after, (3, 16, 9, 7))


def test_a_convolution_that_others_read_too_stays() -> None:
    before = model(
        [helper.make_node("Conv", ["x", "w", "b"], ["c"]), helper.make_node("PRelu", ["c", "s"], ["y"])],
        {"w": RNG.normal(size=(16, 3, 3, 3)), "b": RNG.normal(size=16), "s": RNG.uniform(-1, 1, (16, 1, 1))},
        ["y", "c"],
        shape=["n", 3, 12, 12],
        opset=11,
    )
    after = quickened(before)
    assert kinds(after)["Conv"] == 3
    assert_same(before, after, (2, 3, 12, 12))


def test_one_slope_for_all_is_a_leaky_relu() -> None:
    before = model(
        [helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": np.array([-0.3])}, ["y"], shape=["n", 4, 5, 5], opset=11
    )
    after = quickened(before)
    assert kinds(after) == {"LeakyRelu": 1}
    assert_same(before, after, (1, 4, 5, 5))


@pytest.mark.parametrize("slopes", [np.full((4, 1, 1), 1.5), RNG.uniform(0, 1, 5), RNG.uniform(0, 1, (4, 5, 5))])
def test_a_prelu_that_the_terms_cannot_express_stays(slopes: NDArray[np.float64]) -> None:
    before = model([helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": slopes}, ["y"], shape=["n", 4, 5, 5], opset=11)
    after = quickened(before)
    assert kinds(after) == {"PRelu": 1}
    assert_same(before, after, (1, 4, 5, 5))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_of_two_become_depthwise(with_bias: bool, stride: int) -> None:
    weights: Weights = {"w": RNG.normal(size=(32, 2, 3, 3))}
    if with_bias:
        weights["b"] = RNG.normal(size=32)
    node = helper.make_node("Conv", ["x", *weights], ["y"], group=16, pads=[1, 1, 1, 1], strides=[stride, stride])
    before = model([node], weights, ["y"], shape=["n", 32, 8, 10], opset=11)
    after = quickened(before)
    assert kinds(after) == {"Conv": 3, "Add": 1}
    assert_same(before, after, (2, 32, 8, 10))


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(32, 4, 8), (24, 2, 12), (16, 2, 4)])
def test_other_groups_stay(outputs: int, inputs: int, group: int) -> None:
    weights = {"w": RNG.normal(size=(outputs, inputs, 3, 3))}
    before = model(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=group)],
        weights,
        ["y"],
        shape=["n", inputs * group, 8, 8],
        opset=11,
    )
    after = quickened(before)
    assert kinds(after) == {"Conv": 1}
    assert_same(before, after, (1, inputs * group, 8, 8))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_convolutions_of_one_input_are_merged(opset: int) -> None:
    sizes = {"a": 2, "b": 8, "c": 20}
    weights: Weights = {}
    nodes = []
    for name, size in sizes.items():
        weights[f"w{name}"], weights[f"b{name}"] = RNG.normal(size=(size, 6, 3, 3)), RNG.normal(size=size)
        nodes.append(helper.make_node("Conv", ["x", f"w{name}", f"b{name}"], [name], pads=[1, 1, 1, 1]))
    before = model(nodes, weights, list(sizes), shape=[1, 6, 8, 8], opset=opset)
    after = quickened(before)
    assert kinds(after) == {"Conv": 1, "Split": 1}
    assert_same(before, after, (1, 6, 8, 8))


def test_convolutions_with_other_windows_or_whole_blocks_stay_apart() -> None:
    weights = {
        "w1": RNG.normal(size=(4, 6, 3, 3)),
        "w2": RNG.normal(size=(4, 6, 1, 1)),
        "w3": RNG.normal(size=(16, 6, 3, 3)),
        "w4": RNG.normal(size=(4, 6, 3, 3)),
        "b4": RNG.normal(size=4),
        "b16": RNG.normal(size=16),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b4"], ["p"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w2", "b4"], ["q"]),
        helper.make_node("Conv", ["x", "w3", "b16"], ["r"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w4", "b4"], ["t"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    before = model(nodes, weights, ["p", "q", "r", "t"], shape=[1, 6, 8, 8], opset=11)
    after = quickened(before)
    assert kinds(after) == {"Conv": 4}
    assert_same(before, after, (1, 6, 8, 8))


def test_constants_named_among_the_inputs_and_other_domains_go() -> None:
    before = model(
        [helper.make_node("PRelu", ["x", "s"], ["y"])],
        {"s": RNG.uniform(-1, 1, (4, 1, 1))},
        ["y"],
        shape=[1, 4, 5, 5],
        opset=11,
    )
    before.ir_version = 3
    before.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [4, 1, 1]))
    before.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    graphs.fix_input(before, ("faces", 4, 6, 6))
    graphs.keep_standard_domain(before)
    assert [item.name for item in before.graph.input] == ["x"]
    assert [entry.domain for entry in before.opset_import] == [""]
    assert before.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "faces"
    assert_same(before, quickened(before), (5, 4, 6, 6))


def test_names_and_order_follow_from_what_is_needed() -> None:
    """Whatever onnxruntime called them, and in whichever order; inputs and outputs keep their names."""
    made = []
    for names, order in ((("a", "b", "w"), (0, 1, 2, 3)), (("p", "o", "n"), (2, 0, 3, 1))):
        nodes = [
            helper.make_node("Relu", ["x"], [names[0]], name=names[1], doc_string="Relu"),
            helper.make_node("Mul", [names[0], names[2]], [names[1]], name=names[0]),
            helper.make_node("Neg", ["x"], ["z"]),
            helper.make_node("Add", [names[1], "z"], ["y"]),
        ]
        weights = {names[2]: RNG.normal(size=(1,)) * 0 + 2, f"unused {names[0]}": np.zeros(1)}
        before = model([nodes[place] for place in order], weights, ["y", "z"], shape=(1, 1, 4, 4), opset=13)
        after = onnx.ModelProto()
        after.CopyFrom(before)
        graphs.number_names(after)
        assert [item.name for item in after.graph.initializer] == ["tensor_1"]
        assert [node.op_type for node in after.graph.node] == ["Relu", "Mul", "Neg", "Add"]
        assert_same(model(nodes, weights, ["y", "z"], shape=(1, 1, 4, 4), opset=13), after, (1, 1, 4, 4))
        made.append(after.SerializeToString())
    assert made[0] == made[1]
