"""The engine: a few threads that find and embed the faces of many photos."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import onnxruntime

from runner.errors import DeviceError, OutOfMemoryError, TooManyFacesError
from runner.faces import pack
from runner.faces.alignment import aligned_crop
from runner.faces.arrays import Float32Array, Image
from runner.faces.cpu import blocked_layout, thread_count
from runner.faces.detector import Detections, Detector
from runner.faces.providers import CPU, ProviderChoice, ProviderError, choose_providers
from runner.faces.recogniser import Recogniser
from runner.logs import logger
from runner.settings import Settings

# All threads embed once this many crops wait, when no photo is left, or when a crop has waited this long.
CROPS_TO_EMBED = 32
MAX_CROP_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face: `box` (4,) as x1, y1, x2, y2 and `landmarks` (5, 2) in pixels, `score` 0 to 1, `embedding` (512,).

    The embedding has L2 norm 1, so that the dot product of two is their cosine similarity.
    """

    box: Float32Array
    score: float
    landmarks: Float32Array
    embedding: Float32Array

    def to_bytes(self) -> bytes:
        """Return the face as one row of float32, little-endian: box, landmarks, score, embedding."""
        row = np.concatenate([self.box, self.landmarks.ravel(), [self.score], self.embedding])
        return row.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the face of a row of `to_bytes`. Raises `ValueError` if it is too short."""
        row = np.frombuffer(data, dtype="<f4").astype(np.float32)
        box, landmarks, score, embedding = np.split(row, [4, 14, 15])
        return cls(box, float(score[0]), landmarks.reshape(5, 2), embedding)


@dataclass(slots=True, eq=False)
class _Photo:
    """A photo whose faces are detected and cropped; `embeddings` holds the finished ones by face index."""

    future: Future[list[Face]]
    detections: Detections
    embeddings: dict[int, Float32Array] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Crop:
    """The crop of one face, waiting for the recogniser since the monotonic time `since`."""

    photo: _Photo
    index: int
    pixels: Image
    since: float = field(default_factory=time.monotonic)


class Engine:
    """Detects and embeds faces. `submit` may be called from any thread.

    Each thread takes one photo at a time and puts the crops of its faces into a common queue. When enough wait, or no
    photo does, all threads embed until less than a batch is left: threads that run the same network at the same time
    share its weights in the caches (4% of all CPU time). The pixels of a photo are released before its faces are
    embedded.
    """

    def __init__(
        self,
        detector: Detector,
        recogniser: Recogniser,
        *,
        model: str,
        tuned: bool,
        threads: int,
        choice: ProviderChoice,
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
        self._changed = threading.Condition()  # protects the four attributes above
        self._busy = [0.0] * threads
        cv2.setNumThreads(1)  # OpenCV's own threads would only compete with these
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
        """Load the baked pack in `folder` under the first of `providers` that starts.

        0 threads means one per available CPU, a batch size of 0 the provider's own. The tuned graphs are used if
        they fit this CPU, unless `tuned` is false. Raises `ModelError`, `DeviceError` if no provider starts, and
        `SettingsError` for `providers`.
        """
        manifest = pack.read_manifest(folder)
        pack.verify_checksums(folder, manifest)
        layout = blocked_layout(onnxruntime.__version__)
        fits = tuned and layout != "" and manifest.tuned_for == layout
        failures: list[str] = []
        for choice in choose_providers(providers, onnxruntime.get_available_providers(), batch_size):
            use_tuned = fits and choice.chain[0] == CPU
            try:
                detector, recogniser = open_models(folder, manifest, choice.chain, tuned=use_tuned)
            except ProviderError as error:
                failures.append(f"{choice.name} could not be started ({error})")
                logger().warning(
                    "provider failed",
                    extra={"provider": choice.name, "error": {"code": DeviceError.code, "message": str(error)}},
                )
                continue
            reasons = [*failures, choice.reason] if choice.reason else failures
            return cls(
                detector,
                recogniser,
                model=manifest.model,
                tuned=use_tuned,
                threads=thread_count(threads),
                choice=choice._replace(reason="; ".join(reasons) or "the preferred one"),
                max_faces=max_faces,
            )
        raise DeviceError(
            f"{'; '.join(failures)}: check that the pod requests a GPU and that its node has the driver and the device "
            "plug-in, or add cpu to RUNNER_PROVIDERS"
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load the pack of `settings` with its limits. Raises what `open` raises."""
        return cls.open(
            settings.model_dir,
            threads=settings.threads,
            providers=settings.providers,
            batch_size=settings.batch_size,
            max_faces=settings.max_faces,
        )

    @property
    def busy_seconds(self) -> float:
        """The time that all threads together have spent working: at most `threads` times the elapsed time."""
        return sum(self._busy)

    def submit(self, load: Callable[[], Image]) -> Future[list[Face]]:
        """Return a future of the faces in the image that `load` returns, by descending score.

        `load` runs in a thread of the engine and returns BGR pixels (height, width, 3). The same thread's next `load`
        may overwrite them: they are no longer used then. What `load` raises becomes the future's exception, as do
        `TooManyFacesError`, `OutOfMemoryError`, and `ValueError` for an array that is not an image. Raises
        `RuntimeError` after `close`.
        """
        future: Future[list[Face]] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._photos.append((load, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self, number: int) -> None:
        while (work := self._next()) is not None:
            started = time.monotonic()
            work()
            del work  # it refers to the bytes of the photo or to crops, and the next wait may be long
            self._busy[number] += time.monotonic() - started

    def _next(self) -> Callable[[], None] | None:
        """Wait for work and return it, or None once the engine is closed and nothing is left to start.

        A thread that is still detecting then embeds the faces it finds by itself.
        """
        with self._changed:
            while True:
                if self._crops_go_first():
                    size = min(self._batch_size, len(self._crops))
                    return partial(self._embed, [self._crops.popleft() for _ in range(size)])
                if self._photos:
                    return partial(self._find, *self._photos.popleft())
                if self._closing:
                    return None
                self._changed.wait()

    def _crops_go_first(self) -> bool:
        if len(self._crops) >= max(CROPS_TO_EMBED, self._batch_size):
            self._embedding = True
        elif len(self._crops) < self._batch_size:
            self._embedding = False
        if not self._crops:
            return False
        waited_long = time.monotonic() - self._crops[0].since > MAX_CROP_WAIT_SECONDS
        return self._embedding or not self._photos or waited_long

    def _find(self, load: Callable[[], Image], future: Future[list[Face]]) -> None:
        """Load a photo, detect its faces, and queue their crops."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            detections, crops = self._detect(load())
        except Exception as error:  # noqa: BLE001 - it becomes the future's exception, and the thread goes on
            future.set_exception(_translated(error))
            return
        if not crops:
            future.set_result([])
            return
        photo = _Photo(future, detections)
        with self._changed:
            self._crops.extend(_Crop(photo, index, pixels) for index, pixels in enumerate(crops))
            self._changed.notify_all()

    def _embed(self, crops: list[_Crop]) -> None:
        """Embed a batch, and complete the photos whose last faces were in it."""
        photos = {id(crop.photo): crop.photo for crop in crops}
        try:
            rows = self._recogniser.embed([crop.pixels for crop in crops])
        except Exception as error:  # noqa: BLE001 - as in _find
            if len(photos) == 1:
                self._fail(crops[0].photo, _translated(error))
                return
            for photo in photos.values():  # a photo that makes the batch fail must not fail the others
                self._embed([crop for crop in crops if crop.photo is photo])
            return
        with self._changed:
            for crop, row in zip(crops, rows, strict=True):
                crop.photo.embeddings[crop.index] = row
            finished = [photo for photo in photos.values() if len(photo.embeddings) == len(photo.detections)]
        for photo in finished:
            embeddings = [photo.embeddings[index] for index in range(len(photo.detections))]
            photo.future.set_result(_faces(photo.detections, embeddings))

    def _fail(self, photo: _Photo, error: Exception) -> None:
        """Set the exception of the photo's future, unless it has one, and drop its waiting crops."""
        with self._changed:
            for crop in [crop for crop in self._crops if crop.photo is photo]:
                self._crops.remove(crop)
            if not photo.future.done():
                photo.future.set_exception(error)

    def _detect(self, image: Image) -> tuple[Detections, list[Image]]:
        """Return the faces of an image, and their crops."""
        detections = self._detector.detect(image)
        if len(detections) > self._max_faces:
            raise TooManyFacesError(f"{len(detections)} found, {self._max_faces} allowed")
        return detections, [aligned_crop(image, landmarks) for landmarks in detections.landmarks]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_models(
    folder: Path, manifest: pack.Manifest, providers: Sequence[str], *, tuned: bool
) -> tuple[Detector, Recogniser]:
    """Return both models of a pack, checked. Raises `ModelError` if one does not match the manifest.

    Raises `ProviderError` if `providers[0]` does not start.
    """
    graph = manifest.detector
    session = pack.open_graph(folder, graph, providers, tuned=tuned)
    pack.check_detector(session, graph)
    detector = Detector(session, graph.input_size, pack.load_heads(folder, graph, session))
    graph = manifest.recogniser
    session = pack.open_graph(folder, graph, providers, tuned=tuned)
    pack.check_recogniser(session, graph)
    return detector, Recogniser(session, mean=graph.mean, deviation=graph.deviation)


def _faces(detections: Detections, embeddings: Sequence[Float32Array]) -> list[Face]:
    found = zip(detections.boxes, detections.scores, detections.landmarks, embeddings, strict=True)
    return [Face(box, float(score), landmarks, embedding) for box, score, landmarks, embedding in found]


def _translated(error: Exception) -> Exception:
    """Return `OutOfMemoryError` for each way in which Python, OpenCV and onnxruntime report a lack of memory."""
    text = str(error)
    if isinstance(error, MemoryError) or "Insufficient memory" in text or "bad allocation" in text:
        return OutOfMemoryError()
    return error
