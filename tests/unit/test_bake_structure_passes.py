"""Passes that remove computation: channel pruning, the residual basis, and regression heads for few cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from runner.bake.passes.detector_heads import extract_regression_heads
from runner.bake.variants import apply_passes
from runner.faces import detector
from runner.faces.detector import Detector, patches
from tests.support.graph_tools import RNG, Weights, assert_same, model, operators, optimised, run, session

# A change of basis amplifies rounding by up to the condition number of its matrix.
ROUNDED = 2e-4

# Channel pruning


def stem(**changes: NDArray[Any]) -> onnx.ModelProto:
    """Return the start of ArcFace's MobileFaceNet with 64 channels, random but for the `changes`."""
    weights: Weights = {
        "w0": RNG.normal(size=(64, 3, 3, 3)),
        "b0": RNG.normal(size=64),
        "s0": RNG.uniform(-1, 0.9, (64, 1, 1)),
        "w1": RNG.normal(size=(64, 2, 3, 3)),
        "b1": RNG.normal(size=64),
        "s1": RNG.uniform(-1, 0.9, (64, 1, 1)),
        "w2": RNG.normal(size=(16, 64, 1, 1)) / 8,
        "b2": RNG.normal(size=16),
        **changes,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["c0", "s0"], ["p0"]),
        helper.make_node("Conv", ["p0", "w1", "b1"], ["c1"], group=32, pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["c1", "s1"], ["p1"]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["y"]),
    ]
    return model(nodes, weights, ["y"], shape=["n", 3, 16, 12], opset=11)


def widths(graph: onnx.ModelProto) -> set[int]:
    """Return the input channels of each pointwise convolution that has more than one block of them."""
    shapes = [tuple(item.dims) for item in graph.graph.initializer if len(item.dims) == 4]
    return {shape[1] for shape in shapes if shape[2:] == (1, 1) and shape[0] == 16 and shape[1] > 16}


def test_channels_that_are_all_needed_are_kept() -> None:
    before = stem()
    after = optimised(before)
    assert widths(after) == {64}
    assert_same(before, after, (2, 3, 16, 12))


def test_channels_that_nothing_reads_are_pruned() -> None:
    last = RNG.normal(size=(16, 64, 1, 1)) / 8
    last[:, 5:29] = 0
    before = stem(w2=last)
    after = optimised(before)
    assert widths(after) == {48}  # 40 are left, and the other channels of the groups of 4 and 29
    assert_same(before, after, (2, 3, 16, 12))


def test_channels_that_are_zero_are_pruned() -> None:
    """Both channels of a group, or one of them: what is left of such a group reads one channel."""
    first, bias = RNG.normal(size=(64, 3, 3, 3)), RNG.normal(size=64)
    dead = [*range(20), *range(21, 41, 2), *range(42, 60, 2)]
    first[dead], bias[dead] = 0, 1e-9
    before = stem(w0=first, b0=bias)
    after = optimised(before)
    assert widths(after) == {48}
    assert_same(before, after, (2, 3, 16, 12))


def test_a_channel_without_weights_but_with_a_bias_is_kept() -> None:
    """It is constant within the image, but zero in the padding."""
    first, bias = RNG.normal(size=(64, 3, 3, 3)), RNG.normal(size=64)
    first[:20], bias[:20] = 0, 3
    before = stem(w0=first, b0=bias)
    after = optimised(before)
    assert widths(after) == {64}
    assert_same(before, after, (2, 3, 16, 12))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_channel_that_reads_nothing_becomes_part_of_the_next_bias(sign: int) -> None:
    pairs, bias = RNG.normal(size=(64, 2, 3, 3)), RNG.normal(size=64)
    pairs[10:30], bias[10:30] = 0, sign
    before = stem(w1=pairs, b1=bias)
    after = optimised(before)
    assert widths(after) == {48}
    assert_same(before, after, (2, 3, 16, 12))


def test_random_choices_of_channels_without_an_effect_are_pruned() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        first, bias = random.normal(size=(64, 3, 3, 3)), random.normal(size=64)
        pairs, last = random.normal(size=(64, 2, 3, 3)), random.normal(size=(16, 64, 1, 1)) / 8
        dead = random.random(64) < 0.3
        first[dead], bias[dead] = 0, 0
        pairs[random.random((64, 2)) < 0.3] = 0
        last[:, random.random(64) < 0.3] = 0
        before = stem(w0=first, b0=bias, w1=pairs, w2=last)
        after = optimised(before)
        assert max(widths(after)) < 64
        assert_same(before, after, (2, 3, 16, 12))


