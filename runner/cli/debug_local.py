"""`debug --local`: a single job in this process, with the handlers of a run, without writing anything."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runner import output
from runner.cli.files import write_private
from runner.errors import CheckFailedError, JobError, SettingsError
from runner.faces.engine import Engine, Face
from runner.images.decode import decode
from runner.images.fetch import Fetcher
from runner.queue.leases import Lease
from runner.settings import Settings
from runner.store.embeddings import FaceLike, Matches
from runner.store.photos import NotStored
from runner.store.repository import Repository
from runner.store.results import ResultStore
from runner.worker.kinds import Kind, Services, kind_of
from runner.worker.messages import CompareJob
from runner.worker.task import AnyTask, Task

BELOW_ALL = -2.0  # every cosine similarity is greater
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class _ReadOnlyRepository(Repository):
    """Reads stored embeddings, and reports every write as successful without doing it."""

    def __init__(self, settings: Settings) -> None:
        """Open no connection: a photo needs no database."""
        self.model = ""
        self.similarities: dict[str, float] = {}
        self._settings = settings

    def begin(
        self,
        photo_ids: Sequence[str],
        until: Callable[[], float] = lambda: math.inf,  # noqa: ARG002 - no other run has this job
    ) -> set[str]:
        """Report that every photo exists."""
        return set(photo_ids)

    def store(
        self,
        outcomes: Mapping[str, Sequence[FaceLike] | None],  # noqa: ARG002 - nothing is written
        still_owned: Callable[[str], bool],  # noqa: ARG002 - no other run has this job
    ) -> NotStored:
        """Report that every outcome is stored."""
        return NotStored()

    def match(
        self, selfie: NDArray[np.float32] | Sequence[NDArray[np.float32]], stored_ids: Collection[str], threshold: float
    ) -> Matches:
        """Compare a selfie with an album, and keep the similarity of every photo.

        Raises `SettingsError` if no database is configured.
        """
        if not self._settings.embeddings_database_url:
            raise SettingsError(
                "EMBEDDINGS_DATABASE_URL is missing: set it (or DATABASE_URL): a comparison reads the embeddings"
            )
        with Repository(self._settings, self.model, application_name="spottmee-worker debug") as repository:
            found = repository.match(selfie, stored_ids, BELOW_ALL)
        self.similarities = found.scores
        matched = {photo: similarity for photo, similarity in found.scores.items() if similarity > threshold}
        return found._replace(scores=matched)


class _DiscardedResults(ResultStore):
    """Keeps the detail of the last result instead of writing the result to Redis."""

    def __init__(self) -> None:
        """Open no connection."""
        self.detail: Mapping[str, Any] = {}

    def answer(self, job_id: str, matched_ids: Sequence[str], detail: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the task has them too
        """Keep the detail; True: the result needs no further writes."""
        self.detail = detail
        return True

    def confirm(self, *_arguments: object, **_options: object) -> bool:
        """Report that the result exists."""
        return True


@dataclass
class Result:
    """The result of the job; if it failed, the results of the earlier stages, and the error.

    `size` is the width and height of the upright image in pixels. For a comparison, `scores` is matched photo → cosine
    similarity, in the order of the album, and `similarities` that of every photo that has embeddings of the model.
    """

    kind: Kind
    task: AnyTask
    model: str = ""
    size: tuple[int, int] | None = None
    scores: Mapping[str, float] | None = None
    similarities: Mapping[str, float] | None = None
    with_embeddings: int | None = None
    picture: Path | None = None

    @property
    def subject(self) -> str | None:
        """The id of the photo or comparison, if it is known."""
        job, error = self.task.job, self.task.error
        if job is not None:
            return str(getattr(job, "photo_id", None) or job.job_id)
        return error.subject if error else None

    @property
    def milliseconds(self) -> dict[str, float]:
        """Return stage → duration."""
        return {name: round(seconds * 1000, 1) for name, seconds in self.task.stages.items()}

    def document(self) -> dict[str, object]:
        """Return what is printed with --json."""
        faces, error = self.task.faces, self.task.error
        job = self.task.job
        return {
            "queue": self.kind.queue,
            self.kind.noun: self.subject,
            "model": self.model or None,
            "size": self.size,
            "faces": None if faces is None else [_face(face) for face in faces],
            "scores": self.scores,
            "threshold": job.threshold if isinstance(job, CompareJob) else None,
            "similarities": self.similarities,
            "with_embeddings": self.with_embeddings,
            "image_file": str(self.picture) if self.picture else None,
            "error": error.document() if error else None,
            "stage_ms": self.milliseconds,
        }

    def lines(self) -> Iterator[str]:
        """Yield the result as plain text."""
        faces, error = self.task.faces, self.task.error
        times = ", ".join(f"{name} {value:g} ms" for name, value in self.milliseconds.items())
        subject = f"{self.kind.noun} {self.subject or '(no readable id)'}"
        if faces is None:
            yield f"{subject}: no result ({times or 'no stage was completed'})"
        else:
            width, height = self.size or (0, 0)
            yield f"{subject}: {len(faces)} faces in {width}x{height} pixels, model {self.model} ({times})"
        for number, face in enumerate(faces or (), 1):
            left, top, right, bottom = (float(value) for value in face.box)
            yield f"  face {number}: score {face.score:.3f}, box {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}"
        if isinstance(self.task.job, CompareJob) and self.similarities is not None:
            yield from _compared(self.task.job, self.similarities, self.scores or {})
        if self.picture:
            yield f"  saved {self.picture}"
        if error:
            yield f"  {error.code}: {error}"


def debug_locally(payload: bytes, settings: Settings, args: argparse.Namespace) -> int:
    """Process the job in this process, print its result, and return the exit code."""
    result = run_locally(payload, settings, check_picture(args.save_image) if args.save_image else None)
    if args.json:
        output.document(result.document(), indent=2)
    else:
        output.lines(result.lines())
    return CheckFailedError.exit_code if result.task.error else 0


def run_locally(payload: bytes, settings: Settings, picture: Path | None) -> Result:
    """Process the job; a `JobError` becomes part of the result.

    The image is saved only if `picture` is given, with the faces drawn on it. Raises `ModelError`, `SettingsError` and
    `UnreachableError` as a run does.
    """
    kind = kind_of(payload)
    task: AnyTask = Task(Lease("local", kind.queue, payload, attempts=1))
    result, repository, answers = Result(kind, task), _ReadOnlyRepository(settings), _DiscardedResults()
    fetcher = Fetcher.from_settings(settings)
    handler = kind.handler(Services(settings, answers, lambda: repository, fetcher, lambda _: True, lambda _: math.inf))
    try:
        task.job = kind.decode(payload)
        with task.stage("fetch"):
            data = handler.read(task)
        with task.stage("decode"):
            image = decode(data, max_pixels=settings.max_image_pixels, max_bytes=settings.max_image_bytes)
        result.size = (image.shape[1], image.shape[0])
        with task.stage("model"):
            engine = Engine.from_settings(replace(settings, threads=1))
        result.model = repository.model = engine.model
        with engine, task.stage("faces"):
            task.faces = engine.submit(lambda: image).result()
        if picture is not None:
            result.picture = _save(image, task.faces, picture)
    except JobError as error:
        task.error = error
    finally:
        fetcher.close()
    handler.conclude([task])
    if task.error is None and answers.detail:
        result.scores, result.with_embeddings = answers.detail["scores"], answers.detail["with_embeddings"]
        ids = task.job.stored_ids if isinstance(task.job, CompareJob) else ()
        found = repository.similarities
        result.similarities = {photo: round(found[photo], 6) for photo in ids if photo in found}
    return result


def _compared(job: CompareJob, similarities: Mapping[str, float], matches: Mapping[str, float]) -> Iterator[str]:
    """Yield for every photo of the album whether it matches, and why, most similar first."""
    yield (
        f"  {len(matches)} of {len(job.stored_ids)} photos match: {len(similarities)} have embeddings of this model, "
        f"and the threshold is {job.threshold:g}"
    )
    for photo, similarity in sorted(similarities.items(), key=lambda item: -item[1]):
        difference = similarity - job.threshold
        verdict = "match   " if photo in matches else "no match"
        yield f"  {similarity:.4f}  {verdict}  {difference:+.4f}  {photo}"
    for photo in job.stored_ids:
        if photo not in similarities:
            yield f"  -       no match  no embeddings of this model  {photo}"


def check_picture(name: str) -> Path:
    """Return the path of the image to save. Raises `SettingsError` if its format is not supported."""
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"--save-image {name} must end in one of {', '.join(SUFFIXES)}")
    return path


def _save(image: NDArray[np.uint8], faces: Sequence[Face], path: Path) -> Path:
    """Write the image with the faces drawn on it."""
    _, encoded = cv2.imencode(path.suffix.lower(), annotate(image, faces))
    write_private(path, encoded.tobytes(), "--save-image")
    return path


def annotate(image: NDArray[np.uint8], faces: Sequence[Face]) -> NDArray[np.uint8]:
    """Return a copy of `image` (BGR) with the box, score and landmarks of every face drawn on it."""
    drawn: Any = image.copy()
    width = max(1, max(image.shape[:2]) // 500)  # visible on images of 300 and of 8,000 pixels
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
