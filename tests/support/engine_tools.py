"""What the tests of the engine share: InsightFace's own answers, and how ours are held against them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.faces import bake
from runner.settings import default_model_dir

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.faces.engine import Face

    Image = NDArray[np.uint8]

MODEL = default_model_dir()


@cache
def originals() -> Path:
    """Return a folder with the default pack's original files, kept for as long as the tests run."""
    folder = Path(tempfile.mkdtemp(prefix="spottmee-originals-"))
    return bake.reference_folder(folder)


@cache
def reference() -> Any:
    """Return InsightFace's `FaceAnalysis` over them."""
    return bake.reference_analysis(originals())


def expected(image: Image) -> list[Any]:
    """Return InsightFace's own answer."""
    with bake.quiet():
        faces: list[Any] = reference().get(image)
    return faces


def assert_same(theirs: Sequence[Any], ours: Sequence[Face], name: str) -> None:
    """Hold our faces of one image against InsightFace's: the same number in the same order, within the bounds."""
    assert len(ours) == len(theirs), name
    for their_face, our_face in zip(theirs, ours, strict=True):
        assert np.abs(their_face.bbox - our_face.box).max() <= bake.MOST_PIXELS, name
        assert np.abs(their_face.kps - our_face.landmarks).max() <= bake.MOST_PIXELS, name
        assert abs(float(their_face.det_score) - our_face.score) <= 1e-5, name
        assert float(np.dot(their_face.normed_embedding, our_face.embedding)) >= bake.LEAST_COSINE, name
        assert abs(float(np.linalg.norm(our_face.embedding)) - 1) <= 1e-5, name
