"""The proof of a pack: InsightFace's own `FaceAnalysis` gives the same answers on the sample photos."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from insightface.app import FaceAnalysis

from runner.bake import originals, sources
from runner.bake.catalogue import KNOWN
from runner.bake.samples import sample_images
from runner.errors import CheckFailedError, ModelError
from runner.faces import pack
from runner.faces.arrays import Image
from runner.faces.engine import Engine, Face
from runner.faces.providers import CPU

# How far a pack's answers may be from InsightFace's.
MAX_PIXELS = 0.01
MIN_COSINE = 0.9999


def verify(folder: Path, *, source: str = "", sha256: str = "") -> dict[str, Any]:
    """Check the checksums of the pack in `folder`, repeat its proof, and return the proof.

    `source` and `sha256` are those of `pipeline.bake`. Raises `ModelError`, `SettingsError` and `CheckFailedError`.
    """
    manifest = pack.read_manifest(folder)
    pack.verify_checksums(folder, manifest)
    known = KNOWN.get(manifest.pack)
    if known is None and not source:
        raise ModelError(f"{manifest.pack} is not a known pack: give its original files with --source")
    known = known or originals.describe_folder(Path(source))
    with tempfile.TemporaryDirectory() as scratch, sources.open_source(known, source, sha256) as found:
        for names, graph in ((known.detectors, manifest.detector), ((known.recogniser,), manifest.recogniser)):
            sources.copy_original(found, names, Path(scratch), dict.fromkeys(names, graph.source_sha256))
        return prove(folder, Path(scratch))


def prove(baked: Path, original: Path) -> dict[str, Any]:
    """Compare the pack in `baked` with InsightFace over the files in `original`, on the sample photos.

    Both variants of its graphs are compared, if this machine can run both. Returns what was compared, the largest
    distance in pixels and the smallest cosine similarity. Raises `CheckFailedError` if the faces differ by more
    than `MAX_PIXELS` or `MIN_COSINE`, in number, or in order.
    """
    photos = sample_images()
    reference = reference_analysis(original)
    expected = {name: reference_faces(reference, image) for name, image in photos.items()}
    variants: list[str] = []
    distances: list[np.floating[Any]] = []
    cosines: list[np.floating[Any]] = []
    for tuned in (False, True):
        with Engine.open(baked, threads=2, providers=("cpu",), tuned=tuned) as engine:
            if engine.tuned != tuned:
                continue
            variants.append("tuned" if tuned else "portable")
            futures = {name: engine.submit(partial(np.asarray, image)) for name, image in photos.items()}
            for name, future in futures.items():
                for theirs, ours in _pairs(name, expected[name], future.result()):
                    distances += [np.abs(theirs.bbox - ours.box).max(), np.abs(theirs.kps - ours.landmarks).max()]
                    cosines.append(np.dot(theirs.normed_embedding, ours.embedding))
    faces = sum(map(len, expected.values()))
    pixels, cosine = float(np.max(distances, initial=0)), float(np.min(cosines, initial=1))
    # Not "pixels > …", and NumPy's extremes: NaN must fail.
    if faces == 0 or not (pixels <= MAX_PIXELS and cosine >= MIN_COSINE):
        raise CheckFailedError(
            f"the baked pack does not give InsightFace's answers: over {faces} faces, up to {pixels:.4f} px apart and "
            f"a cosine similarity of {cosine:.6f}"
        )
    return {
        "photos": len(photos),
        "faces": faces,
        "forms": variants,
        "most_pixels_apart": round(pixels, 6),
        "least_cosine": round(cosine, 7),
    }


def _pairs(name: str, expected: Sequence[Any], found: Sequence[Face]) -> Iterator[tuple[Any, Face]]:
    if len(expected) != len(found):
        raise CheckFailedError(f"{name}: InsightFace finds {len(expected)} faces, the baked pack {len(found)}")
    return zip(expected, found, strict=True)


def reference_analysis(original: Path) -> FaceAnalysis:
    """Return InsightFace's `FaceAnalysis` over a folder of original files, configured as in the replaced worker."""
    analysis = FaceAnalysis(name=str(original), allowed_modules=["detection", "recognition"], providers=[CPU])
    analysis.prepare(ctx_id=-1, det_thresh=0.5, det_size=(originals.DETECTION_SIZE, originals.DETECTION_SIZE))
    return analysis


def reference_faces(analysis: FaceAnalysis, image: Image) -> list[Any]:
    """Return InsightFace's faces of an image, without the warning that its use of scikit-image causes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`estimate` is deprecated", category=FutureWarning)
        faces: list[Any] = analysis.get(image)
    return faces
