"""Comparisons: a selfie in, the ids of the photos that show its person out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.errors import NoFaceInSelfieError
from runner.store.results import AnswerWatch, ResultStore
from runner.worker.messages import CompareJob
from runner.worker.task import Outcome, State, Task

if TYPE_CHECKING:  # the start-up decides when these are imported
    from numpy import float32
    from numpy.typing import NDArray

    from runner.faces.engine import Face
    from runner.queue.leases import Lease
    from runner.store.stores import Stores


class ComparisonHandler:
    """INITIATED → PROCESSING → the matched ids, `[]` after a failure."""

    def __init__(
        self,
        results: ResultStore,
        watch: AnswerWatch,
        stores: Callable[[], Stores],
        owns: Callable[[Lease], bool],
    ) -> None:
        self._results = results
        self._watch = watch
        self._stores = stores
        self._owns = owns

    def start(self) -> None:
        """Write again what INITIATED has replaced since earlier runs ended."""
        self._results.heal()

    def begin(self, tasks: Sequence[Task[CompareJob]]) -> None:
        """Set the results to PROCESSING."""
        for task in tasks:
            if task.job is not None:
                self._results.begin(task.job.job_id)

    def read(self, task: Task[CompareJob]) -> bytes:
        """Return the selfie, which came with the job."""
        assert task.job is not None  # noqa: S101 - only accepted tasks are read
        return task.job.selfie

    def conclude(self, tasks: Sequence[Task[CompareJob]]) -> None:
        """Match and answer, one job after the other: each is one statement and one key."""
        for task in tasks:
            job_id = _job_id(task)
            if job_id is None:
                continue  # nobody knows which comparison: there is no answer to write
            if self._owns(task.lease):
                self._answer(task, job_id)
            else:
                task.outcome = Outcome.LOST

    def _answer(self, task: Task[CompareJob], job_id: str) -> None:
        matched, detail = self._match(task)
        if not self._results.answer(job_id, matched, detail):
            self._watch.add(job_id, matched, detail)
            task.state = State.UNCONFIRMED

    def _match(self, task: Task[CompareJob]) -> tuple[list[str], dict[str, object]]:
        """Return the matched ids in the order of the album, and the detail beside them."""
        job, faces = task.job, task.faces
        scores: dict[str, float] = {}
        with_embeddings = 0
        if job is not None and task.error is None:
            if faces:
                with task.stage("match"):
                    found = self._stores().match(_stack(faces), job.stored_ids, job.threshold)
                scores, with_embeddings = found.scores, found.with_embeddings
            else:
                task.error = NoFaceInSelfieError()
        matched = [photo_id for photo_id in job.stored_ids if photo_id in scores] if job else []
        error = task.error
        return matched, {
            "scores": {photo_id: round(scores[photo_id], 6) for photo_id in matched},
            "faces": len(faces or ()),
            "model": self._stores().model,
            "threshold": job.threshold if job else None,
            "stored_ids": len(job.stored_ids) if job else None,
            "with_embeddings": with_embeddings,
            "milliseconds": round((time.monotonic() - task.claimed_at) * 1000, 1),
            "error": {"word": error.word, "sentence": str(error)} if error else None,
        }

    def confirmed(self, tasks: Sequence[Task[CompareJob]]) -> list[Task[CompareJob]]:
        """Return those whose answer nothing can overwrite any more, or that were watched for long enough."""
        done = set(self._watch.poll())
        return [task for task in tasks if _job_id(task) in done]

    def stop_watching(self, tasks: Sequence[Task[CompareJob]]) -> None:  # noqa: ARG002 - the watch knows them
        """Leave the watched answers to `ResultStore.heal` of a later run."""
        self._watch.leave()


def _stack(faces: Sequence[Face]) -> NDArray[float32]:
    import numpy as np  # loaded long before: the engine found the faces

    return np.stack([face.embedding for face in faces])


def _job_id(task: Task[CompareJob]) -> str | None:
    if task.job is not None:
        return task.job.job_id
    return task.error.subject if task.error is not None else None
