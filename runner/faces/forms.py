"""The forms of a graph that a pack holds, made from the original: portable, and tuned for this kind of processor.

ONNX and onnxruntime are imported where they are used: `models list` needs neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.errors import ModelError
from runner.faces import pack, weights
from runner.faces.hardware import CPU

if TYPE_CHECKING:
    from onnx import ModelProto

Shape = tuple[int | str, ...]


def tuned(graph: Path) -> Path:
    """Return where the tuned form of a portable graph is."""
    return graph.with_suffix(".tuned.onnx")


def write_portable(
    model: ModelProto, target: Path, shape: Shape, stored: dict[bytes, tuple[str, int]], *, plain: bool
) -> Path | None:
    """Write the model to `target` as every processor can run it, with everything computed that can be beforehand.

    Returns the file of the heads that were taken out of it, if any were. `stored` is that of `weights.save`. Raises
    `ModelError` for a model that ONNX or onnxruntime refuse.
    """
    import onnx

    from runner.faces import graphs
    from runner.faces.rewriting.heads import take_out_heads

    heads = None
    try:
        folded = fold(model, target, shape)
        if not plain:
            heads = take_out_heads(folded) if len(folded.graph.output) == pack.DETECTOR_OUTPUTS else None
            graphs.quicken(folded)
        onnx.checker.check_model(folded)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own for every fault
        raise ModelError(
            f"the {target.stem}'s file cannot be baked ({type(error).__name__}): is it the right one?"
        ) from None
    weights.save(folded, target, stored)
    if heads is None:
        return None
    path = target.with_suffix(".heads.npy")
    np.save(path, heads)
    return path


def fold(model: ModelProto, scratch: Path, shape: Shape) -> ModelProto:
    """Return the model with its input's shape fixed, and all computed that follows from that; writes to `scratch`."""
    import onnx
    import onnxruntime

    from runner.faces import graphs

    options = onnxruntime.SessionOptions()
    # The next level would write onnxruntime's own operators, the one after it layouts of this very processor.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(scratch)
    options.log_severity_level = 4
    graphs.fix_input(model, shape)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    folded = onnx.load(scratch)
    graphs.keep_standard_domain(folded)
    return folded


def write_tuned(portable: Path, target: Path, stored: dict[bytes, tuple[str, int]]) -> None:
    """Write the graph as onnxruntime runs it on processors like this one: a part of what it does when it opens one."""
    import onnx
    import onnxruntime

    from runner.faces import graphs

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(portable), options, providers=[CPU])
    model = onnx.load(target)
    graphs.number_names(model)
    weights.save(model, target, stored)
