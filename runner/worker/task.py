"""The task (a leased job with its state and its outcome), the tasks in flight, and the interface of handlers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from runner.errors import JobError, UnexpectedJobError, place
from runner.logs import logger
from runner.queue.leases import Lease

if TYPE_CHECKING:  # `settings` imports this module: numpy must not come with it
    from runner.faces.engine import Face

Job = TypeVar("Job")


class State(Enum):
    """The progress of a task. It only moves down this list."""

    CLAIMED = "claimed"  # leased; waits for a reader
    PROCESSING = "processing"  # with a reader or the engine
    COMPUTED = "computed"  # its faces or its error are known, but not stored yet
    UNCONFIRMED = "unconfirmed"  # answered, but the API may still overwrite the answer
    SETTLED = "settled"  # its lease has ended: `Task.outcome` says how


class Outcome(StrEnum):
    """How a task ended, with the names of summary and log. Every settled task has exactly one."""

    SUCCEEDED = "succeeded"  # done and acknowledged
    GONE = "photo_gone"  # acknowledged without effect: the photo is not in the API's table
    RETRIED = "retried"  # due again after a delay
    DEAD = "dead_lettered"  # in the dead-letter queue, its final status written
    PARKED = "parked"  # waits for its album or for its image server; the attempt is not counted
    RELEASED = "released"  # returned to the queue; the attempt is not counted
    LOST = "lease_lost"  # another runner owns the lease


class Wait(NamedTuple):
    """How a task waits for `pending` photos: deferred by `seconds`, or parked if that is None.

    The next claim of the job returns `state`.
    """

    pending: int
    state: bytes
    seconds: float | None = None

    def __repr__(self) -> str:
        return f"Wait({self.pending}, seconds={self.seconds})"  # the state holds the faces of the selfie


@dataclass(slots=True, eq=False)
class Task(Generic[Job]):
    """One lease, its decoded job, and what is known so far.

    `job` is None if the payload is not valid; then `error` says why. `to_begin` is true until the start of the work has
    been recorded (PROCESSING). `stages` has seconds by stage, `began` when each
    began first; times are those of `time.monotonic`. `own_retry` marks a
    job that this run has retried, deferred or parked before; `thread` is the engine's thread that computes it. `server`
    is the host:port of the image, empty if the image is in the payload; `is_probe` marks the one job that tries a
    failing server, `asked_at` is when the task sent its request, and `was_answered` says whether the server responded
    with anything but a server error.
    `ready_seconds` is the time from the upload of a photo until it became READY, if this run has made it so.
    """

    lease: Lease
    job: Job | None = None
    faces: list[Face] | None = None
    error: JobError | None = None
    state: State = State.CLAIMED
    outcome: Outcome | None = None
    wait: Wait | None = None
    to_begin: bool = False
    own_retry: bool = False
    server: str = ""
    is_fetching: bool = False
    is_probe: bool = False
    asked_at: float = 0.0
    was_answered: bool = False
    thread: int = 0
    computing_since: float | None = None
    computed_at: float = 0.0
    ready_seconds: float | None = None
    claimed_at: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage `name`."""
        start = time.monotonic()
        self.began.setdefault(name, start)
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - start

    def stage_seconds(self) -> dict[str, float]:
        """Return a copy of `stages`, to which a reader or the engine may be adding at the same time."""
        return self.stages.copy()

    @property
    def age_seconds(self) -> float:
        """The time since the job left the list."""
        return self.lease.age_seconds + time.monotonic() - self.lease.claimed_at

    def computed(self) -> None:
        """Record that its faces or its error are known."""
        self.state, self.computed_at = State.COMPUTED, time.monotonic()

    def fail(self, error: Exception) -> None:
        """Record `error` as the failure of this job, unless it has failed before.

        The message of an unexpected error may hold a URL or a selfie: only its type and place are logged.
        """
        if self.error is not None:
            return
        if not isinstance(error, JobError):
            logger().error("unexpected", extra={**self.log_fields(), "type": type(error).__name__, "at": place(error)})
            error = UnexpectedJobError(type(error).__name__)
        self.error = error

    def log_fields(self) -> dict[str, object]:
        """Return the fields of every log line about the task: never its payload."""
        photo, comparison = getattr(self.job, "photo_id", None), getattr(self.job, "job_id", None)
        return {
            "queue": self.lease.queue,
            "lease": self.lease.id,
            "attempt": self.lease.attempts,
            **({"photo": photo} if photo else {}),
            **({"comparison": comparison} if comparison else {}),
        }


AnyTask = Task[Any]


class InFlight:
    """Every task whose lease this run owns, in the order of the claims.

    Only one thread changes it. Others may iterate concurrently: they see every task that is present throughout.
    """

    def __init__(self) -> None:
        self._tasks: dict[AnyTask, None] = {}

    def add(self, tasks: Iterable[AnyTask]) -> None:
        """Add the tasks."""
        self._tasks |= dict.fromkeys(tasks)

    def remove(self, task: AnyTask) -> bool:
        """Remove the task; False if another thread has done so."""
        return self._tasks.pop(task, self) is None

    def of(self, *states: State) -> list[AnyTask]:
        """Return the tasks in any of `states`."""
        return [task for task in self if task.state in states]

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(list(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)


class Handler(Protocol[Job]):
    """The work that one kind of job needs."""

    def resume(self, task: Task[Job]) -> None:
        """Restore `Lease.state`; faces restored from it are not computed again."""
        ...

    def begin(self, tasks: Sequence[Task[Job]]) -> None:
        """Record that work has begun; set the `error` of tasks that need none."""
        ...

    def read(self, task: Task[Job]) -> bytes:
        """Return the encoded image of the task. Called in a reader thread; raises `JobError`."""
        ...

    def conclude(self, tasks: Sequence[Task[Job]]) -> None:
        """Store the results, final failures included. Set `outcome` to LOST for tasks whose lease is lost.

        A task whose answer may still be overwritten gets `State.UNCONFIRMED`, and one that cannot be concluded yet gets
        `wait`.
        """
        ...

    def confirmed(self, tasks: Sequence[Task[Job]]) -> list[Task[Job]]:
        """Return the unconfirmed `tasks` that no longer need to be watched."""
        ...

    def stop_watching(self, tasks: Sequence[Task[Job]]) -> None:
        """Record what a later run needs to confirm the unconfirmed `tasks`."""
        ...
