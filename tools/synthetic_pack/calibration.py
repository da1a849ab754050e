"""Gives random networks what training gives: detectors that find a few faces, and embeddings that differ.

Both are calibrated on the sample photos that installed packages contain. Without it, a random detector finds a face in
every cell or in none, and a random recogniser gives nearly the same embedding for everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from runner.bake import originals
from runner.bake.samples import sample_images
from runner.faces import detector
from runner.faces.alignment import CROP_SIZE
from runner.faces.arrays import Float32Array, Image
from runner.faces.detector import ANCHORS, STRIDES, patches
from runner.faces.preprocessing import LetterboxBuffer, letterbox_size, normalisation_table, write_planes
from runner.faces.providers import CPU
from tools.synthetic_pack.architectures import FINAL

# Minimum and maximum number of scores above the threshold, per level and photo; suppression leaves about as many faces.
FIRED = (3, 9)
DIGITS = 3  # of calibrated numbers: enough, and few enough to be identical on every kind of processor
CROPS, CROPS_A_CALL = 64, 16
# Landmarks of a face whose box is from -1 to 1: eyes, nose, corners of the mouth.
LANDMARKS = ((-0.4, -0.35), (0.4, -0.35), (0.0, 0.05), (-0.35, 0.45), (0.35, 0.45))
HALVES = (1.0, 2.0)  # half the side of the box of each anchor, in strides
VARIATION = 0.5  # maximum variation of boxes and landmarks, as a share of that half
LARGEST_LOGIT = 4.0
WANTED = 3  # cells of each photo, stride and anchor
RIDGE = 1e-3


def calibrate_detector(model: onnx.ModelProto) -> None:
    """Set the heads' last weights, so that a few cells of each sample photo hold a box with landmarks in it."""
    images = list(sample_images().values())
    sizes = [_size(image) for image in images]
    runs = [_head_inputs(model, _letterboxed(image)) for image in images]
    for stride, maps in zip(STRIDES, zip(*runs, strict=True), strict=True):
        inside = [_random_cells(size, stride) for size in sizes]
        cells = np.stack([patches(features, np.arange(features[0].size)) for features in maps]).astype(np.float64)
        _set_scores(model, f"cls_{stride}", cells, inside)
        _set_shape(model, f"reg_{stride}", cells, np.ones(4))
        _set_shape(model, f"kps_{stride}", cells, np.ravel(LANDMARKS))


def calibrate_recogniser(model: onnx.ModelProto) -> None:
    """Set the statistics of the last normalisation to those of crops of the sample photos."""
    for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        _set_constant(model, f"{FINAL}.{part}", np.full_like(_constant(model, f"{FINAL}.{part}"), value))
    session = _session(model)
    name, blob = session.get_inputs()[0].name, _crops(list(sample_images().values()))
    calls = [blob[start : start + CROPS_A_CALL] for start in range(0, CROPS, CROPS_A_CALL)]
    raw = np.concatenate([session.run(None, {name: call})[0] for call in calls]).astype(np.float64)
    _set_constant(model, f"{FINAL}.running_mean", _rounded(raw.mean(axis=0)))
    _set_constant(model, f"{FINAL}.running_var", _rounded(raw.var(axis=0)))


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # ArcFace's files declare one row, whatever the batch
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])


