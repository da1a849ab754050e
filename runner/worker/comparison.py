"""Compare jobs: a selfie in, the ids of the photos that show its person out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.errors import NoFaceInSelfieError
from runner.worker.messages import CompareJob, decode_compare
from runner.worker.task import Conclusion, Task

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from runner.faces.engine import Face
    from runner.queue.leases import Lease
    from runner.store.results import AnswerWatch, ResultStore
    from runner.store.stores import Stores


class CompareHandler:
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
        # A job that was pushed twice has two tasks and one answer.
        self._unconfirmed: dict[str, list[Task[CompareJob]]] = {}

    def decode(self, payload: bytes) -> CompareJob:
        """Return the job that a payload holds, or raise `InvalidJobError`."""
        return decode_compare(payload)

    def begin(self, tasks: Sequence[Task[CompareJob]]) -> None:
        """Set the results to PROCESSING."""
        for task in tasks:
            if task.job is not None:
                self._results.begin(task.job.job_id)

    def read(self, task: Task[CompareJob]) -> bytes:
        """Return the selfie, which came with the job."""
        assert task.job is not None  # noqa: S101 - only accepted tasks are read
        return task.job.selfie

    def conclude(self, tasks: Sequence[Task[CompareJob]]) -> dict[Task[CompareJob], Conclusion]:
        """Match and answer, one job after the other: each is one statement and one key."""
        return {task: self._conclude(task) for task in tasks}

    def _conclude(self, task: Task[CompareJob]) -> Conclusion:
        job_id = _job_id(task)
        if job_id is None:
            return Conclusion.DONE  # nobody knows which comparison: there is no answer to write
        if not self._owns(task.lease):
            return Conclusion.LOST
        matched, detail = self._match(task)
        if self._results.answer(job_id, matched, detail):
            return Conclusion.DONE
        self._watch.add(job_id, matched, detail)
        self._unconfirmed.setdefault(job_id, []).append(task)
        return Conclusion.UNCONFIRMED

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

    def confirmed(self) -> list[Task[CompareJob]]:
        """Return the comparisons whose answer nothing can overwrite any more, or that were watched long enough."""
        return [task for job_id in self._watch.poll() for task in self._unconfirmed.pop(job_id)]

    def stop_watching(self) -> list[Task[CompareJob]]:
        """Leave the watched answers to `ResultStore.heal` of a later run."""
        return [task for job_id in self._watch.leave() for task in self._unconfirmed.pop(job_id)]


def _stack(faces: Sequence[Face]) -> NDArray[float32]:
    import numpy as np  # loaded long before: the engine found the faces

    return np.stack([face.embedding for face in faces])


def _job_id(task: Task[CompareJob]) -> str | None:
    if task.job is not None:
        return task.job.job_id
    return task.error.subject if task.error is not None else None
