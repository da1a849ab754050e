"""Rewriting of ONNX graphs when baking: the same sums in fewer and quicker steps.

Every function takes a loaded model and changes it in place; what comes out holds operators of the ONNX standard
alone, so that it runs on any processor and under any execution provider. docs/explanation/engine.md has the
measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import NodeProto, TensorProto

from runner.faces.rewriting.channels import drop_channels
from runner.faces.rewriting.convolutions import merge_convolutions, split_pairs
from runner.faces.rewriting.graph import Graph
from runner.faces.rewriting.prelu import replace_prelu
from runner.faces.rewriting.streams import turn_streams

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


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
    """Order nodes by what needs them, and name nodes, constants and what nodes make by their place.

    onnxruntime's order and names are others every time, and the same files shall be baked to the same bytes.
    """
    graph = model.graph
    nodes = _as_needed(graph)
    del graph.node[:]
    graph.node.extend(nodes)
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


def _as_needed(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes so that what each reads is made right before it, where nothing else has needed it before."""
    makers = {tensor: place for place, node in enumerate(graph.node) for tensor in node.output if tensor}
    ordered: dict[int, None] = {}
    waiting = [makers[output.name] for output in reversed(graph.output) if output.name in makers]
    while waiting:
        place = waiting[-1]
        missing = [makers[name] for name in graph.node[place].input if name in makers and makers[name] not in ordered]
        if missing:
            waiting.extend(reversed(missing))
        else:
            waiting.pop()
            ordered.setdefault(place)
    return [NodeProto.FromString(graph.node[place].SerializeToString()) for place in ordered]


def quicken(model: ModelProto) -> None:
    """Replace what onnxruntime's blocked layout has no operator for, and leave out what changes no answer."""
    graph = Graph(model)
    for step in (merge_convolutions, drop_channels, turn_streams, replace_prelu, split_pairs):
        step(graph)
    graph.write()
