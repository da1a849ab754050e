"""The engine: many photos over a few threads, crops of several photos in one call of the recogniser."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import cv2

from runner.errors import ModelError, OutOfMemoryError, TooManyFacesError
from runner.faces import pack
from runner.faces.alignment import crop
from runner.faces.cpu import CPU, FIRST, Choice, ProviderError, blocked_layout, choose_providers, thread_count
from runner.faces.detector import Detections, Detector
from runner.faces.recogniser import Recogniser
from runner.logs import logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.faces.pack import Manifest

    Image = NDArray[np.uint8]

# Crops wait until there are so many, or no photo is left, but not longer than this many seconds.
GATHERED = 32
PATIENCE = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face: box x1, y1, x2, y2 and landmarks (5, 2) in pixels, score 0 to 1, embedding (512,) of length 1."""

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Photo:
    """A photo whose faces are found and cropped; `embeddings` has those that are embedded, by number."""

    future: Future[list[Face]]
    detections: Detections
    embeddings: dict[int, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Crop:
    """One face of a photo, on its way to the recogniser since the moment `since`."""

    photo: _Photo
    number: int
    pixels: Image
    since: float = field(default_factory=time.monotonic)


class Engine:
    """Detects and embeds. `submit` and `analyse` may be called from any thread.

    Threads take photos one by one, and put the crops of their faces where all threads find them. When many have
    gathered, or no photo waits, all threads embed until less than a batch is left: threads that run the same network
    at the same time share its weights in the caches (4% of all processor time). A photo's pixels are let go before
    its faces are embedded.
    """

    def __init__(
        self,
        detector: Detector,
        recogniser: Recogniser,
        *,
        model: str,
        tuned: bool,
        threads: int,
        choice: Choice,
        max_faces: int,
    ) -> None:
        self.model = model
        self.tuned = tuned
        self.threads = threads
        self.choice = choice
        self._detector = detector
        self._recogniser = recogniser
        self._batch_size = choice.batch_size
        self._max_faces = max_faces
        self._photos: deque[tuple[Callable[[], Image], Future[list[Face]]]] = deque()
        self._crops: deque[_Crop] = deque()
        self._closing = False
        self._embedding = False
        self._work_or_end = threading.Condition()  # guards the four above
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
        tuned: bool = True,
    ) -> Self:
        """Load the baked pack in `folder` under the first provider that can be started.

        The graphs tuned for a processor are taken where this is one like it, unless `tuned` is false. Raises
        `ModelError`, also where no provider can be started, and `SettingsError` for `providers`.
        """
        import onnxruntime

        manifest = pack.read_manifest(folder)
        pack.check(folder, manifest)
        layout = blocked_layout(onnxruntime.__version__)
        fits = tuned and layout != "" and manifest.tuned_for == layout
        choices = choose_providers(providers, onnxruntime.get_available_providers(), batch_size)
        failures: list[str] = []
        for choice in choices:
            own = fits and choice.providers[0] == CPU
            try:
                detector, recogniser = _open_models(folder, manifest, choice.providers, tuned=own)
            except ProviderError as error:
                failures.append(f"{choice.word} could not be started ({error})")
                logger().warning("provider failed", extra={"provider": choice.word, "detail": str(error)})
                continue
            reasons = failures if failures and choice.why == FIRST else [*failures, choice.why]
            return cls(
                detector,
                recogniser,
                model=manifest.model,
                tuned=own,
                threads=thread_count(threads),
                choice=replace(choice, why="; ".join(reasons)),
                max_faces=max_faces,
            )
        raise ModelError(
            f"{'; '.join(failures)}: see that the device and its driver are in this container, or add cpu to "
            "RUNNER_PROVIDERS"
        )

    @property
    def busy_seconds(self) -> float:
        """How long the threads have worked, added up: at most `threads` times what a clock on the wall says."""
        return sum(self._busy)

    def submit(self, load: Callable[[], Image]) -> Future[list[Face]]:
        """Return a future of the faces in the image that `load` returns, BGR (height, width, 3), the surest first.

        `load` runs in a thread of the engine, and its image may be overwritten when the same thread loads the next
        one: nothing of it is used any more then. What it raises is the future's exception, and so are
        `TooManyFacesError` and `OutOfMemoryError`. Raises `RuntimeError` after `close`.
        """
        future: Future[list[Face]] = Future()
        with self._work_or_end:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._photos.append((load, future))
            self._work_or_end.notify()
        return future

    def analyse(self, image: Image) -> list[Face]:
        """Return the faces of one image, in this thread, the surest first."""
        detections = self._detect(image)
        crops = [crop(image, landmarks) for landmarks in detections.landmarks]
        parts = [crops[start : start + self._batch_size] for start in range(0, len(crops), self._batch_size)]
        return _faces(detections, [row for part in parts for row in self._recogniser.embed(part)])

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        with self._work_or_end:
            self._closing = True
            self._work_or_end.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self, number: int) -> None:
        while (work := self._next()) is not None:
            started = time.monotonic()
            work()
            del work  # it holds the photo's bytes or its crops, and the next wait may be long
            self._busy[number] += time.monotonic() - started

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do and return it, or None when the engine is closed and nothing is left to begin.

        A thread that is still at a photo then embeds its faces itself.
        """
        with self._work_or_end:
            while True:
                if self._crops_go_first():
                    size = min(self._batch_size, len(self._crops))
                    return partial(self._embed, [self._crops.popleft() for _ in range(size)])
                if self._photos:
                    return partial(self._find, *self._photos.popleft())
                if self._closing:
                    return None
                self._work_or_end.wait()

    def _crops_go_first(self) -> bool:
        if len(self._crops) >= max(GATHERED, self._batch_size):
            self._embedding = True
        elif len(self._crops) < self._batch_size:
            self._embedding = False
        if not self._crops:
            return False
        return self._embedding or not self._photos or time.monotonic() - self._crops[0].since > PATIENCE

    def _find(self, load: Callable[[], Image], future: Future[list[Face]]) -> None:
        """Load a photo, find its faces, and put their crops among those that wait."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            image = load()
            detections = self._detect(image)
            crops = [crop(image, landmarks) for landmarks in detections.landmarks]
        except Exception as error:  # noqa: BLE001 - it is the future's, and the thread goes on
            future.set_exception(_typed(error))
            return
        if not crops:
            future.set_result([])
            return
        photo = _Photo(future, detections)
        with self._work_or_end:
            self._crops.extend(_Crop(photo, number, pixels) for number, pixels in enumerate(crops))
            self._work_or_end.notify_all()

    def _embed(self, crops: list[_Crop]) -> None:
        """Embed a batch, and finish the photos whose last faces were in it."""
        photos = {id(one.photo): one.photo for one in crops}
        try:
            rows = self._recogniser.embed([one.pixels for one in crops])
        except Exception as error:  # noqa: BLE001 - as in _find
            if len(photos) == 1:
                self._fail(crops[0].photo, _typed(error))
                return
            for photo in photos.values():  # one of them may be at fault: the others shall not suffer for it
                self._embed([one for one in crops if one.photo is photo])
            return
        with self._work_or_end:
            for one, row in zip(crops, rows, strict=True):
                one.photo.embeddings[one.number] = row
            finished = [photo for photo in photos.values() if len(photo.embeddings) == len(photo.detections)]
        for photo in finished:
            embeddings = [photo.embeddings[number] for number in range(len(photo.detections))]
            photo.future.set_result(_faces(photo.detections, embeddings))

    def _fail(self, photo: _Photo, error: Exception) -> None:
        """Give the photo's future the error, unless it has one, and drop the crops that still wait."""
        with self._work_or_end:
            for one in [one for one in self._crops if one.photo is photo]:
                self._crops.remove(one)
            if not photo.future.done():
                photo.future.set_exception(error)

    def _detect(self, image: Image) -> Detections:
        detections = self._detector.detect(image)
        if len(detections) > self._max_faces:
            raise TooManyFacesError(f"{len(detections)} found, {self._max_faces} allowed")
        return detections

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_models(
    folder: Path, manifest: Manifest, providers: Sequence[str], *, tuned: bool
) -> tuple[Detector, Recogniser]:
    about = manifest.detector
    session = pack.open_graph(folder, about, providers, tuned=tuned)
    pack.check_detector(session, about)
    detector = Detector(session, about.input_size, pack.read_heads(folder, about, session))
    about = manifest.recogniser
    session = pack.open_graph(folder, about, providers, tuned=tuned)
    pack.check_recogniser(session, about)
    return detector, Recogniser(session, mean=about.mean, deviation=about.deviation)


def _faces(detections: Detections, embeddings: Sequence[NDArray[np.float32]]) -> list[Face]:
    found = zip(detections.boxes, detections.scores, detections.landmarks, embeddings, strict=True)
    return [Face(box, float(score), landmarks, embedding) for box, score, landmarks, embedding in found]


def _typed(error: Exception) -> Exception:
    """Return the error that says what it was: OpenCV and onnxruntime report a lack of memory in their own ways."""
    text = str(error)
    if isinstance(error, MemoryError) or "Insufficient memory" in text or "bad allocation" in text:
        return OutOfMemoryError()
    return error
