"""A baked model pack: two graphs, their weights, and a manifest of what they are, checked whenever it is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelError
from runner.faces.hardware import CPU, ProviderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

FORMAT = 4
MANIFEST = "manifest.json"
EMBEDDING_SIZE = 512
LEVELS = 3  # of a detector: one a stride
DETECTOR_OUTPUTS = 3 * LEVELS  # scores, boxes and landmarks
WITHOUT_HEADS = 2 * LEVELS  # scores and features
_ADVICE = "bake it again: spottmee-worker models bake --pack NAME --out DIR"


@dataclass(frozen=True, slots=True)
class Files:
    """An ONNX file, and its weights in a file beside it, which the ONNX file names and onnxruntime maps.

    As a part of the ONNX file the weights were parsed, all 14 MB of them: 17 ms more of processor time at the start.
    `weights` is empty where the ONNX file has them all.
    """

    file: str
    sha256: str
    weights: str
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a pack, as every processor runs it, and as onnxruntime lays it out for processors like the baker's.

    `source_sha256` is that of the file it was made from; `input_size` is the height and width of its input, whose
    values are (pixel - mean) / deviation. `heads` is a NumPy file with what `rewriting.heads` took out of a detector,
    empty where nothing was.
    """

    portable: Files
    tuned: Files | None
    heads: str
    heads_sha256: str
    source_sha256: str
    input_size: int
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a pack is. `model` names the embedding space: embeddings of different models are never compared.

    `form` is "quick" where the graphs were rewritten for processors, "plain" where they are as they came. `tuned_for`
    is what `hardware.blocked_layout` has to answer for the tuned graphs to be right; on any other machine they would
    give wrong numbers.
    """

    pack: str
    model: str
    form: str
    tuned_for: str
    detector: Graph
    recogniser: Graph
    embedding_size: int
    licence: str
    versions: dict[str, str]
    proof: dict[str, Any]

    def text(self) -> str:
        """Return the file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the pack in `folder`, without looking at the graphs. Raises `ModelError`."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        if document.pop("format") != FORMAT:
            raise ModelError(f"{path} was written by another version of spottmee-worker; {_ADVICE}")
        detector, recogniser = _graph(document.pop("detector")), _graph(document.pop("recogniser"))
        manifest = Manifest(**document, detector=detector, recogniser=recogniser)
    except FileNotFoundError:
        raise ModelError(f"there is none in {folder} (RUNNER_MODEL_DIR); {_ADVICE}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): make it readable for this user") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is damaged; {_ADVICE}") from None
    if manifest.embedding_size != EMBEDDING_SIZE:
        raise ModelError(
            f"{manifest.pack} makes embeddings of {manifest.embedding_size} numbers, and the database holds "
            f"{EMBEDDING_SIZE}: bake another pack"
        )
    return manifest


def _graph(document: dict[str, Any]) -> Graph:
    portable, tuned = Files(**document.pop("portable")), document.pop("tuned")
    return Graph(**document, portable=portable, tuned=Files(**tuned) if tuned else None)


def check(folder: Path, manifest: Manifest) -> None:
    """Compare the checksums of all files of a pack (20 ms for 24 MB), also of those that are not used on this machine.

    Raises `ModelError`.
    """
    for graph in (manifest.detector, manifest.recogniser):
        for files in (graph.portable, graph.tuned):
            if files is not None:
                _check_file(folder, files.file, files.sha256)
                if files.weights:
                    _check_file(folder, files.weights, files.weights_sha256)
        if graph.heads:
            _check_file(folder, graph.heads, graph.heads_sha256)


def _check_file(folder: Path, name: str, sha256: str) -> None:
    path = folder / name
    if path.parent != folder:
        raise ModelError(f"{folder / MANIFEST} is damaged: it names files outside of its folder; {_ADVICE}")
    try:
        # In one piece: each piece of a file that is read in parts would wait for the interpreter again.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest = hashlib.sha256(content).hexdigest()
    except ValueError:  # an empty file cannot be mapped
        digest = ""
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from None
    if digest != sha256:
        raise ModelError(f"{path} is not what was baked: its checksum differs; {_ADVICE}")


