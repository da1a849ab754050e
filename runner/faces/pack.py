"""A baked model pack: two graphs and a manifest that says what they are, checked whenever it is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1
MANIFEST = "manifest.json"
EMBEDDING_SIZE = 512
_ADVICE = "bake it again: spottmee-worker models bake --pack NAME --out DIR"


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file of a pack; `source_sha256` is that of the file it was made from."""

    file: str
    sha256: str
    source_sha256: str
    input_size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a pack is. `model` names the embedding space: embeddings of different models are never compared."""

    pack: str
    model: str
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
        detector, recogniser = Graph(**document.pop("detector")), Graph(**document.pop("recogniser"))
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


def read_graph(folder: Path, graph: Graph) -> bytes:
    """Return the bytes of a graph after comparing its checksum (10 ms for 16 MB). Raises `ModelError`."""
    path = folder / graph.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from None
    if hashlib.sha256(content).hexdigest() != graph.sha256:
        raise ModelError(f"{path} is not what was baked: its checksum differs; {_ADVICE}")
    return content


def open_session(content: bytes, provider: str) -> InferenceSession:
    """Return a session over a baked graph.

    One thread a call: the engine runs several calls at once, which is faster than one call on several threads.
    The arena is off: it keeps the largest size ever seen of every tensor, and was no quicker. Raises `ModelError`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # What depends on the processor (blocked layouts) is done here and not when baking: 6 ms, and portable.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own for every fault
        raise ModelError(f"onnxruntime refuses a graph of the pack ({type(error).__name__}); {_ADVICE}") from None
