"""How a leased job leaves the run: concluded by its handler, then settled in its queue, exactly once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any

from runner.errors import (
    InvalidJobError,
    JobError,
    PermanentJobError,
    PhotoGoneError,
    PhotosInvisibleError,
    PoisonJobError,
    RunnerError,
)
from runner.logs import logger
from runner.queue.leases import Parked, backoff
from runner.worker.messages import subject
from runner.worker.task import AnyTask, Handler, InFlight, Outcome, State, Task

if TYPE_CHECKING:
    from runner.queue.heartbeat import Heartbeat
    from runner.queue.leases import Lease, LeaseQueue
    from runner.queue.parking import Parking
    from runner.settings import Settings
    from runner.worker.kinds import Kind
    from runner.worker.summary import Summary

# Leases that are due are claimed before the list. This keeps photos that no run can see from standing before the
# others for ever: one of those may show that the database is the right one.
INVISIBLE_SECONDS = 60.0
# How often a run wakes comparisons whose time is up.
OVERDUE_SECONDS = 5.0
ALBUM_PENDING = "album_pending"  # why a comparison waits, as its log line and its lease say


class Settlement:
    """Owns what is in flight, and ends each task in one way.

    A failed job is retried while its error is transient and attempts are left; otherwise its handler writes the final
    status, and only then does it become a dead letter: a crash in between leaves a lease, never a job without status.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kinds: Mapping[str, Kind],
        queues: Mapping[str, LeaseQueue],
        handlers: Mapping[str, Handler[Any]],
        heartbeat: Heartbeat,
        summary: Summary,
        parking: Parking | None = None,
    ) -> None:
        self.in_flight = InFlight()
        self._settings = settings
        self._kinds = kinds
        self._queues = queues
        self._handlers = handlers
        self._heartbeat = heartbeat
        self._summary = summary
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._own_retries: dict[str, float] = {}
        self._parking = parking
        self._own_parked: set[str] = set()
        self._next_overdue = 0.0

    # Taking in

    def hold(self, leases: Sequence[Lease]) -> list[AnyTask]:
        """Keep the leases alive from now on, and return a task for each: decoded, or with its `error`."""
        self._heartbeat.hold(leases)
        self._summary.claimed += len(leases)
        tasks: list[AnyTask] = [Task(lease, own_retry=self._take_own(lease.id)) for lease in leases]
        self.in_flight.add(tasks)
        for task in tasks:
            self._decode(task)
            task.to_begin = task.error is None
        return tasks

    def _decode(self, task: AnyTask) -> None:
        lease = task.lease
        if lease.attempts > self._settings.max_attempts:
            task.error = PoisonJobError(f"it ended {lease.attempts - 1} of its runners")
        elif lease.truncated:
            task.error = InvalidJobError(f"the payload is larger than a runner takes: {lease.bytes} bytes")
        if task.error is not None and lease.truncated:
            task.error.subject = subject(self._kinds[lease.queue].id_field, lease.payload)
        try:
            task.job = self._kinds[lease.queue].decode(lease.payload)
        except Exception as error:  # noqa: BLE001 - one job's payload must hurt no other
            task.fail(error)
        if task.error is None and lease.state:
            self._handlers[lease.queue].resume(task)

    def begin(self, tasks: Iterable[AnyTask]) -> None:
        """Let the handlers write that work has begun; what turns out to be in vain gets its `error`.

        Jobs whose photos cannot be seen are released, and `PhotosInvisibleError` ends the run.
        """
        for name, group in _by_queue(task for task in tasks if task.to_begin).items():
            try:
                failures = isolated(self._handlers[name].begin, group)
            except PhotosInvisibleError:
                self.release(group, delay_seconds=INVISIBLE_SECONDS)
                raise
            for task, error in failures:
                task.fail(error)
            for task in group:
                task.to_begin = False

    def drop_lost(self, task: AnyTask) -> bool:
        """Return whether the lease is known to be lost; then the task has ended here."""
        if not self._heartbeat.has_lost(task.lease):
            return False
        self._end(task, Outcome.LOST)
        return True

    # Retries of this run, and comparisons that it has parked

    def _take_own(self, lease_id: str) -> bool:
        """Return whether this run has retried or parked the job before, and forget that."""
        was_parked = lease_id in self._own_parked
        self._own_parked.discard(lease_id)
        return self._own_retries.pop(lease_id, None) is not None or was_parked

    def wake_overdue(self) -> None:
        """Wake the comparisons that have waited for their album for long enough, every few seconds."""
        if self._parking is not None and time.monotonic() >= self._next_overdue:
            self._next_overdue = time.monotonic() + OVERDUE_SECONDS
            self._parking.wake_overdue()

    def wake_stranded(self) -> bool:
        """Wake every parked comparison if there is no process job at all; return whether there was one."""
        return self._parking is not None and bool(self._parking.wake_stranded())

    def _expect_woken(self) -> None:
        """Count on what this run has parked and woken as on a retry of its own."""
        if self._parking is not None:
            for lease_id in self._own_parked.intersection(self._parking.take_woken()):
                self._own_retries[lease_id] = time.monotonic()

    def next_own_retry(self) -> float | None:
        """Return in how many seconds the next retry that this run has scheduled is due, or None without one."""
        self._expect_woken()
        now = time.monotonic()
        self._own_retries = {k: due for k, due in self._own_retries.items() if due > now - 1}
        return max(0.0, min(self._own_retries.values()) - now) if self._own_retries else None

    def take_due_retries(self) -> int:
        """Return how many retries of this run are due, and forget them: another run may have been quicker."""
        self._expect_woken()
        now = time.monotonic()
        due = [lease_id for lease_id, moment in self._own_retries.items() if moment <= now]
        for lease_id in due:
            del self._own_retries[lease_id]
        return len(due)

    # Settling

    def conclude(self, tasks: Sequence[AnyTask]) -> None:
        """Retry what may still work; store the result of everything else and settle it."""
        final: list[AnyTask] = []
        for task in tasks:
            if task.error is not None and task.error.transient and self._has_attempts(task):
                self._retry(task, task.error)
            else:
                final.append(task)
        for name, group in _by_queue(final).items():
            start = time.monotonic()
            failures = isolated(self._handlers[name].conclude, group)
            share = (time.monotonic() - start) / len(group)
            for task in group:
                task.stages["store"] = task.stages.get("store", 0.0) + share
            for task, error in failures:
                self._not_stored(task, error)
            self._let_wait([task for task in group if task.wait is not None and task.state is not State.SETTLED])
            self._settle(task for task in group if task.state not in (State.UNCONFIRMED, State.SETTLED))

    def _let_wait(self, tasks: Sequence[AnyTask]) -> None:
        """Park the tasks or put them off; conclude those again whose album became ready meanwhile."""
        woken: list[AnyTask] = []
        for task in tasks:
            queue, wait = self._queues[task.lease.queue], task.wait
            assert wait is not None  # noqa: S101 - the caller has looked
            if wait.seconds is not None:
                done = queue.put_off(task.lease, wait.seconds, ALBUM_PENDING, wait.state)
                self._own_retries |= {task.lease.id: time.monotonic() + wait.seconds} if done else {}
                self._end_waiting(task, done, wait.pending, again_in_seconds=wait.seconds)
                continue
            parked = queue.park(task.lease, ALBUM_PENDING, wait.state)
            if parked is Parked.WOKEN:
                woken.append(task)
                continue
            self._own_parked |= {task.lease.id} if parked is Parked.DONE else set()
            self._end_waiting(task, parked is Parked.DONE, wait.pending)
        if woken:
            self.conclude(woken)

    def _not_stored(self, task: AnyTask, error: Exception) -> None:
        """Retry the task, or store that it failed; where not even that can be stored, its dead letter says so."""
        was_failure = task.error is not None
        task.fail(error)
        assert task.error is not None  # noqa: S101 - set by the line above
        if self._has_attempts(task) and not isinstance(error, PermanentJobError):
            self._retry(task, task.error)
        elif not was_failure:
            isolated(self._handlers[task.lease.queue].conclude, [task])

    def settle_confirmed(self) -> None:
        """Settle the watched answers that nothing can overwrite any more."""
        for name, group in _by_queue(self.in_flight.of(State.UNCONFIRMED)).items():
            self._settle(self._handlers[name].confirmed(group))

    def settle_unconfirmed(self) -> None:
        """Settle every watched answer: the run ends, and a later one confirms what the API overwrites."""
        for name, group in _by_queue(self.in_flight.of(State.UNCONFIRMED)).items():
            self._handlers[name].stop_watching(group)
            self._settle(group)

    def release(self, tasks: Iterable[AnyTask], *, delay_seconds: float = 0) -> None:
        """Return the jobs to their queues, to be claimed after `delay_seconds`, without counting the attempt."""
        for task in tasks:
            done = self._queues[task.lease.queue].release(task.lease, delay_seconds)
            self._end(task, Outcome.RELEASED if done else Outcome.LOST)

    def abandon(self) -> None:
        """End everything that is in flight, from any thread: the run ends before its time."""
        self.settle_unconfirmed()
        self.release(self.in_flight)

    def _settle(self, tasks: Iterable[AnyTask]) -> None:
        """Dead-letter the faults and acknowledge the others, those of a queue in one call."""
        done: list[AnyTask] = []
        for task in tasks:
            if task.outcome is Outcome.LOST:
                self._end(task, Outcome.LOST)
            elif task.error is not None and task.error.is_fault:
                self._dead_letter(task, task.error)
            else:
                done.append(task)
        for name, group in _by_queue(done).items():
            lost = self._queues[name].acknowledge_many([task.lease for task in group])
            for task in group:
                self._end(task, Outcome.LOST if task.lease.id in lost else _acknowledged(task))

    def _has_attempts(self, task: AnyTask) -> bool:
        return task.lease.attempts < self._settings.max_attempts

    def _retry(self, task: AnyTask, error: JobError) -> None:
        settings = self._settings
        delay = backoff(
            task.lease.attempts, base=settings.retry_seconds, cap=settings.retry_max_seconds, random=self._random
        )
        if self._queues[task.lease.queue].retry(task.lease, delay, error.word):
            self._own_retries[task.lease.id] = time.monotonic() + delay
            self._end(task, Outcome.RETRIED, again_in_seconds=round(delay, 3))
        else:
            self._end(task, Outcome.LOST)

    def _end_waiting(self, task: AnyTask, done: bool, pending: int, **more: object) -> None:  # noqa: FBT001 - private
        outcome = Outcome.PARKED if done else Outcome.LOST
        self._end(task, outcome, reason=ALBUM_PENDING, pending=pending, **more)

    def _dead_letter(self, task: AnyTask, error: JobError) -> None:
        done = self._queues[task.lease.queue].dead_letter(task.lease, error.word, str(error))
        self._end(task, Outcome.DEAD if done else Outcome.LOST)

    def _end(self, task: AnyTask, outcome: Outcome, **more: object) -> None:
        """Count the outcome and write the one log line of the job."""
        if not self.in_flight.remove(task):
            return  # `abandon` has ended it from another thread
        task.state, task.outcome = State.SETTLED, outcome
        self._heartbeat.drop(task.lease)
        self._summary.count(task, outcome)
        error = task.error
        logger().log(
            WARNING if outcome is Outcome.GONE or (error is not None and error.is_fault) else INFO,
            self._kinds[task.lease.queue].noun,
            extra={
                **task.log_fields(),
                "outcome": str(outcome),
                "faces_found": None if task.faces is None else len(task.faces),
                "reason": error.word if error else None,
                "detail": str(error) if error else None,
                "milliseconds": round((time.monotonic() - task.claimed_at) * 1000, 1),
                "stages_ms": {name: round(seconds * 1000, 1) for name, seconds in task.stages.items()},
                **more,
            },
        )


def isolated(work: Callable[[Sequence[AnyTask]], None], tasks: Sequence[AnyTask]) -> list[tuple[AnyTask, Exception]]:
    """Do `work` on a batch; where that fails, on each task alone, so that no job's data hurts another's.

    Returns the tasks that failed alone, each with its error. A `RunnerError` is nobody's data, and comes out.
    """
    try:
        work(tasks)
    except RunnerError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one job's data did to the batch
        if len(tasks) == 1:
            return [(tasks[0], error)]
        return [failure for task in tasks for failure in isolated(work, [task])]
    return []


def _acknowledged(task: AnyTask) -> Outcome:
    return Outcome.GONE if isinstance(task.error, PhotoGoneError) else Outcome.SUCCEEDED


def _by_queue(tasks: Iterable[AnyTask]) -> dict[str, list[AnyTask]]:
    groups: dict[str, list[AnyTask]] = {}
    for task in tasks:
        groups.setdefault(task.lease.queue, []).append(task)
    return groups
