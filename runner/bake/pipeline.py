"""Baking: from InsightFace's own files to a pack that is optimised, described, and proven against InsightFace.

InsightFace is needed here and in the tests, never by a run.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runner.bake import external_data, sources, variants
from runner.bake.catalogue import KNOWN, KnownPack
from runner.errors import CheckFailedError, ModelError
from runner.faces import detector, pack
from runner.faces.alignment import CROP_SIZE
from runner.faces.cpu import blocked_layout
from runner.faces.engine import Engine, Face
from runner.faces.pack import GraphFiles, Manifest, PackedGraph
from runner.faces.providers import CPU

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

DETECTION_SIZE = 640
# How far from InsightFace's own answers a pack may be.
MOST_PIXELS = 0.01
LEAST_COSINE = 0.9999
# InsightFace tells recognisers that normalise by themselves from others by the names of their first nodes
# (insightface/model_zoo/arcface_onnx.py).
_FIRST_NODES = 8
_SUBTRACTING, _MULTIPLYING = ("Sub", "_minus"), ("Mul", "_mul")


def bake(pack_name: str, out: Path, *, source: str = "", sha256: str = "", plain: bool = False) -> Manifest:
    """Write the pack to `out` and return its manifest; nothing is left there unless the proof holds.

    `pack_name` is a known pack or a folder with its two files. `source` is a folder, an archive (zip, wheel) or the
    URL of one; an archive's bytes must have the checksum `sha256`, where it is given, and a URL needs one. `plain`
    leaves the graphs as they are, but for what onnxruntime folds. Raises `ModelError`, `SettingsError`, and
    `CheckFailedError` when the baked pack does not give InsightFace's answers.
    """
    known = KNOWN.get(pack_name) or sources.folder_pack(Path(pack_name))
    if pack_name not in KNOWN:
        source = source or pack_name
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(prefix=".bake-", dir=out.parent)
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror}): give another --out") from None
    with scratch_folder as scratch:
        originals, baked = Path(scratch) / "originals", Path(scratch) / "baked"
        originals.mkdir()
        baked.mkdir()
        with sources.opened(known, source, sha256) as folder:
            detector_name = sources.take(folder, known.detectors, originals, known.sha256)
            sources.take(folder, (known.recogniser,), originals, known.sha256)
        manifest = _bake_graphs(known, detector_name, originals, baked, plain=plain)
        (baked / pack.MANIFEST).write_text(manifest.text(), encoding="utf-8")
        manifest = replace(manifest, proof=prove(baked, originals))
        (baked / pack.MANIFEST).write_text(manifest.text(), encoding="utf-8")
        sources.replace_folder(baked, out)
    return manifest


def verify(folder: Path, *, source: str = "", sha256: str = "") -> dict[str, Any]:
    """Repeat the proof of the pack in `folder`. Raises `ModelError`, `SettingsError` and `CheckFailedError`."""
    manifest = pack.read_manifest(folder)
    pack.verify_checksums(folder, manifest)
    known = KNOWN.get(manifest.pack)
    if known is None and not source:
        raise ModelError(f"{manifest.pack} is no known pack: give its original files with --source")
    known = known or sources.folder_pack(Path(source))
    with tempfile.TemporaryDirectory() as scratch, sources.opened(known, source, sha256) as originals:
        for names, graph in ((known.detectors, manifest.detector), ((known.recogniser,), manifest.recogniser)):
            sources.take(originals, names, Path(scratch), dict.fromkeys(names, graph.source_sha256))
        return prove(folder, Path(scratch))


def prove(baked: Path, originals: Path, photos: dict[str, NDArray[np.uint8]] | None = None) -> dict[str, Any]:
    """Compare the pack in `baked` with InsightFace's `FaceAnalysis` over its original files, on sample photos.

    Both forms of its graphs are, where this machine can run both. Returns what was compared and how far apart the
    answers were at most. Raises `CheckFailedError`.
    """
    photos = sample_images() if photos is None else photos
    with quiet():
        reference = reference_analysis(originals)
        expected = {name: reference.get(image) for name, image in photos.items()}
    forms, apart, alike = [], [], []
    for tuned in (False, True):
        with Engine.open(baked, threads=2, providers=("cpu",), tuned=tuned) as engine:
            if engine.tuned != tuned:
                continue
            forms.append("tuned" if tuned else "portable")
            found = {name: engine.submit(partial(_itself, image)) for name, image in photos.items()}
            for name, future in found.items():
                for theirs, ours in _pairs(name, expected[name], future.result()):
                    apart.append(_apart(theirs, ours))
                    alike.append(float(np.dot(theirs.normed_embedding, ours.embedding)))
    faces = sum(map(len, expected.values()))
    pixels, cosine = float(np.max(apart, initial=0)), float(np.min(alike, initial=1))
    # Not "pixels > …", and numpy's extremes: a number that is none must not pass.
    if faces == 0 or not (pixels <= MOST_PIXELS and cosine >= LEAST_COSINE):
        raise CheckFailedError(
            f"the baked pack is not InsightFace's: over {faces} faces up to {pixels:.4f} px apart, cosine {cosine:.6f}"
        )
    return {
        "photos": len(photos),
        "faces": faces,
        "forms": forms,
        "most_pixels_apart": round(pixels, 6),
        "least_cosine": round(cosine, 7),
    }


def _pairs(name: str, expected: Sequence[Any], found: Sequence[Face]) -> Iterator[tuple[Any, Face]]:
    if len(expected) != len(found):
        raise CheckFailedError(f"{name}: InsightFace finds {len(expected)} faces, the baked pack {len(found)}")
    return zip(expected, found, strict=True)


def _itself(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


def _apart(theirs: Any, ours: Face) -> float:
    return float(max(np.abs(theirs.bbox - ours.box).max(), np.abs(theirs.kps - ours.landmarks).max()))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back the one warning that InsightFace's use of scikit-image causes at every face."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`estimate` is deprecated", category=FutureWarning)
        yield


def reference_analysis(originals: Path) -> Any:
    """Return InsightFace's own `FaceAnalysis` over a folder of original files, as the replaced worker used it."""
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(
        name=str(originals), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
    )
    analysis.prepare(ctx_id=-1, det_thresh=0.5, det_size=(DETECTION_SIZE, DETECTION_SIZE))
    return analysis


