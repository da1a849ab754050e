"""Builds ONNX graphs as PyTorch 1.8 exports them, with random weights that keep activations at a known size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 11, 6
EPSILON = 1e-5
BIAS = 0.1  # standard deviation of random biases


class Network:
    """A graph that grows node by node. Each method adds a layer to a tensor, and returns the name of its output.

    Weights are drawn so that a layer's outputs have a mean square of about 1 whatever its inputs are: `power` has the
    mean square of each tensor, as it follows from those before it.
    """

    def __init__(self, seed: int, image: str = "input.1") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.power = {image: 0.3}  # of photos after normalisation
        self.channels = {image: 3}
        self.random = np.random.default_rng(seed)

    def convolution(
        self, tensor: str, outputs: int, kernel: int = 3, stride: int = 1, *, power: float = 1.0, name: str = ""
    ) -> str:
        """Add a convolution with a bias, padded to keep the size; `name` is its weights', for those that are tuned."""
        name = name or f"conv{len(self.nodes)}"
        inputs = self.channels[tensor]
        weights = self._normal((outputs, inputs, kernel, kernel), power / (inputs * kernel**2 * self.power[tensor]))
        self.constants[f"{name}.weight"] = weights
        self.constants[f"{name}.bias"] = self._normal((outputs,), BIAS**2)
        about: dict[str, Any] = {"dilations": [1, 1], "group": 1, "kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        inputs_of = [tensor, f"{name}.weight", f"{name}.bias"]
        return self.node("Conv", inputs_of, outputs, power, **about, pads=[kernel // 2] * 4)

    def relu(self, tensor: str) -> str:
        """Add a Relu."""
        return self.node("Relu", [tensor], power=self.power[tensor] / 2)

    def prelu(self, tensor: str) -> str:
        """Add a PRelu with a slope per channel, some of them negative."""
        channels = self.channels[tensor]
        slope = self.constant("slope", self.random.uniform(-0.1, 0.5, (channels, 1, 1)))
        return self.node("PRelu", [tensor, slope], power=self.power[tensor] * 0.55)

    def batch_norm(self, tensor: str, *, name: str = "") -> str:
        """Add a batch normalisation, of which `name` is the weights' name."""
        name = name or f"norm{len(self.nodes)}"
        channels, power = self.channels[tensor], self.power[tensor]
        self.constants[f"{name}.weight"] = self.random.uniform(0.8, 1.2, channels).astype(np.float32)
        self.constants[f"{name}.bias"] = self._normal((channels,), BIAS**2)
        self.constants[f"{name}.running_mean"] = self._normal((channels,), BIAS**2 * power)
        self.constants[f"{name}.running_var"] = np.full(channels, power, np.float32)
        parts = [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", [tensor, *parts], power=1.0, epsilon=EPSILON, momentum=0.9)

    def add(self, tensor: str, other: str) -> str:
        """Add the sum of two tensors."""
        return self.node("Add", [tensor, other], power=self.power[tensor] + self.power[other])

    def pool(self, tensor: str, kind: str, **about: Any) -> str:
        """Add a MaxPool or an AveragePool of two by two pixels."""
        return self.node(kind, [tensor], kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4, **about)

    def node(
        self, operator: str, inputs: Sequence[str], channels: int = 0, power: float = 0.0, name: str = "", **about: Any
    ) -> str:
        """Add any operator; channels and power are those of its first input where they are not given."""
        output = name or str(len(self.nodes) + 300)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], f"{operator}_{len(self.nodes)}", **about))
        first = inputs[0] if inputs else ""
        self.channels[output] = channels or self.channels.get(first, 0)
        self.power[output] = power or self.power.get(first, 0.0)
        return output

    def constant(self, name: str, values: Any) -> str:
        """Add a constant: integers as int64, all others as float32."""
        values = np.asarray(values)
        unique = f"{name}{len(self.constants)}"
        self.constants[unique] = values if values.dtype == np.int64 else values.astype(np.float32)
        return unique

    def model(self, shape: Sequence[int | str], outputs: Mapping[str, Sequence[int | str]]) -> onnx.ModelProto:
        """Return the graph as a model whose input has this shape, and whose outputs have those."""
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "torch-jit-export",
            [helper.make_tensor_value_info("input.1", floats, list(shape))],
            [helper.make_tensor_value_info(name, floats, list(dimensions)) for name, dimensions in outputs.items()],
            [numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model

    def _normal(self, shape: tuple[int, ...], variance: float) -> NDArray[np.float32]:
        values = self.random.standard_normal(shape, np.float32)
        return np.asarray(values * np.float32(np.sqrt(variance)), np.float32)
