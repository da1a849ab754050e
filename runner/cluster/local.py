"""`debug --local`: one job in this process, the way a run does it, without writing to any server.

Fetching, decoding, faces and matching are the functions of the run. What a run adds (lease, status, embeddings,
answer) is left out, and the connection for matching is read-only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import JobError, NoFaceInSelfieError, SettingsError
from runner.jobs import CompareJob, ProcessJob, decode_compare, decode_process, kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.faces.engine import Engine, Face
    from runner.settings import Settings

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass
class Outcome:
    """What came of the job: as far as it got, and its error where it got no further."""

    kind: str
    subject: str | None = None
    size: tuple[int, int] | None = None  # width, height of the upright image in pixels
    faces: Sequence[Face] | None = None
    model: str = ""
    scores: dict[str, float] | None = None  # of a comparison: matched photo → similarity, in the order of the album
    with_embeddings: int | None = None
    picture: Path | None = None
    error: JobError | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as the stage `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.milliseconds[name] = round((time.monotonic() - start) * 1000, 1)

    def document(self) -> dict[str, object]:
        """Return what is printed with --json."""
        faces = self.faces
        return {
            "kind": self.kind,
            "photo" if self.kind == "process" else "comparison": self.subject,
            "model": self.model or None,
            "size": self.size,
            "faces": None if faces is None else [_face(face) for face in faces],
            "matches": self.scores,
            "with_embeddings": self.with_embeddings,
            "picture": str(self.picture) if self.picture else None,
            "error": {"word": self.error.word, "sentence": str(self.error)} if self.error else None,
            "milliseconds": self.milliseconds,
        }

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        times = ", ".join(f"{name} {value:g} ms" for name, value in self.milliseconds.items())
        subject = f"{'photo' if self.kind == 'process' else 'comparison'} {self.subject or 'without a readable id'}"
        if self.faces is None:
            yield f"{subject}: no result ({times or 'nothing was begun'})"
        else:
            width, height = self.size or (0, 0)
            yield f"{subject}: {len(self.faces)} faces in {width}x{height} pixels with {self.model} ({times})"
        for number, face in enumerate(self.faces or (), 1):
            left, top, right, bottom = (float(value) for value in face.box)
            yield f"  face {number}: score {face.score:.3f}, box {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}"
        if self.scores is not None:
            yield f"  {len(self.scores)} matches among {self.with_embeddings} photos with embeddings"
            for photo, score in self.scores.items():
                yield f"  {score:.4f}  {photo}"
        if self.picture:
            yield f"  saved {self.picture}"
        if self.error:
            yield f"  {self.error.word}: {self.error}"


def run_locally(payload: bytes, settings: Settings, picture: Path | None) -> Outcome:
    """Do the job; a `JobError` is part of the outcome.

    Only where `picture` is given, the image is saved, with what was found on it.

    Raises `ModelError`, `SettingsError` and `UnreachableError` as a run does.
    """
    outcome = Outcome(kind_of(payload))
    try:
        _work(payload, settings, picture, outcome)
    except JobError as error:
        outcome.error = error
        outcome.subject = outcome.subject or getattr(error, "subject", None)
    return outcome


def _work(payload: bytes, settings: Settings, picture: Path | None, outcome: Outcome) -> None:
    job: ProcessJob | CompareJob
    if outcome.kind == "process":
        job = decode_process(payload)
        outcome.subject = job.photo_id
        with outcome.stage("fetch"):
            data = _fetch(job.image_url, settings)
    else:
        job = decode_compare(payload)
        outcome.subject, data = job.job_id, job.selfie
    from runner.images.decode import decode

    with outcome.stage("decode"):
        image = decode(data, max_pixels=settings.max_pixels, max_bytes=settings.max_image_bytes)
    outcome.size = (image.shape[1], image.shape[0])
    with outcome.stage("model"):
        engine = _engine(settings)
    outcome.model = engine.model
    with engine, outcome.stage("faces"):
        outcome.faces = engine.analyse(image)
    if picture is not None:
        outcome.picture = _save(image, outcome.faces, picture)
    if isinstance(job, CompareJob):
        if not outcome.faces:
            raise NoFaceInSelfieError
        with outcome.stage("match"):
            _match(job, outcome, settings)


def _fetch(url: str, settings: Settings) -> bytes:
    from runner.images.fetch import Fetcher

    fetcher = Fetcher.from_settings(settings)
    try:
        return fetcher.fetch(url)
    finally:
        fetcher.close()


def _engine(settings: Settings) -> Engine:
    from runner.faces.engine import Engine

    return Engine.open(
        settings.model_dir,
        threads=1,
        providers=settings.providers,
        batch_size=settings.batch_size,
        max_faces=settings.max_faces,
    )


def _match(job: CompareJob, outcome: Outcome, settings: Settings) -> None:
    import numpy as np

    from runner.store import schema
    from runner.store.database import connect
    from runner.store.embeddings import EmbeddingStore

    if not settings.embeddings_database_url:
        raise SettingsError("EMBEDDINGS_DATABASE_URL or DATABASE_URL is missing: a comparison reads the embeddings")
    with connect(
        settings.embeddings_database_url,
        seconds=settings.connect_seconds,
        application_name="spottmee-worker debug",
        variable="EMBEDDINGS_DATABASE_URL",
    ) as connection:
        connection.execute("SET default_transaction_read_only = on")
        schema.check(connection)
        selfie = np.stack([face.embedding for face in outcome.faces or ()])
        found = EmbeddingStore(connection, outcome.model).match(selfie, job.stored_ids, job.threshold)
    outcome.scores = {photo: round(found.scores[photo], 6) for photo in job.stored_ids if photo in found.scores}
    outcome.with_embeddings = found.with_embeddings


def check_picture(name: str) -> Path:
    """Return the path of the picture to save, or raise `SettingsError` where its kind cannot be written."""
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"--out {name} must end in one of {', '.join(SUFFIXES)}")
    return path


def _save(image: NDArray[np.uint8], faces: Sequence[Face], path: Path) -> Path:
    """Write the picture for its owner's eyes only: it shows people."""
    import cv2

    _, encoded = cv2.imencode(path.suffix.lower(), annotate(image, faces))
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123 - a mode
            os.fchmod(file.fileno(), 0o600)  # a file that was there keeps its mode otherwise
            file.write(encoded.tobytes())
    except OSError as error:
        raise SettingsError(f"the picture cannot be written to {path} (--out): {error.strerror}") from None
    return path


def annotate(image: NDArray[np.uint8], faces: Sequence[Face]) -> NDArray[np.uint8]:
    """Return a copy of `image`, BGR, with box, score and landmarks of every face drawn on it."""
    import cv2

    drawn: Any = image.copy()
    width = max(1, max(image.shape[:2]) // 500)  # visible on 300 pixels and on 8,000
    green, red = (80, 220, 60), (60, 60, 255)
    for number, face in enumerate(faces, 1):
        left, top, right, bottom = (round(float(value)) for value in face.box)
        cv2.rectangle(drawn, (left, top), (right, bottom), green, width)
        for x, y in face.landmarks:
            cv2.circle(drawn, (round(float(x)), round(float(y))), width + 1, red, -1)
        label = f"{number}: {face.score:.2f}"
        place = (max(0, left), top - 3 * width if top > 20 * width else bottom + 15 * width)
        cv2.putText(drawn, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * width, green, width, cv2.LINE_AA)
    result: NDArray[np.uint8] = drawn
    return result


def _face(face: Face) -> dict[str, object]:
    return {
        "box": [round(float(value), 2) for value in face.box],
        "score": round(face.score, 4),
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.landmarks],
    }
