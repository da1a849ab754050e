"""The handler of comparisons: from a selfie to the ids of the photos that show the same person."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from runner.errors import NoFaceInSelfieError, SeveralFacesInSelfieError
from runner.queue.leases import Lease
from runner.store.results import ResultStore, ResultWatch
from runner.worker.album import AlbumGate, Decision, Readiness, dump_state, load_faces
from runner.worker.messages import CompareJob
from runner.worker.task import Outcome, State, Task, Wait

if TYPE_CHECKING:  # `settings` imports this module: numpy and psycopg must not come with it
    from runner.faces.engine import Face
    from runner.store.embeddings import Matches
    from runner.store.repository import Repository


class ComparisonHandler:
    """Moves a result from INITIATED to PROCESSING to the matched ids, or `[]` after a failure."""

    def __init__(
        self,
        results: ResultStore,
        watch: ResultWatch,
        repository: Callable[[], Repository],
        owns: Callable[[Lease], bool],
        album: AlbumGate | None,
        *,
        selfie_faces: str = "all",
    ) -> None:
        """`selfie_faces` is RUNNER_SELFIE_FACES: all, largest or one."""
        self._selfie_faces = selfie_faces
        self._results = results
        self._album = album
        self._watch = watch
        self._repository = repository
        self._owns = owns

    def resume(self, task: Task[CompareJob]) -> None:
        """Restore the selfie's faces if they were computed before with this model."""
        if self._album is not None:
            task.faces = load_faces(task.lease.state, self._album.model)

    def begin(self, tasks: Sequence[Task[CompareJob]]) -> None:
        """Set the results to PROCESSING."""
        for task in tasks:
            if task.job is not None:
                self._results.begin(task.job.job_id)

    def read(self, task: Task[CompareJob]) -> bytes:
        """Return the selfie, which is in the payload."""
        assert task.job is not None  # noqa: S101 - only accepted tasks are read
        return task.job.selfie

    def conclude(self, tasks: Sequence[Task[CompareJob]]) -> None:
        """Match and answer the jobs whose albums are ready, one by one; the others get `wait`."""
        for task in tasks:
            if self._selfie_faces == "one" and task.error is None and task.faces and len(task.faces) > 1:
                task.error = SeveralFacesInSelfieError(f"{len(task.faces)} faces")
        decisions = self._decide(tasks)
        answered: list[tuple[Lease, str, list[str], dict[str, object]]] = []
        for task in tasks:
            job_id, decision = _job_id(task), decisions.get(task)
            task.wait = None
            if job_id is None:
                continue  # without a job id there is no result key
            if not self._owns(task.lease) or (decision is not None and decision.readiness is Readiness.LOST):
                task.outcome = Outcome.LOST
            elif decision is None or decision.readiness is Readiness.ANSWER:
                answered += self._answer(task, job_id, decision)
            else:
                self._wait(task, job_id, decision)
        # Just before their leases end: a failover may have lost one in the meantime, or `forget` removed it.
        for lease, job_id, matched, detail in answered:
            self._results.confirm(job_id, matched, detail, owned=partial(self._owns, lease))

    def _decide(self, tasks: Sequence[Task[CompareJob]]) -> dict[Task[CompareJob], Decision]:
        """Check the albums of the selfies with a face: the answer to the others does not depend on photos."""
        if self._album is None:
            return {}
        return self._album.decide([task for task in tasks if task.error is None and task.faces])

    def _wait(self, task: Task[CompareJob], job_id: str, decision: Decision) -> None:
        faces, model = task.faces or (), self._repository().model
        self._results.wait(
            job_id, {"complete": False, "pending": decision.pending, "faces": len(faces), "model": model}
        )
        seconds = decision.seconds if decision.readiness is Readiness.DEFER else None
        task.wait = Wait(decision.pending, dump_state(faces, decision.checks, model), seconds)

    def _answer(
        self, task: Task[CompareJob], job_id: str, decision: Decision | None
    ) -> list[tuple[Lease, str, list[str], dict[str, object]]]:
        """Write the answer, and return it unless it is watched."""
        pending = decision.pending if decision is not None else None
        matched, detail = self._match(task)
        detail |= {"complete": pending == 0, "pending": pending}
        if not self._owns(task.lease):  # lost while the database was busy, perhaps to `forget`
            task.outcome = Outcome.LOST
            return []
        if self._results.answer(job_id, matched, detail):
            return [(task.lease, job_id, matched, detail)]
        self._watch.add(job_id, matched, detail, owned=lambda: self._owns(task.lease))
        task.state = State.UNCONFIRMED
        return []

    def _match(self, task: Task[CompareJob]) -> tuple[list[str], dict[str, object]]:
        """Return the matched ids in the order of the album, and the detail."""
        job, faces = task.job, task.faces
        found: Matches | None = None
        compared = self._compared(faces or ())
        if job is not None and task.error is None:
            if faces:
                embeddings = [faces[place].embedding for place in compared]
                with task.stage("match"):
                    found = self._repository().match(embeddings, job.stored_ids, job.threshold)
            else:
                task.error = NoFaceInSelfieError()
        scores = found.scores if found else {}
        matched = [photo_id for photo_id in job.stored_ids if photo_id in scores] if job else []
        error = task.error
        return matched, {
            "scores": {photo_id: round(scores[photo_id], 6) for photo_id in matched},
            "matches": [_match_document(photo_id, found, compared) for photo_id in matched if found],
            "faces": len(faces or ()),
            "faces_compared": len(compared) if error is None else 0,
            "model": self._repository().model,
            "threshold": job.threshold if job else None,
            "stored_ids": len(job.stored_ids) if job else None,
            "with_embeddings": found.with_embeddings if found else 0,
            "duration_ms": round((time.monotonic() - task.claimed_at) * 1000, 1),
            "error": error.document() if error else None,
        }

    def _compared(self, faces: Sequence[Face]) -> Sequence[int]:
        """Return the indexes of the selfie's faces to compare."""
        places = range(len(faces))
        if self._selfie_faces == "largest":
            return sorted(places, key=lambda place: _area(faces[place]))[-1:]
        return places

    def confirmed(self, tasks: Sequence[Task[CompareJob]]) -> list[Task[CompareJob]]:
        """Return those whose answer can no longer be overwritten, or has been watched for long enough."""
        done = set(self._watch.poll())
        return [task for task in tasks if _job_id(task) in done]

    def stop_watching(self, tasks: Sequence[Task[CompareJob]]) -> None:  # noqa: ARG002 - the watch has them
        """Leave the watched answers to `ResultStore.restore` of a later run."""
        self._watch.leave()


def _area(face: Face) -> float:
    x1, y1, x2, y2 = face.box
    return float((x2 - x1) * (y2 - y1))


def _match_document(photo_id: str, found: Matches, compared: Sequence[int]) -> dict[str, object]:
    """Return an item of the detail's `matches`: which face of the photo matches, and which one of the selfie."""
    face = found.faces.get(photo_id)
    return {
        "photo_id": photo_id,
        "score": round(found.scores[photo_id], 6),
        "face_index": face.face_index if face else None,
        "box": [round(value, 1) for value in face.box] if face and face.box else None,
        "selfie_face": compared[face.selfie_face] if face else None,
    }


def _job_id(task: Task[CompareJob]) -> str | None:
    if task.job is not None:
        return task.job.job_id
    return task.error.subject if task.error is not None else None
