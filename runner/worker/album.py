"""The album gate: whether a comparison can be answered now, or has to wait for photos of its album.

An answer is final: the API and its front end stop at the first one. So a comparison waits for the photos of its album
that are UPLOADED or PROCESSING while they have a process job, for at most RUNNER_ALBUM_TIMEOUT_SECONDS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from runner.queue.leases import Lease, age, exponential
from runner.queue.parking import WAITED_FOR, Parking, PhotosAtWork, ProcessJobs
from runner.worker.messages import CompareJob
from runner.worker.task import Task

if TYPE_CHECKING:  # `settings` imports this module: numpy and psycopg must not come with it
    from runner.faces.engine import Face
    from runner.store.repository import Repository

# The API adds the rows of an upload shortly before it pushes their jobs: photos without a job are waited for this long.
GRACE_SECONDS = 2.0
# While no runner has leased a process job, a parked comparison would not be woken in time: it is deferred instead, with
# an exponential delay up to this.
LONGEST_DELAY_SECONDS = 15.0
# Larger states (above 248 faces) are not saved between two claims: the faces of such a selfie are computed again.
STATE_BYTES = 512 * 2**10
_FLOAT_BYTES = 4
_LEAST_WIDTH = 15  # of a face's row: box, landmarks and score come before the embedding


class Readiness(Enum):
    """What to do with a comparison."""

    ANSWER = "answer"
    PARK = "park"
    DEFER = "defer"  # release it with a delay
    LOST = "lost"  # another runner owns the lease


class Checks(NamedTuple):
    """How often the album of a comparison was checked, and the job's age in seconds at the first check."""

    made: int = 0
    first_at: float = 0.0


class Decision(NamedTuple):
    """What to do with a comparison whose album has `pending` photos; `seconds` is the delay of a deferred one."""

    readiness: Readiness
    pending: int = 0
    checks: Checks = Checks()
    seconds: float = 0.0


class AlbumGate:
    """Decides which comparisons wait. Without `parking` they are deferred instead of parked."""

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
        """Return what to do with each task; those to be parked are announced."""
        decisions: dict[Task[CompareJob], Decision] = {}
        undecided: dict[Task[CompareJob], set[str]] = {}
        for task in tasks:
            assert task.job is not None  # noqa: S101 - invalid jobs have an error, and are not passed
            pending = self._repository().pending(task.job.stored_ids)
            if pending and age(task.lease) < self._timeout_seconds:
                undecided[task] = pending
            else:
                decisions[task] = Decision(Readiness.ANSWER, len(pending))
        if undecided:
            at_work = self._jobs.at_work(set[str]().union(*undecided.values()))
            decisions |= {task: self._decide(task, pending, at_work) for task, pending in undecided.items()}
        return decisions

    def _decide(self, task: Task[CompareJob], pending: set[str], at_work: PhotosAtWork) -> Decision:
        checks = _next_checks(task.lease)
        waited_for = [photo_id for photo_id in at_work.ids if photo_id in pending][:WAITED_FOR]
        if not waited_for:
            return self._without_jobs(task.lease, pending, checks)
        if self._parking is None or not at_work.is_alive:
            delay = exponential(checks.made, base=GRACE_SECONDS, cap=LONGEST_DELAY_SECONDS)
            return Decision(Readiness.DEFER, len(pending), checks, delay)
        if not self._parking.announce(task.lease, waited_for, self._timeout_seconds):
            return Decision(Readiness.LOST)
        # Photos that became final before the announcement are not reported again.
        done = set(waited_for) - self._repository().pending(waited_for)
        if done:
            self._parking.photos_done(done)
        return Decision(Readiness.PARK, len(pending), checks)

    def _without_jobs(self, lease: Lease, pending: Collection[str], checks: Checks) -> Decision:
        """Decide when no pending photo has a job: they have just become final, or their jobs were never pushed."""
        still = self._repository().pending(pending)
        if still and age(lease) - checks.first_at < GRACE_SECONDS:
            return Decision(Readiness.DEFER, len(still), checks, GRACE_SECONDS)
        return Decision(Readiness.ANSWER, len(still))


def dump_state(faces: Sequence[Face], checks: Checks, model: str) -> bytes:
    """Return the state of a waiting comparison: a line of JSON, then a row of float32 for each face."""
    data = b"".join(face.to_bytes() for face in faces)
    kept = len(faces) if len(data) <= STATE_BYTES else 0
    header = {"model": model, "checks": checks.made, "first_at": round(checks.first_at, 3), "faces": kept}
    width = len(data) // len(faces) // _FLOAT_BYTES
    return json.dumps(header | {"width": width}).encode() + b"\n" + data * bool(kept)


def load_faces(state: bytes, model: str) -> list[Face] | None:
    """Return the faces in a state, or None if they are of another model or the state is malformed."""
    from runner.faces.engine import Face  # the engine has imported it by now; `settings` imports this module

    header = _header(state)
    count, width = header.get("faces"), header.get("width")
    data = state.partition(b"\n")[2]
    if header.get("model") != model or not isinstance(count, int) or not isinstance(width, int):
        return None
    if count < 1 or width <= _LEAST_WIDTH or count * width * _FLOAT_BYTES != len(data):
        return None
    size = width * _FLOAT_BYTES
    return [Face.from_bytes(data[start : start + size]) for start in range(0, len(data), size)]


def _next_checks(lease: Lease) -> Checks:
    header = _header(lease.state)
    count, first_at = header.get("checks"), header.get("first_at")
    if not isinstance(count, int) or not isinstance(first_at, int | float):
        return Checks(1, age(lease))
    return Checks(count + 1, float(first_at))


def _header(state: bytes) -> dict[str, object]:
    try:
        document = json.loads(state.partition(b"\n")[0] or b"{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
