"""Packs with the architectures of buffalo_l and antelopev2, an eighth as wide: baked, proven, and rewritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runner.bake import originals, pipeline
from runner.bake.catalogue import KNOWN
from runner.faces import pack
from runner.faces.pack import Manifest
from tests.support.graph_tools import operators
from tools.synthetic_pack import architectures
from tools.synthetic_pack.__main__ import RECOGNISERS, write

DIVIDE = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the two files of a narrow buffalo_l."""
    folder = tmp_path_factory.mktemp("narrow")
    write("buffalo_l", folder, divide=DIVIDE)
    return folder


def faces(manifest: Manifest) -> int:
    return int(manifest.proof["faces"])


def test_every_pass_that_applies_rewrites_the_pack_and_the_proof_holds(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = pipeline.bake(str(files), out)
    assert faces(manifest) > 20, "a proof over so few faces says little"
    assert manifest.proof["least_cosine"] >= 0.9999
    heads = np.load(out / manifest.detector.heads)
    assert heads.shape == (3, 9 * architectures.HEAD // DIVIDE + 1, 28)
    recogniser = operators(onnx.load(out / "recogniser.onnx"))
    assert recogniser["PRelu"] == 0
    assert recogniser["Relu"] == 1 + sum(RECOGNISERS["buffalo_l"])
    pack.verify_checksums(out, manifest)


def test_a_recogniser_with_slopes_above_one_keeps_its_prelu_and_is_proven(files: Path, tmp_path: Path) -> None:
    """No sum of two terms computes PRelu with such a slope: those layers are left as they are."""
    folder = tmp_path / "steep"
    folder.mkdir()
    detector, recogniser = KNOWN["buffalo_l"].detectors[0], KNOWN["buffalo_l"].recogniser
    (folder / detector).symlink_to(files / detector)
    model = onnx.load(files / recogniser)
    slopes = [node.input[1] for node in model.graph.node if node.op_type == "PRelu"]
    for tensor in model.graph.initializer:
        if tensor.name in slopes[:3]:
            steep = np.array(numpy_helper.to_array(tensor))
            steep[0] = 1.2
            tensor.CopyFrom(numpy_helper.from_array(steep, tensor.name))
    onnx.save(model, folder / recogniser)
    manifest = pipeline.bake(str(folder), tmp_path / "out", portable=True)
    assert (manifest.tuned_for, manifest.proof["forms"]) == ("", ["portable"])
    assert faces(manifest) > 20
    assert operators(onnx.load(tmp_path / "out/recogniser.onnx"))["PRelu"] == 3


def test_a_synthetic_pack_has_the_published_layers(files: Path) -> None:
    """The numbers of operators, and inputs and outputs, are those of InsightFace's files."""
    detector, recogniser = (onnx.load(files / name) for name in (KNOWN["buffalo_l"].detectors[0], "w600k_r50.onnx"))
    found = operators(recogniser)
    assert {name: found[name] for name in ("Conv", "PRelu", "Add", "BatchNormalization", "Gemm", "Flatten")} == {
        "Conv": 53,
        "PRelu": 25,
        "Add": 24,
        "BatchNormalization": 26,
        "Gemm": 1,
        "Flatten": 1,
    }
    assert originals.detection_size(detector, "det_10g.onnx") == 640
    assert len(detector.graph.output) == 9
    shapes = [[item.dim_value for item in one.type.tensor_type.shape.dim] for one in detector.graph.output]
    assert shapes == [[cells, values] for values in (1, 4, 10) for cells in (12800, 3200, 800)]


def test_the_same_seed_gives_the_same_files(files: Path, tmp_path: Path) -> None:
    for path in write("buffalo_l", tmp_path / "again", divide=DIVIDE):
        assert path.read_bytes() == (files / path.name).read_bytes()
    first, second = (architectures.iresnet((1, 1, 1, 1), seed, divide=DIVIDE) for seed in (1, 2))
    assert first != second
