"""A baked model pack (two graphs, their weights, and a manifest that describes them), checked at every load."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from runner.errors import ModelError
from runner.faces import driver
from runner.faces.arrays import Float32Array
from runner.faces.providers import CPU, ProviderError, provider_options
from runner.output import repeated

FORMAT = 4
MANIFEST = "manifest.json"
EMBEDDING_SIZE = 512
LEVELS = 3  # of a detector's feature pyramid: one per stride
DETECTOR_OUTPUTS = 3 * LEVELS  # scores, boxes and landmarks
OUTPUTS_WITHOUT_HEADS = 2 * LEVELS  # scores and feature maps
_ADVICE = "bake it again: spottmee-worker models bake --pack NAME --out DIR"


class GraphFiles(NamedTuple):
    """An ONNX file and its external data, which the ONNX file names and onnxruntime maps into memory.

    Inside the ONNX file the weights would be parsed, all 14 MB of them: 17 ms of CPU time at every start. `weights`
    is empty if the ONNX file contains all of them.
    """

    file: str
    sha256: str
    weights: str
    weights_sha256: str


class PackedGraph(NamedTuple):
    """One network of a pack: a portable variant for any CPU, and one tuned for CPUs like the baking machine's.

    `heads` is a NumPy file with the matrices that `bake.passes.detector_heads` extracted, empty where there are none.
    `source_sha256` is the checksum of InsightFace's file; `input_size` is the height and width of the input in
    pixels, whose values are (pixel - mean) / deviation.
    """

    portable: GraphFiles
    tuned: GraphFiles | None
    heads: str
    heads_sha256: str
    source_sha256: str
    input_size: int
    mean: float
    deviation: float

    def document(self) -> dict[str, object]:
        """Return the part of manifest.json that describes this network."""
        tuned = self.tuned._asdict() if self.tuned else None
        return {**self._asdict(), "portable": self.portable._asdict(), "tuned": tuned}


class Manifest(NamedTuple):
    """The content of manifest.json; its keys are the names of the fields.

    `model` names the embedding space: embeddings of different models are never compared. `form` is "quick" after
    graph passes for CPUs and "plain" without them. The tuned variants are correct only if `cpu.blocked_layout`
    returns `tuned_for`; otherwise they give wrong numbers without an error.
    """

    pack: str
    model: str
    form: str
    tuned_for: str
    detector: PackedGraph
    recogniser: PackedGraph
    embedding_size: int
    licence: str
    versions: dict[str, str]
    proof: dict[str, Any]

    def text(self) -> str:
        """Return the content of manifest.json."""
        graphs = {"detector": self.detector.document(), "recogniser": self.recogniser.document()}
        return json.dumps({"format": FORMAT, **self._asdict(), **graphs}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the pack in `folder` without opening its graphs. Raises `ModelError`."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        if document.pop("format") != FORMAT:
            raise ModelError(f"{path} was written by another version of spottmee-worker; {_ADVICE}")
        detector, recogniser = _packed_graph(document.pop("detector")), _packed_graph(document.pop("recogniser"))
        manifest = Manifest(**document, detector=detector, recogniser=recogniser)
    except FileNotFoundError:
        raise ModelError(f"there is no {MANIFEST} in {repeated(str(folder))} (RUNNER_MODEL_DIR); {_ADVICE}") from None
    except OSError as error:
        raise ModelError(
            f"{repeated(str(path))} cannot be read ({error.strerror}): make it readable for this user"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is damaged; {_ADVICE}") from None
    _check_embedding_size(manifest.pack, manifest.embedding_size)
    return manifest


def _packed_graph(document: dict[str, Any]) -> PackedGraph:
    portable, tuned = GraphFiles(**document.pop("portable")), document.pop("tuned")
    return PackedGraph(**document, portable=portable, tuned=GraphFiles(**tuned) if tuned else None)


def _check_embedding_size(name: str, size: int) -> None:
    if size != EMBEDDING_SIZE:
        raise ModelError(
            f"{name} produces embeddings of {size} numbers, but the database holds {EMBEDDING_SIZE}: bake another pack"
        )


def verify_checksums(folder: Path, manifest: Manifest) -> None:
    """Compare the checksums of all files of a pack (20 ms for 24 MB), including those that this machine does not use.

    Raises `ModelError` for the first file that is missing or differs.
    """
    for graph in (manifest.detector, manifest.recogniser):
        for files in (graph.portable, graph.tuned):
            if files is not None:
                _verify_file(folder, files.file, files.sha256)
                if files.weights:
                    _verify_file(folder, files.weights, files.weights_sha256)
        if graph.heads:
            _verify_file(folder, graph.heads, graph.heads_sha256)


def _verify_file(folder: Path, name: str, sha256: str) -> None:
    path = folder / name
    if path.parent != folder:
        raise ModelError(f"{folder / MANIFEST} is damaged: it names files outside its folder; {_ADVICE}")
    try:
        # Hashed in one call: with several reads, this thread would wait for the GIL after each.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest = hashlib.sha256(content).hexdigest()
    except ValueError:  # an empty file cannot be mapped
        digest = ""
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from None
    if digest != sha256:
        raise ModelError(f"{path} has changed since it was baked: its checksum differs; {_ADVICE}")


def open_graph(
    folder: Path, graph: PackedGraph, providers: Sequence[str], *, tuned: bool
) -> onnxruntime.InferenceSession:
    """Return a session with the tuned variant, if wanted and available, or with the portable one.

    Raises as `open_session` does.
    """
    files = graph.tuned if tuned and graph.tuned else graph.portable
    return open_session(folder / files.file, providers, optimised=files is graph.tuned)


def load_heads(folder: Path, graph: PackedGraph, session: Any) -> Float32Array | None:
    """Return the matrices (3, 9 n + 1, 28) of a detector whose graph returns n features, None if it has none.

    Raises `ModelError` if they do not fit the graph of `session`.
    """
    if not graph.heads:
        return None
    path, features = folder / graph.heads, session.get_outputs()[-1].shape[1]
    try:
        heads: Float32Array = np.load(path, allow_pickle=False)
    except ValueError:
        raise ModelError(f"{path} is not a NumPy file; {_ADVICE}") from None
    if heads.shape[:-1] != (LEVELS, 9 * features + 1):
        raise ModelError(f"{path} does not fit {graph.portable.file}; {_ADVICE}")
    return heads


def open_session(path: Path, providers: Sequence[str], *, optimised: bool = False) -> onnxruntime.InferenceSession:
    """Return a session with the graph at `path`: `providers[0]` runs it, the others run what it cannot.

    `optimised` skips onnxruntime's own optimisation, for tuned graphs: both load in 16 instead of 40 ms, during which
    onnxruntime holds the GIL.

    One thread per call: several calls at once are faster than one call on several threads. Memory comes from the
    arena on demand: planned in advance, or from malloc, it took 40 to 90 MiB more, and a third to four times more page
    faults (docs/explanation/engine.md). Opened by path, because the session would keep a copy of bytes.

    Raises `ModelError` for a graph that onnxruntime rejects, and `ProviderError` if `providers[0]` fails.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimised else levels.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # a failure raises an exception, so it is not logged as well
    if providers[0] != CPU:
        _load_gpu_libraries()
    try:
        # Without its own fallback, onnxruntime raises a provider's failure instead of printing it.
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=list(providers),
            provider_options=provider_options(providers),
            enable_fallback=0,
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime has an exception type of its own for every status
        if providers[0] != CPU:
            raise ProviderError(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from None
        raise ModelError(f"onnxruntime rejects {path} ({type(error).__name__}); {_ADVICE}") from None
    if session.get_providers()[0] != providers[0]:
        found = "" if driver.load_driver() else f"there is no driver ({driver.DRIVER}) in this container; "
        raise ProviderError(f"{found}onnxruntime fell back to another provider")
    return session


def _load_gpu_libraries() -> None:
    """Load the driver, and CUDA and cuDNN from their wheels, where onnxruntime's GPU build does not look for them.

    Its list of missing libraries is discarded: it becomes clear whether one matters when the provider starts.
    """
    driver.prepare()
    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls(directory="")


def check_detector(session: Any, graph: PackedGraph) -> None:
    """Raise `ModelError` unless the session's input and outputs are those of an SCRFD detector."""
    shape = session.get_inputs()[0].shape[1:]
    outputs = OUTPUTS_WITHOUT_HEADS if graph.heads else DETECTOR_OUTPUTS
    if len(session.get_outputs()) != outputs or shape != [3, graph.input_size, graph.input_size]:
        raise ModelError(f"{graph.portable.file} is not an SCRFD detector of {graph.input_size} pixels; {_ADVICE}")


def check_recogniser(session: Any, graph: PackedGraph) -> None:
    """Raise `ModelError` unless the session's input and output are those of an ArcFace recogniser."""
    outputs, shape = session.get_outputs(), session.get_inputs()[0].shape[1:]
    if len(outputs) != 1 or shape != [3, graph.input_size, graph.input_size]:
        raise ModelError(f"{graph.portable.file} is not an ArcFace recogniser of {graph.input_size} pixels; {_ADVICE}")
    _check_embedding_size(graph.portable.file, outputs[0].shape[-1])
