"""Helpers for tests of the engine: InsightFace's own results, and the comparison of ours with them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from runner.bake import proof, sources
from runner.bake.catalogue import KNOWN
from runner.faces.arrays import Image
from runner.faces.engine import Engine, Face
from runner.settings import default_model_dir

MODEL = default_model_dir()


@cache
def originals() -> Path:
    """Return a folder with the original files of the default pack, which exists for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="spottmee-originals-"))
    known = KNOWN["buffalo_sc"]
    for names in (known.detectors, (known.recogniser,)):
        sources.copy_original(sources.wheel_folder(), names, folder, known.sha256)
    return folder


@cache
def reference() -> Any:
    """Return InsightFace's `FaceAnalysis` with the original files."""
    return proof.reference_analysis(originals())


_EXPECTED: dict[tuple[tuple[int, ...], str], list[Any]] = {}


def forget() -> None:
    """Free InsightFace's networks and its answers."""
    reference.cache_clear()
    _EXPECTED.clear()


def expected(image: Image) -> list[Any]:
    """Return the faces that InsightFace itself finds; results are cached per image."""
    key = (image.shape, hashlib.sha256(image.tobytes()).hexdigest())
    if key not in _EXPECTED:
        _EXPECTED[key] = proof.reference_faces(reference(), image)
    return _EXPECTED[key]


def analyse(engine: Engine, image: Image) -> list[Face]:
    """Return the faces that the engine finds in one image."""
    return engine.submit(lambda: image).result(120)


def assert_same(theirs: Sequence[Any], ours: Sequence[Face], name: str) -> None:
    """Check that our faces of one image equal InsightFace's, in the same order, within the proof's tolerances."""
    assert len(ours) == len(theirs), name
    for their_face, our_face in zip(theirs, ours, strict=True):
        assert np.abs(their_face.bbox - our_face.box).max() <= proof.MAX_PIXELS, name
        assert np.abs(their_face.kps - our_face.landmarks).max() <= proof.MAX_PIXELS, name
        assert abs(float(their_face.det_score) - our_face.score) <= 1e-5, name
        assert float(np.dot(their_face.normed_embedding, our_face.embedding)) >= proof.MIN_COSINE, name
        assert abs(float(np.linalg.norm(our_face.embedding)) - 1) <= 1e-5, name
