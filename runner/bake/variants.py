"""The forms of a graph that a pack holds, made from the original: portable, and tuned for this kind of processor.

ONNX and onnxruntime are imported where they are used: `models list` needs neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.bake import external_data
from runner.errors import ModelError
from runner.faces import pack
from runner.faces.providers import CPU

if TYPE_CHECKING:
    from onnx import ModelProto

Shape = tuple[int | str, ...]


def write_portable(
    model: ModelProto, target: Path, shape: Shape, stored: dict[bytes, tuple[str, int]], *, plain: bool
) -> Path | None:
    """Write the model to `target` as every processor can run it, with everything computed that can be beforehand.

    Returns the file of the heads that were taken out of it, if any were. `stored` is that of `external_data.save`.
    Raises `ModelError` for a model that ONNX or onnxruntime refuse.
    """
    import onnx

    from runner.bake.passes import canonical
    from runner.bake.passes.detector_heads import take_out_heads

    heads = None
    try:
        folded = fold(model, target, shape)
        if not plain:
            heads = take_out_heads(folded) if len(folded.graph.output) == pack.DETECTOR_OUTPUTS else None
            canonical.quicken(folded)
        onnx.checker.check_model(folded)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own for every fault
        raise ModelError(
            f"the {target.stem}'s file cannot be baked ({type(error).__name__}): is it the right one?"
        ) from None
    external_data.save(folded, target, stored)
    if heads is None:
        return None
    path = target.with_suffix(".heads.npy")
    np.save(path, heads)
    return path


def fold(model: ModelProto, scratch: Path, shape: Shape) -> ModelProto:
    """Return the model with its input's shape fixed, and all computed that follows from that; writes to `scratch`."""
    from runner.bake.passes import canonical

    canonical.fix_input(model, shape)
    # The next level would write onnxruntime's own operators, the one after it layouts of this very processor.
    folded = _optimised(model.SerializeToString(), scratch, "ORT_ENABLE_BASIC")
    canonical.keep_standard_domain(folded)
    return folded


def write_tuned(portable: Path, stored: dict[bytes, tuple[str, int]]) -> Path:
    """Write the graph as onnxruntime runs it on processors like this one: a part of what it does when it opens one.

    Returns where it is, beside the portable form.
    """
    from runner.bake.passes import canonical

    target = portable.with_suffix(".tuned.onnx")
    model = _optimised(str(portable), target, "ORT_ENABLE_ALL")
    canonical.number_names(model)
    return external_data.save(model, target, stored)


def _optimised(model: bytes | str, target: Path, level: str) -> ModelProto:
    """Return the model, given by its bytes or its path, as onnxruntime writes it to `target` at one of its levels."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=[CPU])
    return onnx.load(target)