# Residual basis


def residual(*, blocks: int = 3, dead: int = 0, unread: bool = True, widest: int = 32) -> onnx.ModelProto:
    """Return inverted residuals over 32 channels, in which `dead` channels of each expansion are zero."""
    weights: Weights = {"w": RNG.normal(size=(32, 16, 1, 1)) / 4, "b": RNG.normal(size=32)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["t0"])]
    for place in range(blocks):
        name = f"{place}"
        widen, depthwise = RNG.normal(size=(widest, 32, 1, 1)) / 6, RNG.normal(size=(widest, 1, 3, 3)) / 3
        widen[:dead] = 0
        if unread:
            depthwise[:dead] = 0
        weights |= {
            f"e{name}": widen,
            f"eb{name}": RNG.normal(size=widest),
            f"s{name}": RNG.uniform(-1, 0.9, (widest, 1, 1)),
            f"d{name}": depthwise,
            f"db{name}": RNG.normal(size=widest),
            f"p{name}": RNG.normal(size=(32, widest, 1, 1)) / 6,
            f"pb{name}": RNG.normal(size=32),
        }
        nodes += [
            helper.make_node("Conv", [f"t{name}", f"e{name}", f"eb{name}"], [f"wide{name}"]),
            helper.make_node("PRelu", [f"wide{name}", f"s{name}"], [f"active{name}"]),
            helper.make_node(
                "Conv", [f"active{name}", f"d{name}", f"db{name}"], [f"deep{name}"], group=widest, pads=[1, 1, 1, 1]
            ),
            helper.make_node("Conv", [f"deep{name}", f"p{name}", f"pb{name}"], [f"out{name}"]),
            helper.make_node("Add", [f"out{name}", f"t{name}"][:: (-1) ** place], [f"t{place + 1}"]),
        ]
    weights |= {"we": RNG.normal(size=(48, 32, 1, 1)) / 6, "be": RNG.normal(size=48)}
    nodes.append(helper.make_node("Conv", [f"t{blocks}", "we", "be"], ["y"]))
    return model(nodes, weights, ["y"], shape=["n", 16, 9, 7], opset=11)


def pointwise(graph: onnx.ModelProto) -> int:
    """Return the number of pointwise convolutions over all channels."""
    shapes = [tuple(item.dims) for item in graph.graph.initializer if len(item.dims) == 4]
    return sum(shape[1] > 1 and shape[2:] == (1, 1) for shape in shapes)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_one_consumer_of_a_residual_path_is_removed(blocks: int) -> None:
    before = residual(blocks=blocks)
    after = optimised(before)
    assert pointwise(after) == pointwise(before) - 1
    assert_same(before, after, (2, 16, 9, 7), atol=ROUNDED)


@pytest.mark.parametrize("dead", [1, 3])
def test_a_basis_fills_channels_that_nothing_reads(dead: int) -> None:
    before = residual(dead=dead)
    after = optimised(before)
    assert pointwise(after) == pointwise(before) - 1
    assert_same(before, after, (2, 16, 9, 7), atol=ROUNDED)


def test_a_residual_path_without_an_invertible_consumer_is_kept() -> None:
    """Channels without weights whose bias is read, and layers that expand."""
    for before in (residual(dead=2, unread=False), residual(widest=48)):
        after = optimised(before)
        assert pointwise(after) == pointwise(before)
        assert_same(before, after, (2, 16, 9, 7), atol=ROUNDED)


def test_a_residual_path_that_is_an_output_is_kept() -> None:
    before = residual()
    before.graph.output.append(helper.make_tensor_value_info("t2", onnx.TensorProto.FLOAT, [None] * 4))
    after = optimised(before)
    assert pointwise(after) == pointwise(before)
    assert_same(before, after, (2, 16, 9, 7), atol=ROUNDED)


# Regression heads

FEATURES = 16


