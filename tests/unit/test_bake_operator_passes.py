"""Passes that replace operators, and canonical models: they compute the same with standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runner.bake.passes import canonical
from tests.support.graph_tools import RNG, Weights, assert_same, model, operators, optimised


@pytest.mark.parametrize("channels", [3, 16, 20])
def test_prelu_becomes_two_depthwise_terms(channels: int) -> None:
    slopes = RNG.uniform(-1, 1, (channels, 1, 1))
    before = model(
        [helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": slopes}, ["y"], shape=["n", channels, 9, 7], opset=11
    )
    after = optimised(before)
    assert operators(after) == {"Conv": 2, "Relu": 1, "Add": 1}
    assert_same(before, after, (2, channels, 9, 7))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("steepest", "passes"), [(0.9, 1), (0.999, 2)])
def test_a_prelu_after_a_convolution_scales_its_weights(with_bias: bool, steepest: float, passes: int) -> None:
    """Unless the scale is close to zero: the other term would be divided by it."""
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
    after = optimised(before)
    assert operators(after) == {"Conv": 1 + passes, "Relu": 1, "Add": 1}
    assert_same(before, after, (3, 16, 9, 7))


def test_a_convolution_with_other_consumers_is_not_scaled() -> None:
    before = model(
        [helper.make_node("Conv", ["x", "w", "b"], ["c"]), helper.make_node("PRelu", ["c", "s"], ["y"])],
        {"w": RNG.normal(size=(16, 3, 3, 3)), "b": RNG.normal(size=16), "s": RNG.uniform(-1, 1, (16, 1, 1))},
        ["y", "c"],
        shape=["n", 3, 12, 12],
        opset=11,
    )
    after = optimised(before)
    assert operators(after)["Conv"] == 3
    assert_same(before, after, (2, 3, 12, 12))


def test_one_slope_for_all_channels_becomes_a_leaky_relu() -> None:
    before = model(
        [helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": np.array([-0.3])}, ["y"], shape=["n", 4, 5, 5], opset=11
    )
    after = optimised(before)
    assert operators(after) == {"LeakyRelu": 1}
    assert_same(before, after, (1, 4, 5, 5))


@pytest.mark.parametrize("slopes", [np.full((4, 1, 1), 1.5), RNG.uniform(0, 1, 5), RNG.uniform(0, 1, (4, 5, 5))])
def test_a_prelu_that_the_two_terms_cannot_express_is_kept(slopes: NDArray[np.float64]) -> None:
    before = model([helper.make_node("PRelu", ["x", "s"], ["y"])], {"s": slopes}, ["y"], shape=["n", 4, 5, 5], opset=11)
    after = optimised(before)
    assert operators(after) == {"PRelu": 1}
    assert_same(before, after, (1, 4, 5, 5))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_of_two_channels_become_depthwise(with_bias: bool, stride: int) -> None:
    weights: Weights = {"w": RNG.normal(size=(32, 2, 3, 3))}
    if with_bias:
        weights["b"] = RNG.normal(size=32)
    node = helper.make_node("Conv", ["x", *weights], ["y"], group=16, pads=[1, 1, 1, 1], strides=[stride, stride])
    before = model([node], weights, ["y"], shape=["n", 32, 8, 10], opset=11)
    after = optimised(before)
    assert operators(after) == {"Conv": 3, "Add": 1}
    assert_same(before, after, (2, 32, 8, 10))


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(32, 4, 8), (24, 2, 12), (16, 2, 4)])
def test_other_groups_are_kept(outputs: int, inputs: int, group: int) -> None:
    weights = {"w": RNG.normal(size=(outputs, inputs, 3, 3))}
    before = model(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=group)],
        weights,
        ["y"],
        shape=["n", inputs * group, 8, 8],
        opset=11,
    )
    after = optimised(before)
    assert operators(after) == {"Conv": 1}
    assert_same(before, after, (1, inputs * group, 8, 8))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_convolutions_of_the_same_tensor_are_merged(opset: int) -> None:
    sizes = {"a": 2, "b": 8, "c": 20}
    weights: Weights = {}
    nodes = []
    for name, size in sizes.items():
        weights[f"w{name}"], weights[f"b{name}"] = RNG.normal(size=(size, 6, 3, 3)), RNG.normal(size=size)
        nodes.append(helper.make_node("Conv", ["x", f"w{name}", f"b{name}"], [name], pads=[1, 1, 1, 1]))
    before = model(nodes, weights, list(sizes), shape=[1, 6, 8, 8], opset=opset)
    after = optimised(before)
    assert operators(after) == {"Conv": 1, "Split": 1}
    assert_same(before, after, (1, 6, 8, 8))


def test_convolutions_with_other_kernels_or_whole_blocks_are_not_merged() -> None:
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
    after = optimised(before)
    assert operators(after) == {"Conv": 4}
    assert_same(before, after, (1, 6, 8, 8))


def test_constants_among_the_inputs_and_other_domains_are_removed() -> None:
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
    canonical.fix_input(before, ("faces", 4, 6, 6))
    canonical.keep_standard_domain(before)
    assert [item.name for item in before.graph.input] == ["x"]
    assert [entry.domain for entry in before.opset_import] == [""]
    assert before.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "faces"
    assert_same(before, optimised(before), (5, 4, 6, 6))


def test_names_and_order_do_not_depend_on_those_before() -> None:
    """Names of inputs and outputs are kept."""
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
        canonical.number_names(after)
        assert [item.name for item in after.graph.initializer] == ["tensor_1"]
        assert [node.op_type for node in after.graph.node] == ["Relu", "Mul", "Neg", "Add"]
        assert_same(model(nodes, weights, ["y", "z"], shape=(1, 1, 4, 4), opset=13), after, (1, 1, 4, 4))
        made.append(after.SerializeToString())
    assert made[0] == made[1]
