"""A leased job on its way through the run: its state, its outcome, and the one collection of what is in flight."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from runner.errors import JobError, UnexpectedJobError, place
from runner.logs import logger

if TYPE_CHECKING:  # the queue and the engine are imported by whoever opens them, in the order of the start-up
    from runner.faces.engine import Face
    from runner.queue.leases import Lease

Job = TypeVar("Job")


class State(Enum):
    """Where a task is on its way. It only ever moves down this list."""

    CLAIMED = "claimed"  # leased; waits for a reader
    PROCESSING = "processing"  # with a reader or the engine
    COMPUTED = "computed"  # its faces or its error are known; nothing is stored yet
    UNCONFIRMED = "unconfirmed"  # answered, and the API may still overwrite the answer
    SETTLED = "settled"  # its lease has ended: `Task.outcome` says how


class Outcome(StrEnum):
    """How a task left the run, as summary and log name it. Every settled task has exactly one."""

    SUCCEEDED = "succeeded"  # done and acknowledged
    GONE = "gone"  # acknowledged, and nothing was done: the photo is not in the API's table
    RETRIED = "retried"  # to be claimed again later
    DEAD = "buried"  # a dead letter, its final status written
    RELEASED = "released"  # returned to the queue, the attempt not counted
    LOST = "lost"  # another runner has the lease


@dataclass(slots=True, eq=False)
class Task(Generic[Job]):
    """One lease, its decoded job, and what is known so far.

    `job` is None where the payload is not a valid job; then `error` says why. `to_begin` holds until the start of the
    work has been written (PROCESSING). `stages` holds seconds by stage; moments are those of `time.monotonic`.
    `own_retry` marks a retry that this run itself has scheduled; `thread` is the engine's thread that computes it.
    """

    lease: Lease
    job: Job | None = None
    faces: list[Face] | None = None
    error: JobError | None = None
    state: State = State.CLAIMED
    outcome: Outcome | None = None
    to_begin: bool = False
    own_retry: bool = False
    thread: int = 0
    computing_since: float | None = None
    computed_at: float = 0.0
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

    def computed(self) -> None:
        """Record that its faces or its error are known."""
        self.state, self.computed_at = State.COMPUTED, time.monotonic()

    def fail(self, error: Exception) -> None:
        """Keep `error` as the failure of this job, unless it has failed before.

        The message of an unforeseen error may hold anything, a URL or a selfie: only its type and place are logged.
        """
        if self.error is not None:
            return
        if not isinstance(error, JobError):
            logger().error("unexpected", extra={**self.log_fields(), "type": type(error).__name__, "at": place(error)})
            error = UnexpectedJobError(type(error).__name__)
        self.error = error

    def log_fields(self) -> dict[str, object]:
        """Return what every log line about the task carries: never its payload."""
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
    """Every task whose lease this run holds, in the order of their claims.

    One thread changes it. Another may iterate over it meanwhile: it then sees each task that was there all along.
    """

    def __init__(self) -> None:
        self._tasks: dict[AnyTask, None] = {}

    def add(self, tasks: Iterable[AnyTask]) -> None:
        """Take the tasks in."""
        self._tasks |= dict.fromkeys(tasks)

    def remove(self, task: AnyTask) -> bool:
        """Take the task out; False where another thread has done so."""
        return self._tasks.pop(task, self) is None

    def of(self, *states: State) -> list[AnyTask]:
        """Return the tasks in any of `states`."""
        return [task for task in self if task.state in states]

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(list(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)


class Handler(Protocol[Job]):
    """The work that is particular to one kind of job."""

    def start(self) -> None:
        """Finish what earlier runs have left to a later one. Called once, before the first claim."""
        ...

    def begin(self, tasks: Sequence[Task[Job]]) -> None:
        """Write that work on these has begun; where it would be in vain, set the task's `error`."""
        ...

    def read(self, task: Task[Job]) -> bytes:
        """Return the encoded image of the task. Called in a thread of its own; raises `JobError`."""
        ...

    def conclude(self, tasks: Sequence[Task[Job]]) -> None:
        """Store the results, final failures included, and set each task's `outcome` where it is not SUCCEEDED.

        A task that may still have to be answered again gets `State.UNCONFIRMED` instead.
        """
        ...

    def confirmed(self, tasks: Sequence[Task[Job]]) -> list[Task[Job]]:
        """Return those of the unconfirmed `tasks` that need no more watching."""
        ...

    def stop_watching(self, tasks: Sequence[Task[Job]]) -> None:
        """Leave what a later run needs to confirm the unconfirmed `tasks`."""
        ...
