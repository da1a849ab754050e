"""A claimed job on its way through the run, and what every kind of job offers to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from runner.errors import JobError, UnexpectedJobError, place
from runner.logs import logger

if TYPE_CHECKING:
    from runner.faces.engine import Face
    from runner.queue.leases import Lease

Job = TypeVar("Job")


@dataclass(slots=True, eq=False)
class Task(Generic[Job]):
    """One lease, its decoded job, and what has been found out so far.

    `job` is None where the payload is no valid job; then `error` says why. `stages` holds seconds by stage; the
    moments are those of `time.monotonic`. `again` says that this run itself has set the retry that this is;
    `thread` is the engine's that computes it.
    """

    lease: Lease
    job: Job | None = None
    faces: list[Face] | None = None
    error: JobError | None = None
    again: bool = False
    thread: int = 0
    computing_since: float | None = None
    finished_at: float = 0.0
    claimed_at: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - start

    def names(self) -> dict[str, object]:
        """Return what a log line says about the task: never its payload."""
        photo, job = getattr(self.job, "photo_id", None), getattr(self.job, "job_id", None)
        return {
            "queue": self.lease.queue,
            "lease": self.lease.id,
            "attempt": self.lease.attempts,
            **({"photo": photo} if photo else {}),
            **({"comparison": job} if job else {}),
        }


class Conclusion(Enum):
    """What became of a task whose outcome was to be stored."""

    DONE = "done"  # stored: settle the lease
    GONE = "gone"  # the photo was deleted, nothing is stored: settle the lease
    LOST = "lost"  # the lease is another runner's, nothing was stored
    UNCONFIRMED = "unconfirmed"  # stored, but the API may still overwrite it: keep the lease and watch


class Handler(Protocol[Job]):
    """One kind of job."""

    def decode(self, payload: bytes) -> Job:
        """Return the job that a payload holds, or raise `InvalidJobError`. Needs no server."""
        ...

    def begin(self, tasks: Sequence[Task[Job]]) -> None:
        """Write that work on these has begun; what turns out to be in vain gets its `error`."""
        ...

    def read(self, task: Task[Job]) -> bytes:
        """Return the encoded image of the task. Called in a thread of its own; raises `JobError`."""
        ...

    def conclude(self, tasks: Sequence[Task[Job]]) -> dict[Task[Job], Conclusion]:
        """Store the outcomes, final failures included."""
        ...

    def confirmed(self) -> list[Task[Job]]:
        """Return the tasks that were unconfirmed and need no more watching."""
        ...

    def stop_watching(self) -> list[Task[Job]]:
        """Return every task that is still unconfirmed, after leaving what a later run needs to heal it."""
        ...


def job_error(task: Task[Any], error: Exception) -> JobError:
    """Return `error` as the failure of one job.

    The message of an unforeseen error may hold anything, a URL among it: only its type and place are told.
    """
    if isinstance(error, JobError):
        return error
    logger().error("unexpected", extra={**task.names(), "type": type(error).__name__, "at": place(error)})
    return UnexpectedJobError(type(error).__name__)