def open_graph(folder: Path, graph: Graph, providers: Sequence[str], *, tuned: bool) -> InferenceSession:
    """Return a session over the form of the graph that is asked for. Raises as `open_session` does."""
    files = graph.tuned if tuned and graph.tuned else graph.portable
    return open_session(folder / files.file, providers, optimised=files is graph.tuned)


def read_heads(folder: Path, graph: Graph, session: Any) -> NDArray[np.float32] | None:
    """Return what a detector's boxes and landmarks are computed with, where its graph, opened, does not do that.

    Raises `ModelError` where that is not for the features that the graph gives.
    """
    import numpy as np

    if not graph.heads:
        return None
    path, features = folder / graph.heads, session.get_outputs()[-1].shape[1]
    try:
        heads: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except ValueError:
        raise ModelError(f"{path} is no NumPy file; {_ADVICE}") from None
    if heads.shape[:-1] != (LEVELS, 9 * features + 1):
        raise ModelError(f"{path} is not for {graph.portable.file}; {_ADVICE}")
    return heads


def open_session(path: Path, providers: Sequence[str], *, optimised: bool = False) -> InferenceSession:
    """Return a session over the graph at `path`; the first of `providers` runs it, the others what that one cannot.

    `optimised` says that onnxruntime has nothing left to do for this processor: it opens both graphs in 16 instead
    of 40 ms then, during which it holds the interpreter.

    One thread a call: the engine runs several calls at once, which is faster than one call on several threads.
    Memory comes from onnxruntime's arena, as each call needs it: planned beforehand, or from malloc, it took 40 to
    90 MiB more and a third to four times more page faults (docs/explanation/engine.md). Read from the path and
    not from bytes, which the session would keep. Raises `ModelError` for a graph that onnxruntime refuses, and
    `ProviderError` where the first provider does not run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimised else levels.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # a failure is an exception here, told once
    if providers[0] != CPU:
        _load_gpu_libraries()
    try:
        # Without its own fallback onnxruntime raises what a provider fails with, instead of printing it.
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own for every fault
        if providers[0] != CPU:
            raise ProviderError(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from None
        raise ModelError(f"onnxruntime refuses {path} ({type(error).__name__}); {_ADVICE}") from None
    if session.get_providers()[0] != providers[0]:
        raise ProviderError("onnxruntime fell back to another one and says why on standard error, if at all")
    return session


def _load_gpu_libraries() -> None:
    """Load CUDA and cuDNN from their wheels: onnxruntime's GPU build does not look there by itself.

    It prints what it does not find; whether it is missed shows when the provider starts.
    """
    import onnxruntime

    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls(directory="")


def check_detector(session: Any, graph: Graph) -> None:
    """Raise `ModelError` unless the session's input and outputs are those of a detector."""
    shape = session.get_inputs()[0].shape[1:]
    outputs = WITHOUT_HEADS if graph.heads else DETECTOR_OUTPUTS
    if len(session.get_outputs()) != outputs or shape != [3, graph.input_size, graph.input_size]:
        raise ModelError(f"{graph.portable.file} is no SCRFD detector of {graph.input_size} pixels; {_ADVICE}")


def check_recogniser(session: Any, graph: Graph) -> None:
    """Raise `ModelError` unless the session's input and output are those of a recogniser."""
    outputs, shape = session.get_outputs(), session.get_inputs()[0].shape[1:]
    if len(outputs) != 1 or shape != [3, graph.input_size, graph.input_size]:
        raise ModelError(f"{graph.portable.file} is no ArcFace recogniser of {graph.input_size} pixels; {_ADVICE}")
    if outputs[0].shape[-1] != EMBEDDING_SIZE:
        raise ModelError(
            f"{graph.portable.file} makes embeddings of {outputs[0].shape[-1]} numbers, and the database holds "
            f"{EMBEDDING_SIZE}: bake another pack"
        )
