"""The two variants of a graph in a pack, made from the original: portable, and tuned for this kind of CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from runner.bake import external_data
from runner.bake.external_data import StoredTensors
from runner.bake.passes import canonical
from runner.bake.passes.canonical import Shape
from runner.bake.passes.channel_pruning import prune_channels
from runner.bake.passes.convolutions import merge_convolutions, split_two_channel_groups
from runner.bake.passes.detector_heads import extract_regression_heads
from runner.bake.passes.graph import Graph
from runner.bake.passes.prelu import replace_prelu
from runner.bake.passes.residual_basis import change_residual_basis
from runner.errors import ModelError
from runner.faces import pack
from runner.faces.providers import CPU


def write_portable(
    model: onnx.ModelProto, target: Path, shape: Shape, stored: StoredTensors, *, plain: bool
) -> Path | None:
    """Write the model to `target` with constants folded and, unless `plain`, with the graph passes applied.

    The result runs on any CPU and under any provider. Returns the file of the regression heads that were extracted
    from a detector, if any were. Raises `ModelError` for a model that ONNX or onnxruntime rejects.
    """
    heads = None
    try:
        folded = fold(model, target, shape)
        if not plain:
            heads = extract_regression_heads(folded) if len(folded.graph.output) == pack.DETECTOR_OUTPUTS else None
            apply_passes(folded)
        onnx.checker.check_model(folded)
    except Exception as error:  # noqa: BLE001 - onnxruntime has an exception type of its own for every status
        raise ModelError(
            f"the {target.stem}'s file cannot be baked ({type(error).__name__}): is it the right one?"
        ) from None
    external_data.save(folded, target, stored)
    if heads is None:
        return None
    path = target.with_suffix(".heads.npy")
    np.save(path, heads)
    return path


def fold(model: onnx.ModelProto, scratch: Path, shape: Shape) -> onnx.ModelProto:
    """Return the model for inputs of this shape, with constants folded; `scratch` is overwritten. Changes `model`."""
    canonical.fix_input(model, shape)
    # The next level would add onnxruntime's own operators, and the last one layouts for this very CPU.
    folded = _optimised(model.SerializeToString(), scratch, "ORT_ENABLE_BASIC")
    canonical.keep_standard_domain(folded)
    return folded


def apply_passes(model: onnx.ModelProto) -> None:
    """Apply all graph passes: the same results in less time, in operators that NCHWc convolutions support."""
    graph = Graph(model)
    for apply in (merge_convolutions, prune_channels, change_residual_basis, replace_prelu, split_two_channel_groups):
        apply(graph)
    graph.write_back()


def write_tuned(portable: Path, stored: StoredTensors) -> Path:
    """Write the graph as onnxruntime optimises it for this kind of CPU, beside the portable variant; return its path.

    A run then opens it without optimising it again.
    """
    target = portable.with_suffix(".tuned.onnx")
    model = _optimised(str(portable), target, "ORT_ENABLE_ALL")
    canonical.number_names(model)
    return external_data.save(model, target, stored)


def _optimised(model: bytes | str, target: Path, level: str) -> onnx.ModelProto:
    """Return the model, given as bytes or a path, as onnxruntime writes it to `target` at this optimisation level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=[CPU])
    return onnx.load(target)