def heads(
    *, kernel: int = 3, shared: bool = True, batched: bool = False, opset: int = 11, perm: Sequence[int] = (0, 2, 3, 1)
) -> onnx.ModelProto:
    """Return SCRFD's heads over features of 16 channels at three strides of an image of 64 pixels."""
    weights: Weights = {}
    nodes: list[onnx.NodeProto] = []
    for level, stride in enumerate((8, 16, 32)):
        for name in ("f", "g"):
            weights[f"w{name}{level}"] = RNG.normal(size=(FEATURES, 3, stride, stride)) / stride
            inputs = ["x", f"w{name}{level}"]
            nodes.append(helper.make_node("Conv", inputs, [f"{name}{level}"], strides=[stride, stride]))
        for kind, size in (("score", 1), ("box", 4), ("points", 10)):
            features = f"f{level}" if shared or kind != "box" else f"g{level}"
            # Scores well below 1: close to it, rounding would change their order.
            spread = 100 if kind == "score" else 6
            weights[f"w{kind}{level}"] = RNG.normal(size=(2 * size, FEATURES, kernel, kernel)) / spread
            weights[f"b{kind}{level}"] = RNG.normal(size=2 * size) / spread
            weights[f"r{kind}{level}"] = np.array([1, -1, size] if batched else [-1, size])
            nodes += _head(features, f"{kind}{level}", pads=[kernel // 2] * 4, perm=perm)
    names = [f"{kind}{level}" for kind in ("score", "box", "points") for level in range(3)]
    return model(nodes, weights, names, shape=[1, 3, 64, 64], opset=opset, rank=3 if batched else 2)


def _head(features: str, name: str, pads: list[int], perm: Sequence[int]) -> list[onnx.NodeProto]:
    scores = name.startswith("score")
    nodes = [
        helper.make_node("Conv", [features, f"w{name}", f"b{name}"], [f"c{name}"], pads=pads),
        helper.make_node("Transpose", [f"c{name}"], [f"t{name}"], perm=perm),
        helper.make_node("Reshape", [f"t{name}", f"r{name}"], [f"logit{name}" if scores else name]),
    ]
    return [*nodes, helper.make_node("Sigmoid", [f"logit{name}"], [name])] if scores else nodes


@pytest.mark.parametrize(
    ("batched", "chunk", "perm"),
    [
        (True, 1024, (0, 2, 3, 1)),
        (False, 1024, (0, 2, 3, 1)),
        (False, 1024, (2, 3, 0, 1)),  # as in det_10g.onnx
        (True, 7, (0, 2, 3, 1)),
    ],
)
def test_a_detector_finds_the_same_faces_with_extracted_heads(
    batched: bool, chunk: int, perm: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "CELLS_PER_CHUNK", chunk)
    whole = heads(batched=batched, perm=perm)
    bare = onnx.ModelProto()
    bare.CopyFrom(whole)
    matrices = extract_regression_heads(bare)
    assert matrices is not None
    apply_passes(bare)
    detectors = Detector(session(whole), 64), Detector(session(bare), 64, matrices)
    most = 0
    for _ in range(20):
        image = RNG.integers(0, 256, (50, 64, 3), dtype=np.uint8)
        expected, found = (one.detect(image) for one in detectors)
        assert len(found) == len(expected)
        most = max(most, len(found))
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=1e-3)
    assert most > 5


@pytest.mark.parametrize("opset", [11, 17])
def test_boxes_and_landmarks_follow_from_the_features_of_any_cell(opset: int) -> None:
    """Also at the edges, where the patch is padded with zeros."""
    before = heads(opset=opset)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    matrices = extract_regression_heads(after)
    assert matrices is not None
    assert matrices.shape == (3, 9 * FEATURES + 1, 28)
    apply_passes(after)
    onnx.checker.check_model(after)
    assert [output.name for output in after.graph.output] == [
        "score0",
        "score1",
        "score2",
        "features_0",
        "features_1",
        "features_2",
    ]
    image = RNG.normal(size=(1, 3, 64, 64)).astype(np.float32)
    expected, found = run(before, image), run(after, image)
    for level in range(3):
        np.testing.assert_allclose(found[level], expected[level], rtol=1e-5, atol=1e-6)
        features = found[3 + level][0]
        cells = np.arange(features[0].size)
        both = patches(features, cells) @ matrices[level, :-1] + matrices[level, -1]
        values = both.reshape(-1, 14)
        np.testing.assert_allclose(values[:, :4], expected[3 + level], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values[:, 4:], expected[6 + level], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [{"kernel": 1}, {"shared": False}, {"perm": (0, 3, 2, 1)}])
def test_heads_of_another_shape_are_kept(other: dict[str, Any]) -> None:
    before = heads(**other)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert extract_regression_heads(after) is None
    assert after == before


def test_scores_are_computed_by_taps_in_two_blocks() -> None:
    after = heads()
    extract_regression_heads(after)
    apply_passes(after)
    largest_kernel = [item for item in after.graph.initializer if len(item.dims) == 4 and item.dims[2] == 3]
    assert {tuple(item.dims) for item in largest_kernel} == {(32, 1, 3, 3)}
    assert operators(after)["Conv"] == 3 + 9