def reference_folder(scratch: Path) -> Path:
    """Return `scratch` with the default pack's two original files in it, as `reference_analysis` takes it."""
    known = KNOWN["buffalo_sc"]
    for names in (known.detectors, (known.recogniser,)):
        sources.take(sources.wheel_folder(), names, scratch, known.sha256)
    return scratch


def sample_images() -> dict[str, NDArray[np.uint8]]:
    """Return the sample photos by name, decoded."""
    images = {}
    for name, path in sample_photos().items():
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ModelError(
                f"the sample photo {path} cannot be decoded: install the packages again (make clean setup)"
            )
        images[name] = np.asarray(image, np.uint8)
    return images


def sample_photos() -> dict[str, Path]:
    """Return photos of people that installed packages bring, by file name."""
    import insightface

    own = Path(insightface.__file__).parent / "data" / "images"
    folder = sources.wheel_folder()
    paths = [
        own / "t1.jpg",
        own / "Tom_Hanks_54745.png",
        *(folder / f"{n}.jpg" for n in ("gdp", "players", "yaoming")),
    ]
    return {path.name: path for path in paths}


def _bake_graphs(known: KnownPack, detector_name: str, originals: Path, baked: Path, *, plain: bool) -> Manifest:
    import onnxruntime

    finder, embedder = sources.load_graph(originals / detector_name), sources.load_graph(originals / known.recogniser)
    size = _detection_size(finder, detector_name)
    mean, deviation = _normalisation(embedder)
    tuned_for = "" if plain else blocked_layout(onnxruntime.__version__)
    roles: dict[str, tuple[ModelProto, str, tuple[int | str, ...], int, float, float]] = {
        "detector": (finder, detector_name, (1, 3, size, size), size, detector.MEAN, detector.DEVIATION),
        "recogniser": (embedder, known.recogniser, ("faces", 3, CROP_SIZE, CROP_SIZE), CROP_SIZE, mean, deviation),
    }
    graphs = {}
    stored: dict[bytes, tuple[str, int]] = {}
    for role, (model, name, shape, side, mean_pixel, spread) in roles.items():
        target = baked / f"{role}.onnx"
        heads = variants.write_portable(model, target, shape, stored, plain=plain)
        graphs[role] = PackedGraph(
            portable=_files(target),
            tuned=_files(variants.write_tuned(target, stored)) if tuned_for else None,
            heads=heads.name if heads else "",
            heads_sha256=sources.check_sha256(heads, "") if heads else "",
            source_sha256=sources.check_sha256(originals / name, ""),
            input_size=side,
            mean=mean_pixel,
            deviation=spread,
        )
    versions = {name: metadata.version(name) for name in ("opencv-python-headless", "insightface")}
    manifest = Manifest(
        pack=known.name,
        model=Path(known.recogniser).stem,
        form="plain" if plain else "quick",
        tuned_for=tuned_for,
        detector=graphs["detector"],
        recogniser=graphs["recogniser"],
        embedding_size=pack.EMBEDDING_SIZE,
        licence=known.licence,
        versions={"onnxruntime": onnxruntime.__version__, **versions},  # the module: its GPU build has another name
        proof={},
    )
    session = pack.open_graph(baked, manifest.detector, (CPU,), tuned=False)
    pack.check_detector(session, manifest.detector)
    pack.load_heads(baked, manifest.detector, session)
    pack.check_recogniser(pack.open_graph(baked, manifest.recogniser, (CPU,), tuned=False), manifest.recogniser)
    return manifest


def _files(graph: Path) -> GraphFiles:
    """Return what a manifest says of a graph's files."""
    path = external_data.beside(graph)
    beside = (path.name, sources.check_sha256(path, "")) if path.exists() else ("", "")
    return GraphFiles(graph.name, sources.check_sha256(graph, ""), *beside)


def _detection_size(model: ModelProto, name: str) -> int:
    """Return the height and width that InsightFace runs the detector with. Raises `ModelError` for no detector."""
    shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) != 4 or len(model.graph.output) != pack.DETECTOR_OUTPUTS or shape[2] != shape[3]:  # noqa: PLR2004 - batch, colours, height, width
        raise ModelError(f"{name} is no SCRFD detector of square images with landmarks: is it the right pack?")
    return shape[2] or DETECTION_SIZE


def _normalisation(model: ModelProto) -> tuple[float, float]:
    """Return mean and deviation of the recogniser's input, as InsightFace decides on them."""
    names = [node.name for node in model.graph.node[:_FIRST_NODES]]
    by_itself = all(any(name.startswith(start) for name in names) for start in (_SUBTRACTING, _MULTIPLYING))
    return (0.0, 1.0) if by_itself else (127.5, 127.5)
