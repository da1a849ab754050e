"""Canonical models: fixed inputs, only standard operators, and names that are the same in every bake."""

from __future__ import annotations

from typing import TypeAlias

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# Batch, channels, height, width; the batch may be the name of a free dimension.
Shape: TypeAlias = tuple[int | str, int, int, int]


def fix_input(model: ModelProto, shape: Shape) -> None:
    """Give the only input this shape, and remove the shapes that the model declares for what follows from it.

    Old files list their constants among the inputs too; those entries are removed, as constants that can be
    overridden are never folded.
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
    """Remove the imports of onnxruntime's own operator sets, which it declares in every file it writes."""
    standard = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)


def number_names(model: ModelProto) -> None:
    """Sort the nodes topologically, and name nodes, constants and intermediate tensors by their position.

    onnxruntime's order and names differ from one run to the next; the same files must bake to the same bytes.
    """
    graph = model.graph
    nodes = _topologically_sorted(graph)
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


def _topologically_sorted(graph: GraphProto) -> list[NodeProto]:
    """Return copies of the nodes that the outputs need, depth first: each input is produced right before its use."""
    producers = {tensor: place for place, node in enumerate(graph.node) for tensor in node.output if tensor}
    ordered: dict[int, None] = {}
    waiting = [producers[output.name] for output in reversed(graph.output) if output.name in producers]
    while waiting:
        place = waiting[-1]
        inputs = [producers[name] for name in graph.node[place].input if name in producers]
        missing = [producer for producer in inputs if producer not in ordered]
        if missing:
            waiting.extend(reversed(missing))
        else:
            waiting.pop()
            ordered.setdefault(place)
    return [NodeProto.FromString(graph.node[place].SerializeToString()) for place in ordered]
