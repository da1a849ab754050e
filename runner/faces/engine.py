"""The engine: many photos over a few threads, crops of several photos in one call of the recogniser."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import cv2

from runner.errors import OutOfMemoryError, TooManyFacesError
from runner.faces import pack
from runner.faces.alignment import crop
from runner.faces.detector import Detections, Detector
from runner.faces.hardware import choose_provider, thread_count
from runner.faces.recogniser import Recogniser

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face: box x1, y1, x2, y2 and landmarks (5, 2) in pixels, score 0 to 1, embedding (512,) of length 1."""

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    embedding: NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Pending:
    """A photo whose faces are found and cropped, and not all embedded yet."""

    future: Future[list[Face]]
    detections: Detections
    embeddings: list[NDArray[np.float32]]


class Engine:
    """Detects and embeds. `submit` and `analyse` may be called from any thread.

    Each thread takes photos one by one and gathers their crops; it embeds as soon as a batch is full, and what
    remains as soon as no photo is waiting. A photo's pixels are let go before its faces are embedded.
    """

    def __init__(
        self,
        detector: Detector,
        recogniser: Recogniser,
        *,
        model: str,
        threads: int,
        batch_size: int,
        max_faces: int,
    ) -> None:
        self.model = model
        self.threads = threads
        self._detector = detector
        self._recogniser = recogniser
        self._batch_size = batch_size
        self._max_faces = max_faces
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Image], Future[list[Face]]] | None] = queue.SimpleQueue()
        self._busy = [0.0] * threads
        # More threads of OpenCV's own would only compete with ours.
        cv2.setNumThreads(1)
        self._workers = [
            threading.Thread(target=self._work, args=(number,), name=f"engine-{number}", daemon=True)
            for number in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("auto",),
        batch_size: int = 0,
        max_faces: int = 1000,
    ) -> Self:
        """Load the baked pack in `folder`. Raises `ModelError`, and `SettingsError` for providers."""
        import onnxruntime

        manifest = pack.read_manifest(folder)
        choice = choose_provider(providers, onnxruntime.get_available_providers(), batch_size)
        detector = pack.open_session(pack.read_graph(folder, manifest.detector), choice.provider)
        recogniser = pack.open_session(pack.read_graph(folder, manifest.recogniser), choice.provider)
        return cls(
            Detector(detector, manifest.detector.input_size),
            Recogniser(recogniser),
            model=manifest.model,
            threads=thread_count(threads),
            batch_size=choice.batch_size,
            max_faces=max_faces,
        )

    @property
    def busy_seconds(self) -> float:
        """How long the threads have worked, added up."""
        return sum(self._busy)

    def submit(self, load: Callable[[], Image]) -> Future[list[Face]]:
        """Return a future of the faces in the image that `load` returns, BGR (height, width, 3).

        `load` runs in a thread of the engine; what it raises is the future's exception, and so are
        `TooManyFacesError` and `OutOfMemoryError`.
        """
        future: Future[list[Face]] = Future()
        self._tasks.put((load, future))
        return future

    def analyse(self, image: Image) -> list[Face]:
        """Return the faces of one image, in this thread, the surest first."""
        detections = self._detector.detect(image)
        crops = self._crops(image, detections)
        embeddings = [row for part in _parts(crops, self._batch_size) for row in self._recogniser.embed(part)]
        return _faces(detections, embeddings)

    def close(self) -> None:
        """End the threads after what was submitted."""
        for _ in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self, number: int) -> None:
        waiting: list[tuple[_Pending, Image]] = []  # a crop and the photo it is of
        while True:
            try:
                task = self._tasks.get_nowait() if waiting else self._tasks.get()
            except queue.Empty:
                waiting = self._embed(number, waiting, everything=True)
                continue
            if task is None:
                self._embed(number, waiting, everything=True)
                return
            waiting += self._detect(number, *task)
            waiting = self._embed(number, waiting, everything=False)

    def _detect(
        self, number: int, load: Callable[[], Image], future: Future[list[Face]]
    ) -> list[tuple[_Pending, Image]]:
        if not future.set_running_or_notify_cancel():
            return []
        started = time.monotonic()
        try:
            image = load()
            detections = self._detector.detect(image)
            crops = self._crops(image, detections)
        except Exception as error:  # noqa: BLE001 - it is the future's, and the thread goes on
            future.set_exception(_typed(error))
            return []
        finally:
            self._busy[number] += time.monotonic() - started
        if not crops:
            future.set_result([])
        pending = _Pending(future, detections, [])
        return [(pending, one) for one in crops]

    def _crops(self, image: Image, detections: Detections) -> list[Image]:
        if len(detections) > self._max_faces:
            raise TooManyFacesError(f"{len(detections)} found, {self._max_faces} allowed")
        return [crop(image, landmarks) for landmarks in detections.landmarks]

    def _embed(
        self, number: int, waiting: list[tuple[_Pending, Image]], *, everything: bool
    ) -> list[tuple[_Pending, Image]]:
        """Embed full batches (or `everything`) and return what still waits."""
        started = time.monotonic()
        while waiting and (everything or len(waiting) >= self._batch_size):
            batch, waiting = waiting[: self._batch_size], waiting[self._batch_size :]
            try:
                rows = self._recogniser.embed([one for _, one in batch])
            except Exception as error:  # noqa: BLE001 - as in _detect
                for pending, _ in batch:
                    if not pending.future.done():
                        pending.future.set_exception(_typed(error))
                continue
            for (pending, _), row in zip(batch, rows, strict=True):
                pending.embeddings.append(row)
                if len(pending.embeddings) == len(pending.detections) and not pending.future.done():
                    pending.future.set_result(_faces(pending.detections, pending.embeddings))
        self._busy[number] += time.monotonic() - started
        return waiting

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _faces(detections: Detections, embeddings: Sequence[NDArray[np.float32]]) -> list[Face]:
    found = zip(detections.boxes, detections.scores, detections.landmarks, embeddings, strict=True)
    return [Face(box, float(score), landmarks, embedding) for box, score, landmarks, embedding in found]


def _parts(crops: Sequence[Image], size: int) -> list[Sequence[Image]]:
    return [crops[start : start + size] for start in range(0, len(crops), size)]


def _typed(error: Exception) -> Exception:
    """Return the error that says what it was: OpenCV and onnxruntime report a lack of memory in their own ways."""
    text = str(error)
    if isinstance(error, MemoryError) or "Insufficient memory" in text or "bad allocation" in text:
        return OutOfMemoryError()
    return error
