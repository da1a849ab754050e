"""InsightFace's original ONNX files: which network each contains, and its input normalisation."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from runner.bake.catalogue import KNOWN, KnownPack
from runner.errors import ModelError
from runner.faces.alignment import CROP_SIZE
from runner.faces.pack import DETECTOR_OUTPUTS

DETECTION_SIZE = 640
# InsightFace recognises networks that normalise their input by the names of their first nodes
# (insightface/model_zoo/arcface_onnx.py).
_FIRST_NODES = 8
_SUBTRACTION, _MULTIPLICATION = ("Sub", "_minus"), ("Mul", "_mul")


def load(path: Path) -> onnx.ModelProto:
    """Return the model in an ONNX file. Raises `ModelError`."""
    try:
        model = onnx.load(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except DecodeError:
        raise ModelError(f"{path.name} is not an ONNX file") from None
    if not model.graph.input or not model.graph.output:
        raise ModelError(f"{path.name} is not an ONNX file")
    return model


def describe_folder(folder: Path) -> KnownPack:
    """Describe a folder with one detector and one recogniser, distinguished by their shapes. Raises `ModelError`."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is neither a known pack ({', '.join(KNOWN)}) nor a folder")
    roles: dict[str, list[str]] = {"detector": [], "recogniser": []}
    for path in sorted(folder.glob("*.onnx")):
        if role := _role(load(path)):
            roles[role].append(path.name)
    if any(len(names) != 1 for names in roles.values()):
        found = "; ".join(f"{role}: {', '.join(names) or 'none'}" for role, names in roles.items())
        raise ModelError(f"{folder} must contain exactly one SCRFD detector and one ArcFace recogniser; found {found}")
    detector, recogniser = roles["detector"][0], roles["recogniser"][0]
    megabytes = sum((folder / name).stat().st_size for name in (detector, recogniser)) // 1_000_000
    return KnownPack(folder.resolve().name, (detector,), recogniser, megabytes, licence="as its owner says")


def _role(model: onnx.ModelProto) -> str | None:
    constants = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    shape = _dimensions(inputs[0])
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:  # noqa: PLR2004 - batch, channels, height, width
        return None
    if len(model.graph.output) == DETECTOR_OUTPUTS:
        return "detector"
    return "recogniser" if len(model.graph.output) == 1 and shape[2:] == [CROP_SIZE, CROP_SIZE] else None


def _dimensions(tensor: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in tensor.type.tensor_type.shape.dim]


def detection_size(model: onnx.ModelProto, name: str) -> int:
    """Return the height and width in pixels at which InsightFace runs the detector in the file `name`.

    Raises `ModelError` for a model that is not a detector.
    """
    shape = _dimensions(model.graph.input[0])
    if len(shape) != 4 or len(model.graph.output) != DETECTOR_OUTPUTS or shape[2] != shape[3]:  # noqa: PLR2004 - batch, channels, height, width
        raise ModelError(f"{name} is not an SCRFD detector of square images with landmarks: is it the right pack?")
    return shape[2] or DETECTION_SIZE


def normalisation(model: onnx.ModelProto) -> tuple[float, float]:
    """Return mean and deviation of the recogniser's input, as InsightFace decides on them."""
    names = [node.name for node in model.graph.node[:_FIRST_NODES]]
    normalises = all(any(name.startswith(start) for name in names) for start in (_SUBTRACTION, _MULTIPLICATION))
    return (0.0, 1.0) if normalises else (127.5, 127.5)
