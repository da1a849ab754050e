"""The two networks of InsightFace's larger packs: SCRFD-10G with landmarks, and IResNet-50 and -100.

Layers, their order and their shapes are those of insightface's detection/scrfd (configs/scrfd/scrfd_10g_bnkps.py,
mmdet's ResNetV1e and PAFPN) and recognition/arcface_torch (backbones/iresnet.py), as PyTorch exports them: it folds a
normalisation into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from runner.faces.alignment import CROP_SIZE
from runner.faces.detector import ANCHORS, STRIDES
from tools.synthetic_pack.network import Network

EMBEDDING = 512
IRESNET_WIDTHS = (64, 128, 256, 512)
SCRFD_BLOCKS, SCRFD_WIDTHS = (3, 4, 2, 3), (56, 88, 88, 224)
NECK, HEAD, STACKED = 56, 80, 3
# The mean square that a block adds to its residual path: after 24 blocks, the first one still counts.
GAIN = 0.2
VALUES = {"cls": 1, "reg": 4, "kps": 10}  # numbers per anchor
FINAL, LAST = "features", "fc"


def iresnet(blocks: Sequence[int], seed: int, *, divide: int = 1) -> onnx.ModelProto:
    """Return ArcFace's IResNet with this number of blocks per stage, its widths divided by `divide`."""
    network = Network(seed)
    tensor = network.prelu(network.convolution("input.1", IRESNET_WIDTHS[0] // divide))
    for count, width in zip(blocks, IRESNET_WIDTHS, strict=True):
        for place in range(count):
            tensor = _iresnet_block(network, tensor, width // divide, stride=1 if place else 2)
    tensor = network.node("Flatten", [network.batch_norm(tensor)], axis=1)
    cells = (CROP_SIZE // 2 ** len(IRESNET_WIDTHS)) ** 2
    inputs = IRESNET_WIDTHS[-1] // divide * cells
    network.constants[f"{LAST}.weight"] = network.random.standard_normal((EMBEDDING, inputs), np.float32)
    network.constants[f"{LAST}.weight"] /= np.float32(np.sqrt(inputs))
    network.constants[f"{LAST}.bias"] = np.zeros(EMBEDDING, np.float32)
    tensor = network.node("Gemm", [tensor, f"{LAST}.weight", f"{LAST}.bias"], EMBEDDING, 1.0, transB=1)
    output = network.batch_norm(tensor, name=FINAL)
    return network.model(["None", 3, CROP_SIZE, CROP_SIZE], {output: [1, EMBEDDING]})


def _iresnet_block(network: Network, tensor: str, width: int, stride: int) -> str:
    inner = network.prelu(network.convolution(network.batch_norm(tensor), width))
    inner = network.convolution(inner, width, stride=stride, power=GAIN)
    shortcut = tensor if stride == 1 else network.convolution(tensor, width, kernel=1, stride=stride)
    return network.add(inner, shortcut)


def scrfd(seed: int, *, divide: int = 1) -> onnx.ModelProto:
    """Return SCRFD-10G with landmarks for images of any size, its widths divided by `divide`."""
    network = Network(seed)
    levels = _pafpn(network, _resnet(network, divide), NECK // divide)
    shapes: dict[str, list[list[int | str]]] = {kind: [] for kind in VALUES}
    names: dict[str, list[str]] = {kind: [] for kind in VALUES}
    for tensor, stride in zip(levels, STRIDES, strict=True):
        for _ in range(STACKED):
            tensor = network.relu(network.convolution(tensor, HEAD // divide))  # noqa: PLW2901 - layer upon layer
        for kind, values in VALUES.items():
            names[kind].append(_output(network, tensor, kind, stride))
            shapes[kind].append([(640 // stride) ** 2 * ANCHORS, values])
    found = {name: shape for kind in VALUES for name, shape in zip(names[kind], shapes[kind], strict=True)}
    return network.model([1, 3, "?", "?"], found)


def _resnet(network: Network, divide: int) -> list[str]:
    stem = SCRFD_WIDTHS[0] // divide
    tensor = network.relu(network.convolution("input.1", stem // 2, stride=2))
    tensor = network.relu(network.convolution(tensor, stem // 2))
    tensor = network.pool(network.relu(network.convolution(tensor, stem)), "MaxPool")
    stages = []
    for stage, (count, width) in enumerate(zip(SCRFD_BLOCKS, SCRFD_WIDTHS, strict=True)):
        for place in range(count):
            smaller = stage > 0 and place == 0
            inner = network.relu(network.convolution(tensor, width // divide, stride=2 if smaller else 1))
            inner = network.convolution(inner, width // divide, power=GAIN)
            if smaller:
                pooled = network.pool(tensor, "AveragePool", ceil_mode=1)
                tensor = network.convolution(pooled, width // divide, kernel=1)
            tensor = network.relu(network.add(inner, tensor))
        stages.append(tensor)
    return stages[1:]


def _pafpn(network: Network, stages: Sequence[str], width: int) -> list[str]:
    lateral = [network.convolution(tensor, width, kernel=1) for tensor in stages]
    for level in (2, 1):
        lateral[level - 1] = network.add(lateral[level - 1], _enlarged(network, lateral[level], lateral[level - 1]))
    between = [network.convolution(tensor, width) for tensor in lateral]
    for level in (0, 1):
        between[level + 1] = network.add(between[level + 1], network.convolution(between[level], width, stride=2))
    return [between[0], *(network.convolution(tensor, width) for tensor in between[1:])]


def _enlarged(network: Network, tensor: str, like: str) -> str:
    """Add a resize to the height and width of another tensor, found when the graph runs."""
    ends = [network.constant("place", np.array([end], np.int64)) for end in (0, 2, 4)]
    own = network.node("Slice", [network.node("Shape", [tensor]), ends[0], ends[1], ends[0]])
    wanted = network.node("Slice", [network.node("Shape", [like]), ends[1], ends[2], ends[0]])
    sizes = network.node("Concat", [own, wanted], axis=0)
    nothing = network.constant("nothing", np.zeros(0))
    about: dict[str, Any] = {
        "coordinate_transformation_mode": "asymmetric",
        "cubic_coeff_a": -0.75,
        "nearest_mode": "floor",
    }
    return network.node(
        "Resize", [tensor, nothing, nothing, sizes], network.channels[tensor], network.power[tensor], mode="nearest",
        **about,
    )  # fmt: skip


def _output(network: Network, tensor: str, kind: str, stride: int) -> str:
    """Add a head, and what brings its numbers into rows; boxes have a learned scale per stride."""
    values = VALUES[kind]
    head = network.convolution(tensor, values * ANCHORS, name=f"{kind}_{stride}")
    if kind == "reg":
        head = network.node("Mul", [head, network.constant("scale", np.array(1.25))])
    rows = network.node("Transpose", [head], perm=[2, 3, 0, 1])
    rows = network.node("Reshape", [rows, network.constant("shape", np.array([-1, values], np.int64))])
    return network.node("Sigmoid", [rows]) if kind == "cls" else rows
