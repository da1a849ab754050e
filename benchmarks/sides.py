"""The sides of the throughput measurement, each in a process of its own that `throughput.py` calls in turn.

    python -m benchmarks.sides engine|reference|bare|bare+jpeg|own+jpeg FOLDER PACK

FOLDER has InsightFace's two files, PACK is what was baked from them. Reads the name of a set of photos per line and
answers each with a line of JSON: the wall time and the CPU time for the whole set, in seconds, and the number of faces
found. A first line says that everything is loaded and warmed up.
"""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import simplejpeg

from benchmarks import material
from runner.bake import originals, variants
from runner.bake.catalogue import KNOWN
from runner.bake.passes.canonical import Shape
from runner.faces import pack
from runner.faces.alignment import aligned_crop
from runner.faces.detector import Detector
from runner.faces.engine import Engine
from runner.faces.pack import Manifest
from runner.faces.providers import CPU, PROVIDERS
from runner.faces.recogniser import Recogniser
from runner.images.buffers import PixelMemory
from runner.images.decode import decode

Photos = Sequence[bytes]
CROPS_A_CALL = PROVIDERS["cpu"][1]  # the engine's batch size
THREADS = 2
# Passes over a set in one measurement: with few photos, the last ones, which leave a thread idle, would weigh too much.
PASSES = 3
MAX_PIXELS, MAX_BYTES = 100_000_000, 2**25


def engine(_folder: Path, model: Path) -> Callable[[Photos], int]:
    """This runner: decoding and the engine, as `run` uses them."""
    opened, memory = Engine.open(model, threads=THREADS), PixelMemory()

    def load(data: bytes) -> Any:
        return decode(data, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES, memory=memory)

    def work(photos: Photos) -> int:
        futures = [opened.submit(partial(load, data)) for data in photos]
        return sum(len(future.result()) for future in futures)

    return work


def reference(folder: Path, _model: Path) -> Callable[[Photos], int]:
    """The replaced worker: OpenCV and `FaceAnalysis`, photo by photo, with onnxruntime's own threads."""
    from benchmarks.reference import face_analysis, faces_of  # InsightFace: the other sides run without it

    analysis = face_analysis(str(folder))
    return lambda photos: sum(len(faces_of(analysis, data)) for data in photos)


class _Recording:
    """A session that records its inputs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.inputs: list[Any] = []

    def run(self, outputs: Sequence[str], inputs: dict[str, Any]) -> Any:
        """Record the inputs and run the session."""
        self.inputs += [values.copy() for values in inputs.values()]
        return self._session.run(outputs, inputs)


def bare(folder: Path, model: Path, *, decode: bool = False, own: bool = False) -> Callable[[Photos], int]:
    """The limit: only `session.run` for the same faces, on all cores, and JPEG decoding with `decode`.

    These are InsightFace's two complete networks, optimised by all graph passes of the bake except one: they compute
    boxes and landmarks for every cell, including cells without a face. With `own`, they are the engine's own sessions,
    which skip that. Inputs and batches are the engine's: one thread per call, one call per core, crops in full
    batches. Zeros as input would not be equivalent: the kernel maps them all to one page, which is 2 to 4% faster.
    """
    cv2.setNumThreads(1)
    manifest = pack.read_manifest(model)
    detector, recogniser = _own(model, manifest) if own else _whole(folder, manifest)
    inputs = _inputs(model, manifest)
    names = detector.get_inputs()[0].name, recogniser.get_inputs()[0].name

    def work(photos: Photos) -> int:
        crops = [one for data in photos for one in inputs[data][1]]
        calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        for data in photos:
            if decode:
                calls.put(partial(simplejpeg.decode_jpeg, data, "BGR", fastdct=False, fastupsample=False))
            calls.put(partial(detector.run, None, {names[0]: inputs[data][0]}))
        for start in range(0, len(crops), CROPS_A_CALL):
            calls.put(partial(recogniser.run, None, {names[1]: np.stack(crops[start : start + CROPS_A_CALL])}))
        _run_all(calls)
        return len(crops)

    return work


def _own(model: Path, manifest: Manifest) -> list[Any]:

    return [pack.open_graph(model, graph, (CPU,), tuned=False) for graph in (manifest.detector, manifest.recogniser)]


def _whole(folder: Path, manifest: Manifest) -> list[Any]:
    """Return sessions of InsightFace's files in `folder`, optimised, with all their outputs."""
    known = KNOWN.get(manifest.pack) or originals.describe_folder(folder)
    size, side = manifest.detector.input_size, manifest.recogniser.input_size
    shapes: dict[str, Shape] = {
        known.detectors[0]: (1, 3, size, size),
        known.recogniser: ("faces", 3, side, side),
    }
    sessions = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in shapes.items():
            path = Path(scratch) / name
            model = variants.fold(onnx.load(folder / name), path, shape)
            variants.apply_passes(model)
            onnx.save(model, path)
            sessions.append(pack.open_session(path, (CPU,)))
    return sessions


def _inputs(model: Path, manifest: Manifest) -> dict[bytes, tuple[Any, list[Any]]]:
    """Return the engine's inputs to the two networks for each photo: the whole photo, and each of its faces."""
    seen, embedded = map(_Recording, _own(model, manifest))
    heads = pack.load_heads(model, manifest.detector, seen)
    detecting = Detector(seen, manifest.detector.input_size, heads)
    embedding = Recogniser(embedded, mean=manifest.recogniser.mean, deviation=manifest.recogniser.deviation)
    inputs: dict[bytes, tuple[Any, list[Any]]] = {}
    for data in {data for name in material.SETS for data in material.photo_set(name)}:
        image = simplejpeg.decode_jpeg(data, colorspace="BGR")
        embedding.embed([aligned_crop(image, landmarks) for landmarks in detecting.detect(image).landmarks])
        inputs[data] = seen.inputs.pop(), list(embedded.inputs.pop())
    return inputs


def _run_all(calls: queue.SimpleQueue[Callable[[], Any] | None]) -> None:
    def target() -> None:
        while (call := calls.get()) is not None:
            call()

    threads = [threading.Thread(target=target) for _ in range(THREADS)]
    for thread in threads:
        calls.put(None)
        thread.start()
    for thread in threads:
        thread.join()


SIDES: dict[str, Callable[[Path, Path], Callable[[Photos], int]]] = {
    "engine": engine,
    "reference": reference,
    "bare": bare,
    "bare+jpeg": partial(bare, decode=True),
    "own+jpeg": partial(bare, decode=True, own=True),
}


def main(side: str, folder: Path, model: Path) -> None:
    """Measure the sets named on standard input until it ends."""
    sets = {name: material.photo_set(name) for name in material.SETS}
    work = SIDES[side](folder, model)
    work(sets["web"])
    _answer(ready=True)
    for line in sys.stdin:
        photos = PASSES * sets[line.strip()]
        wall, processor = time.perf_counter(), time.process_time()
        faces = work(photos)
        _answer(
            seconds=time.perf_counter() - wall,
            processor_seconds=time.process_time() - processor,
            faces=faces,
            photos=len(photos),
        )


def _answer(**values: object) -> None:
    print(json.dumps(values), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