def _head_inputs(model: onnx.ModelProto, photo: Float32Array) -> list[Float32Array]:
    """Return the feature maps (channels, height, width) that the heads of each stride read."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [
        next(node.input[0] for node in model.graph.node if f"cls_{stride}.weight" in node.input) for stride in STRIDES
    ]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return [found[0] for found in _session(watched).run(names, {model.graph.input[0].name: photo})]


def _random_cells(size: tuple[int, int], stride: int) -> NDArray[np.intp]:
    """Return cells (anchors, n) within a photo that is letterboxed to this width and height."""
    random = np.random.default_rng(stride)
    columns, rows = (random.integers(1, max(2, extent // stride - 1), (ANCHORS, WANTED)) for extent in size)
    return np.asarray(rows * (originals.DETECTION_SIZE // stride) + columns, np.intp)


def _set_scores(
    model: onnx.ModelProto, name: str, cells: NDArray[np.float64], wanted: Sequence[NDArray[np.intp]]
) -> None:
    """Set the convolution `name` so that the `wanted` of the `cells` (photos, cells, inputs) have the highest scores.

    For each anchor, Fisher's linear discriminant of the wanted cells: random weights would respond to little but
    the edges of a photo.
    """
    flat = cells.reshape(-1, cells.shape[-1])
    middle, spread = flat.mean(axis=0), np.cov(flat.T)
    spread += RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    weights, bias = np.empty((ANCHORS, len(spread))), np.empty(ANCHORS)
    for anchor in range(ANCHORS):
        chosen = np.concatenate([photo[places[anchor]] for photo, places in zip(cells, wanted, strict=True)])
        weights[anchor] = np.linalg.solve(spread, chosen.mean(axis=0) - middle)
        logits = flat @ weights[anchor]
        weights[anchor] = _rounded(weights[anchor] * LARGEST_LOGIT / np.abs(logits - logits.mean()).max())
        bias[anchor] = -_threshold(flat @ weights[anchor], len(cells))
    _set_constant(model, f"{name}.weight", weights.reshape(_constant(model, f"{name}.weight").shape))
    _set_constant(model, f"{name}.bias", bias)


def _set_shape(model: onnx.ModelProto, name: str, cells: NDArray[np.float64], middle: NDArray[np.float64]) -> None:
    """Set the convolution `name` so that its values are around `middle`, in halves of each anchor's box."""
    weights = _constant(model, f"{name}.weight")
    largest = np.abs(cells.reshape(-1, cells.shape[-1]) @ weights.reshape(len(weights), -1).T).max()
    halves = np.repeat(HALVES, len(middle))
    factors = halves * _rounded(np.array(VARIATION / largest))
    _set_constant(model, f"{name}.weight", weights * factors[:, None, None, None])
    _set_constant(model, f"{name}.bias", np.tile(middle, ANCHORS) * halves)


def _threshold(logits: NDArray[np.float64], photos: int) -> float:
    """Return the middle of the widest gap between neighbouring logits that lets the wanted number through."""
    least, most = (count * photos // ANCHORS for count in FIRED)
    highest = np.sort(logits, axis=None)[::-1][least : most + 1]
    widest = int(np.argmax(highest[:-1] - highest[1:]))
    return float(highest[widest : widest + 2].mean())


def _size(image: Image) -> tuple[int, int]:
    height, width = image.shape[:2]
    size = letterbox_size(height, width, originals.DETECTION_SIZE)
    assert size is not None
    return size


def _letterboxed(image: Image) -> Float32Array:
    size = _size(image)
    buffer = LetterboxBuffer(originals.DETECTION_SIZE, normalisation_table(detector.MEAN, detector.DEVIATION))
    return np.array(buffer.fill(np.asarray(cv2.resize(image, size), np.uint8)))


def _crops(images: Sequence[Image]) -> Float32Array:
    """Return random squares of the photos, as the recogniser reads them."""
    random, table = np.random.default_rng(0), normalisation_table(127.5, 127.5)
    blob = np.empty((CROPS, 3, CROP_SIZE, CROP_SIZE), np.float32)
    for place, planes in enumerate(blob):
        image = images[place % len(images)]
        side = int(random.integers(40, min(image.shape[:2]) // 2))
        top, left = (int(random.integers(0, extent - side)) for extent in image.shape[:2])
        square = image[top : top + side, left : left + side]
        write_planes(planes, np.asarray(cv2.resize(square, (CROP_SIZE, CROP_SIZE)), np.uint8), table)
    return blob


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    digits = DIGITS - 1 - np.floor(np.log10(np.maximum(np.abs(values), 1e-12)))
    return np.asarray(np.round(values * 10**digits) / 10**digits)


def _constant(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    return np.asarray(numpy_helper.to_array(_tensor(model, name)), np.float32)


def _set_constant(model: onnx.ModelProto, name: str, values: NDArray[np.floating]) -> None:
    _tensor(model, name).CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), name))


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
    return tensors[name]
