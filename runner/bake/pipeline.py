"""The pipeline of `models bake`: original files → graph variants → manifest → proof → folder."""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime

from runner.bake import external_data, originals, sources, variants
from runner.bake.catalogue import KNOWN, KnownPack
from runner.bake.external_data import StoredTensors
from runner.bake.passes.canonical import Shape
from runner.bake.proof import prove
from runner.errors import ModelError
from runner.faces import detector, pack
from runner.faces.alignment import CROP_SIZE
from runner.faces.cpu import blocked_layout
from runner.faces.engine import open_models
from runner.faces.pack import GraphFiles, Manifest, PackedGraph
from runner.faces.providers import CPU


def bake(
    pack_name: str, out: Path, *, source: str = "", sha256: str = "", plain: bool = False, portable: bool = False
) -> Manifest:
    """Write the pack to `out` and return its manifest; `out` is not changed unless the proof succeeds.

    `pack_name` is a known pack or a folder with its two files. `source` is a folder, an archive (zip, wheel) or the
    URL of one; `sha256` is the archive's checksum, which a URL requires. `plain` skips the graph passes and the tuned
    variants, `portable` only the latter. Raises `ModelError`, `SettingsError`, and `CheckFailedError` if the baked
    pack does not give InsightFace's answers.
    """
    known = KNOWN.get(pack_name) or originals.describe_folder(Path(pack_name))
    if pack_name not in KNOWN:
        source = source or pack_name
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(prefix=".bake-", dir=out.parent)
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror}): choose another --out") from None
    with scratch_folder as scratch:
        original, baked = Path(scratch) / "originals", Path(scratch) / "baked"
        original.mkdir()
        baked.mkdir()
        with sources.open_source(known, source, sha256) as folder:
            detector_name = sources.copy_original(folder, known.detectors, original, known.sha256)
            sources.copy_original(folder, (known.recogniser,), original, known.sha256)
        files = original / detector_name, original / known.recogniser
        manifest = _bake_graphs(known, *files, baked, plain=plain, tuned=not (plain or portable))
        _write_manifest(baked, manifest)
        manifest = manifest._replace(proof=prove(baked, original))
        _write_manifest(baked, manifest)
        sources.replace_folder(baked, out)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / pack.MANIFEST).write_text(manifest.text(), encoding="utf-8")


def _bake_graphs(
    known: KnownPack, detector_file: Path, recogniser_file: Path, baked: Path, *, plain: bool, tuned: bool
) -> Manifest:
    scrfd, arcface = originals.load(detector_file), originals.load(recogniser_file)
    size = originals.detection_size(scrfd, detector_file.name)
    mean, deviation = originals.normalisation(arcface)
    tuned_for = blocked_layout(onnxruntime.__version__) if tuned else ""
    versions = {name: metadata.version(name) for name in ("opencv-python-headless", "insightface")}
    stored: StoredTensors = {}

    def bake_graph(role: str, model: onnx.ModelProto, shape: Shape, file: Path, **values: float) -> PackedGraph:
        portable = baked / f"{role}.onnx"
        heads = variants.write_portable(model, portable, shape, stored, plain=plain)
        return PackedGraph(
            portable=_graph_files(portable),
            tuned=_graph_files(variants.write_tuned(portable, stored)) if tuned_for else None,
            heads=heads.name if heads else "",
            heads_sha256=sources.sha256_of(heads) if heads else "",
            source_sha256=sources.sha256_of(file),
            input_size=shape[-1],
            **values,
        )

    manifest = Manifest(
        pack=known.name,
        model=recogniser_file.stem,
        form="plain" if plain else "quick",
        tuned_for=tuned_for,
        detector=bake_graph(
            "detector", scrfd, (1, 3, size, size), detector_file, mean=detector.MEAN, deviation=detector.DEVIATION
        ),
        recogniser=bake_graph(
            "recogniser", arcface, ("faces", 3, CROP_SIZE, CROP_SIZE), recogniser_file, mean=mean, deviation=deviation
        ),
        embedding_size=pack.EMBEDDING_SIZE,
        licence=known.licence,
        versions={"onnxruntime": onnxruntime.__version__, **versions},  # the module: its GPU build has another name
        proof={},
    )
    open_models(baked, manifest, (CPU,), tuned=False)  # raises unless a run would accept them
    return manifest


def _graph_files(graph: Path) -> GraphFiles:
    weights = external_data.path_beside(graph)
    beside = (weights.name, sources.sha256_of(weights)) if weights.exists() else ("", "")
    return GraphFiles(graph.name, sources.sha256_of(graph), *beside)
