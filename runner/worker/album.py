"""Whether a comparison can be answered now, or waits for photos of its album.

An answer is final: the API and its front end stop at the first one. So a comparison whose album has photos that are
UPLOADED or PROCESSING waits for them as long as they have a process job, and at most for RUNNER_ALBUM_TIMEOUT_SECONDS.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from runner.queue.parking import WAITED_FOR

if TYPE_CHECKING:
    from collections.abc import Collection

    from runner.faces.engine import Face
    from runner.queue.leases import Lease
    from runner.queue.parking import Parking, PhotosAtWork, ProcessJobs
    from runner.store.repository import Repository
    from runner.worker.messages import CompareJob
    from runner.worker.task import Task

# The API adds the rows of an upload shortly before it pushes their jobs. Photos without a job hold nobody up for
# longer than this.
GRACE_SECONDS = 2.0
# While no runner holds a process job, nobody could wake a parked comparison in time: it looks again by itself, each
# time after twice as long.
LONGEST_PAUSE_SECONDS = 15.0
# More than this is not kept between two claims: 248 faces take it. The faces of such a selfie are computed again.
STATE_BYTES = 512 * 2**10
# Where the parts of a face end in its row: the box's 4 numbers, the landmarks' 10, the score, the embedding.
_BOX, _SCORE, _EMBEDDING = 4, 14, 15


class Readiness(Enum):
    """What becomes of a comparison."""

    ANSWER = "answer"
    PARK = "park"
    PUT_OFF = "put_off"
    LOST = "lost"  # the lease is another runner's


@dataclass(frozen=True, slots=True)
class Looks:
    """How often a comparison has looked at its album, and its age in seconds at the first look."""

    count: int = 0
    first_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a comparison with `pending` photos; put off, it looks again after `seconds`."""

    readiness: Readiness
    pending: int = 0
    looks: Looks = Looks()
    seconds: float = 0.0


class AlbumGate:
    """Decides for every comparison whether it waits. Without `parking` it is put off instead of parked."""

    def __init__(
        self,
        repository: Callable[[], Repository],
        jobs: ProcessJobs,
        parking: Parking | None,
        *,
        model: str,
        timeout_seconds: float,
    ) -> None:
        self.model = model
        self._repository = repository
        self._jobs = jobs
        self._parking = parking
        self._timeout_seconds = timeout_seconds

    def decide(self, tasks: Sequence[Task[CompareJob]]) -> dict[Task[CompareJob], Decision]:
        """Return what becomes of each task, announced where it is to be parked."""
        decisions: dict[Task[CompareJob], Decision] = {}
        undecided: dict[Task[CompareJob], set[str]] = {}
        for task in tasks:
            assert task.job is not None  # noqa: S101 - the others are answered at once
            pending = self._repository().pending(task.job.stored_ids)
            if pending and _age(task.lease) < self._timeout_seconds:
                undecided[task] = pending
            else:
                decisions[task] = Decision(Readiness.ANSWER, len(pending))
        if undecided:
            at_work = self._jobs.at_work(set[str]().union(*undecided.values()))
            decisions |= {task: self._decide(task, pending, at_work) for task, pending in undecided.items()}
        return decisions

    def _decide(self, task: Task[CompareJob], pending: set[str], at_work: PhotosAtWork) -> Decision:
        looks = _looked_again(task.lease)
        waited_for = [photo_id for photo_id in at_work.ids if photo_id in pending][:WAITED_FOR]
        if not waited_for:
            return self._without_work(task.lease, pending, looks)
        if self._parking is None or not at_work.is_alive:
            pause = min(LONGEST_PAUSE_SECONDS, GRACE_SECONDS * 2.0 ** (looks.count - 1))
            return Decision(Readiness.PUT_OFF, len(pending), looks, pause)
        if not self._parking.announce(task.lease, waited_for, self._timeout_seconds):
            return Decision(Readiness.LOST)
        # What became final before it was announced nobody reports again.
        done = set(waited_for) - self._repository().pending(waited_for)
        if done:
            self._parking.photos_done(done)
        return Decision(Readiness.PARK, len(pending), looks)

    def _without_work(self, lease: Lease, pending: Collection[str], looks: Looks) -> Decision:
        """Decide on photos without a job: they have just become final, or nobody has pushed their jobs."""
        still = self._repository().pending(pending)
        if still and _age(lease) - looks.first_at < GRACE_SECONDS:
            return Decision(Readiness.PUT_OFF, len(still), looks, GRACE_SECONDS)
        return Decision(Readiness.ANSWER, len(still))


def freeze(faces: Sequence[Face], looks: Looks, model: str) -> bytes:
    """Return what `thaw` needs to go on with a comparison: a line of JSON, and a row of float32 for every face."""
    import numpy as np  # loaded long before: the engine found the faces

    rows = [np.concatenate([face.box, face.landmarks.ravel(), [face.score], face.embedding]) for face in faces]
    data = np.asarray(rows, dtype="<f4").tobytes()
    kept = len(rows) if len(data) <= STATE_BYTES else 0
    header = {"model": model, "looks": looks.count, "first_at": round(looks.first_at, 3), "faces": kept}
    return json.dumps(header | {"width": len(rows[0])}).encode() + b"\n" + data * bool(kept)


def thaw(state: bytes, model: str) -> list[Face] | None:
    """Return the faces in a state, or None where there are none of this model or the state is not intact."""
    import numpy as np

    from runner.faces.engine import Face

    header = _header(state)
    count = header.get("faces")
    data = state.partition(b"\n")[2]
    width = header.get("width")
    if header.get("model") != model or not isinstance(count, int) or not isinstance(width, int):
        return None
    if count < 1 or width <= _EMBEDDING or count * width * 4 != len(data):
        return None
    rows = np.frombuffer(data, dtype="<f4").reshape(count, width).astype(np.float32)
    return [
        Face(
            box=row[:_BOX],
            landmarks=row[_BOX:_SCORE].reshape(5, 2),
            score=float(row[_SCORE]),
            embedding=row[_EMBEDDING:],
        )
        for row in rows
    ]


def _looked_again(lease: Lease) -> Looks:
    header = _header(lease.state)
    count, first_at = header.get("looks"), header.get("first_at")
    if not isinstance(count, int) or not isinstance(first_at, int | float):
        return Looks(1, _age(lease))
    return Looks(count + 1, float(first_at))


def _header(state: bytes) -> dict[str, object]:
    try:
        document = json.loads(state.partition(b"\n")[0] or b"{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _age(lease: Lease) -> float:
    """Return the seconds since the job left the list."""
    return lease.age_seconds + time.monotonic() - lease.claimed_at
