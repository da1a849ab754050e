"""How a task ends: its handler concludes it, then its lease is settled in its queue, exactly once."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from logging import INFO, WARNING
from typing import Any

from runner.errors import (
    JobError,
    PayloadTooLargeError,
    PermanentJobError,
    PhotoGoneError,
    PhotosInvisibleError,
    PoisonJobError,
    RunnerError,
    UnreachableError,
)
from runner.logs import logger
from runner.queue.heartbeat import Heartbeat
from runner.queue.hosts import Verdict
from runner.queue.leases import Lease, LeaseQueue, Parked, backoff
from runner.queue.parking import Parking
from runner.queue.totals import ALBUM_PENDING
from runner.settings import Settings
from runner.worker.kinds import Kind
from runner.worker.messages import subject
from runner.worker.outage import OutageGate
from runner.worker.summary import Summary
from runner.worker.task import AnyTask, Handler, InFlight, Outcome, State, Task, Wait
from runner.worker.totals import RunTotals, job_tally
from runner.worker.traces import Traces

# Expired leases are claimed before the list. This delay keeps photos that no run can see from blocking the others, one
# of which may show that the database is the right one.
INVISIBLE_SECONDS = 60.0
# How often a run wakes comparisons that have timed out.
OVERDUE_SECONDS = 5.0
# The pauses before each round in which `abandon` tries to settle what is left.
ABANDON_PAUSES = (0.0, 0.1, 0.2)


class Settlement:
    """Owns the tasks in flight, and ends each of them exactly once.

    A photo whose image server fails waits for it. Any other failed job is retried while its error is transient and
    attempts are left; otherwise its handler writes the final
    status, and only then is it dead-lettered: a crash in between leaves a lease, never a job without a status.
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
        run_totals: RunTotals | None = None,
        outages: OutageGate | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.in_flight = InFlight()
        self._settings = settings
        self._kinds = kinds
        self._queues = queues
        self._handlers = handlers
        self._heartbeat = heartbeat
        self._summary = summary
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._parking = parking
        self._run_totals = run_totals
        self._outages = outages
        self._traces = traces
        # What this run has retried, deferred or parked: when each lease is due (`time.monotonic`; parked: infinity).
        self._own_retries: dict[str, float] = {}
        self._next_overdue = 0.0

    # Accepting

    def accept(self, leases: Sequence[Lease]) -> list[AnyTask]:
        """Renew the leases from now on, and return a task for each: decoded, or with its `error`.

        Photos whose image server is failing are settled here.
        """
        self._heartbeat.add(leases)
        self._summary.claimed += len(leases)
        tasks: list[AnyTask] = [
            Task(lease, own_retry=self._own_retries.pop(lease.id, None) is not None) for lease in leases
        ]
        self.in_flight.add(tasks)
        for task in tasks:
            self._decode(task)
        if self._outages is not None:
            for task, (verdict, seconds) in self._outages.admit(tasks).items():
                self._wait_for_server(task, verdict, seconds)
        for task in tasks:
            task.to_begin = task.error is None
        return [task for task in tasks if task.state is not State.SETTLED]

    def _decode(self, task: AnyTask) -> None:
        lease = task.lease
        if lease.attempts > self._settings.max_attempts:
            task.error = PoisonJobError(f"it ended {lease.attempts - 1} of its runners")
        elif lease.truncated:
            task.error = PayloadTooLargeError(f"{lease.bytes} bytes")
        try:
            task.job = self._kinds[lease.queue].decode(lease.payload)
        except Exception as error:  # noqa: BLE001 - one job's payload must not harm another job
            task.fail(error)
        if task.error is not None and task.job is None and task.error.subject is None:
            task.error.subject = subject(self._kinds[lease.queue].id_field, lease.payload)
        if task.error is None and lease.state:
            self._handlers[lease.queue].resume(task)

    def begin(self, tasks: Iterable[AnyTask]) -> None:
        """Let the handlers record that work has begun; set the `error` of tasks that need no work.

        Tasks whose lease is lost end here: their job may have ended since its claim, in another run or by `forget`.
        Jobs whose photos cannot be seen are released, and `PhotosInvisibleError` ends the run.
        """
        for name, group in _by_queue(task for task in tasks if task.to_begin and self._owns(task)).items():
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
        """End the task if its lease is known to be lost, and return whether it is."""
        if not self._heartbeat.has_lost(task.lease):
            return False
        self._end(task, Outcome.LOST)
        return True

    def _owns(self, task: AnyTask) -> bool:
        """Return whether the run still owns the lease, and end the task if not; queries Redis unless just claimed."""
        if self._heartbeat.still_owned(task.lease):
            return True
        self._end(task, Outcome.LOST)
        return False

    # Retries of this run, and comparisons that it has deferred or parked

    def wake_overdue(self) -> None:
        """Wake the parked jobs that have timed out; at most every few seconds, however often it is called."""
        if time.monotonic() < self._next_overdue:
            return
        self._next_overdue = time.monotonic() + OVERDUE_SECONDS
        if self._parking is not None:
            self._parking.wake_overdue()
        if self._outages is not None:
            self._outages.check()

    def failing_servers(self) -> int:
        """Return how many image servers are failing; each has at most one lease that is not due."""
        return self._outages.failing() if self._outages is not None else 0

    def wake_stranded(self) -> bool:
        """Wake every parked comparison if there is no process job; return whether any was woken."""
        return self._parking is not None and bool(self._parking.wake_stranded())

    def _expect_woken(self) -> None:
        """Record that the jobs that this run has parked and woken are due now."""
        if self._parking is not None:
            for lease_id in self._own_retries.keys() & self._parking.take_woken():
                self._own_retries[lease_id] = time.monotonic()

    def next_own_retry(self) -> float | None:
        """Return the seconds until the next retry that this run has scheduled, or None if there is none."""
        self._expect_woken()
        now = time.monotonic()
        self._own_retries = {k: due for k, due in self._own_retries.items() if due > now - 1}
        due = min(self._own_retries.values(), default=math.inf)
        return max(0.0, due - now) if due < math.inf else None

    def take_due_retries(self) -> int:
        """Return how many retries of this run are due, and forget them: another run may have claimed them."""
        self._expect_woken()
        now = time.monotonic()
        due = [lease_id for lease_id, moment in self._own_retries.items() if moment <= now]
        for lease_id in due:
            del self._own_retries[lease_id]
        return len(due)

    # Settling

    def conclude(self, tasks: Sequence[AnyTask]) -> None:
        """Defer or retry transient failures; store the results of all other tasks, and settle them."""
        final: list[AnyTask] = []
        if self._outages is not None:
            self._outages.heard(tasks)
        for task in tasks:
            if self._outages is not None and self._outages.concerns(task):
                found = self._outages.failed(task)
                if found is None:
                    final.append(task)
                else:
                    self._wait_for_server(task, *found)
            elif task.error is not None and task.error.transient and self._has_attempts(task):
                self._retry(task, task.error)
            else:
                final.append(task)
        for name, group in _by_queue(final).items():
            start = time.monotonic()
            failures = isolated(self._handlers[name].conclude, group)
            share = (time.monotonic() - start) / len(group)
            for task in group:
                task.began.setdefault("store", start)
                task.stages["store"] = task.stages.get("store", 0.0) + share
            for task, error in failures:
                self._not_stored(task, error)
            self._wait_all(task for task in group if task.wait is not None and task.state is not State.SETTLED)
            self._settle(task for task in group if task.state not in (State.UNCONFIRMED, State.SETTLED))

    def _wait_for_server(self, task: AnyTask, verdict: Verdict, seconds: float) -> None:
        """End a task that waits for its image server; Redis has already parked or deferred its job."""
        if verdict is Verdict.ASK:
            self.release([task])
            return
        if verdict is Verdict.PUT_OFF:
            self._own_retries[task.lease.id] = time.monotonic() + seconds
        self._end(
            task,
            Outcome.LOST if verdict is Verdict.LOST else Outcome.PARKED,
            waits_for=task.server,
            again_in_seconds=round(seconds, 3) if verdict is Verdict.PUT_OFF else None,
        )

    def _wait_all(self, tasks: Iterable[AnyTask]) -> None:
        """Park or defer the tasks, and conclude those whose album has become ready in the meantime."""
        ready = [task for task in tasks if task.wait is not None and not self._wait(task, task.wait)]
        if ready:
            self.conclude(ready)

    def _wait(self, task: AnyTask, wait: Wait) -> bool:
        """Park the task, or release it with a delay; False if it was woken before it was parked."""
        queue = self._queues[task.lease.queue]
        if wait.seconds is None:
            parked = queue.park(task.lease, ALBUM_PENDING, wait.state, job_tally(task, Outcome.PARKED))
            if parked is Parked.WOKEN:
                return False
            done, due = parked is Parked.DONE, math.inf
        else:
            tally = job_tally(task, Outcome.PARKED)
            done = queue.release(task.lease, wait.seconds, reason=ALBUM_PENDING, state=wait.state, tally=tally)
            due = time.monotonic() + wait.seconds
        if done:
            self._own_retries[task.lease.id] = due
        self._end(
            task,
            Outcome.PARKED if done else Outcome.LOST,
            reason=ALBUM_PENDING,
            pending=wait.pending,
            again_in_seconds=wait.seconds,
        )
        return True

    def _not_stored(self, task: AnyTask, error: Exception) -> None:
        """Retry the task, or store that it failed; if that cannot be stored either, its dead letter says why."""
        was_failure = task.error is not None
        task.fail(error)
        assert task.error is not None  # noqa: S101 - set by the line above
        if self._has_attempts(task) and not isinstance(error, PermanentJobError):
            self._retry(task, task.error)
        elif not was_failure:
            isolated(self._handlers[task.lease.queue].conclude, [task])

    def settle_confirmed(self) -> None:
        """Settle the watched answers that can no longer be overwritten."""
        for name, group in _by_queue(self.in_flight.of(State.UNCONFIRMED)).items():
            self._settle(self._handlers[name].confirmed(group))

    def settle_unconfirmed(self) -> None:
        """Settle every watched answer: the run ends, and a later run restores answers that the API overwrites."""
        for name, group in _by_queue(self.in_flight.of(State.UNCONFIRMED)).items():
            self._settle_watched(name, group)

    def _settle_watched(self, name: str, group: Sequence[AnyTask]) -> None:
        self._handlers[name].stop_watching(group)
        self._settle(group)

    def release(self, tasks: Iterable[AnyTask], *, delay_seconds: float = 0) -> None:
        """Return the jobs to their queues, due after `delay_seconds`, without counting the attempt."""
        for task in tasks:
            tally = job_tally(task, Outcome.RELEASED)
            done = self._queues[task.lease.queue].release(task.lease, delay_seconds, tally=tally)
            self._end(task, Outcome.RELEASED if done else Outcome.LOST)

    def abandon(self) -> None:
        """End every task in flight, from any thread: the run ends early.

        There is little time: what Redis refuses, or cannot do at the moment, for one task does not delay the others. It
        is tried again after them. Raises the first error of the last round.
        """
        with ExitStack() as stack:
            for queue in self._queues.values():
                stack.enter_context(queue.without_retries())
            for pause in ABANDON_PAUSES:
                time.sleep(pause)
                failures = self._abandon_once()
                if not any(isinstance(failure, UnreachableError) for failure in failures):
                    break
        if failures:
            raise failures[0]

    def _abandon_once(self) -> list[Exception]:
        """Try to end every task in flight, and return the errors."""
        failures: list[Exception] = []

        def attempt(settle: Callable[[], None]) -> None:
            try:
                settle()
            except Exception as error:  # noqa: BLE001 - the caller raises it
                failures.append(error)

        for name, group in _by_queue(self.in_flight.of(State.UNCONFIRMED)).items():
            attempt(partial(self._settle_watched, name, group))
        for task in self.in_flight:
            attempt(partial(self.release, [task]))
        return failures

    def _settle(self, tasks: Iterable[AnyTask]) -> None:
        """Dead-letter the failed tasks and acknowledge the others, with one call per queue."""
        done: list[AnyTask] = []
        tasks = list(tasks)
        if self._outages is not None:
            self._outages.ending(tasks)
        for task in tasks:
            if task.outcome is Outcome.LOST:
                self._end(task, Outcome.LOST)
            elif task.error is not None and task.error.is_fault:
                self._dead_letter(task, task.error)
            else:
                done.append(task)
        for name, group in _by_queue(done).items():
            tallies = [job_tally(task, _acknowledged(task)) for task in group]
            lost = self._queues[name].acknowledge_many([task.lease for task in group], tallies)
            for task in group:
                self._end(task, Outcome.LOST if task.lease.id in lost else _acknowledged(task))

    def _has_attempts(self, task: AnyTask) -> bool:
        return task.lease.attempts < self._settings.max_attempts

    def _retry(self, task: AnyTask, error: JobError) -> None:
        settings = self._settings
        delay = backoff(
            task.lease.attempts, base=settings.retry_base_seconds, cap=settings.retry_max_seconds, random=self._random
        )
        if self._queues[task.lease.queue].retry(task.lease, delay, error.code, job_tally(task, Outcome.RETRIED)):
            self._own_retries[task.lease.id] = time.monotonic() + delay
            self._end(task, Outcome.RETRIED, again_in_seconds=round(delay, 3))
        else:
            self._end(task, Outcome.LOST)

    def _dead_letter(self, task: AnyTask, error: JobError) -> None:
        tally = job_tally(task, Outcome.DEAD)
        # Requeuing such a job gives the same error, so there is no reason to keep a selfie.
        is_private = self._kinds[task.lease.queue].private
        is_hopeless = is_private and isinstance(error, PermanentJobError) and not isinstance(error, PoisonJobError)
        done = self._queues[task.lease.queue].dead_letter(
            task.lease, error.code, str(error), tally, keep_selfie=not is_hopeless
        )
        self._end(task, Outcome.DEAD if done else Outcome.LOST)

    def _end(self, task: AnyTask, outcome: Outcome, **more: object) -> None:
        """Count the outcome and write the one log line of the job."""
        if not self.in_flight.remove(task):
            return  # `abandon` has ended it in another thread
        task.state, task.outcome = State.SETTLED, outcome
        self._heartbeat.remove(task.lease)
        self._summary.count(task, outcome)
        if outcome is Outcome.LOST and self._run_totals is not None:
            self._run_totals.lost(task)
        if self._traces is not None:
            self._traces.record(task, outcome, self._kinds[task.lease.queue].noun)
        error = task.error
        logger().log(
            WARNING if outcome is Outcome.GONE or (error is not None and error.is_fault) else INFO,
            self._kinds[task.lease.queue].noun,
            extra={
                **task.log_fields(),
                "outcome": str(outcome),
                "faces_found": None if task.faces is None else len(task.faces),
                "error": error.document() if error else None,
                "duration_ms": round((time.monotonic() - task.claimed_at) * 1000, 1),
                "stage_ms": {name: round(seconds * 1000, 1) for name, seconds in task.stage_seconds().items()},
                **more,
            },
        )


def isolated(work: Callable[[Sequence[AnyTask]], None], tasks: Sequence[AnyTask]) -> list[tuple[AnyTask, Exception]]:
    """Do `work` on a batch or, if that fails, on each task alone, so that no job harms another.

    Returns the tasks that failed alone, each with its error. Raises `RunnerError`, which is never caused by a job.
    """
    try:
        work(tasks)
    except RunnerError:
        raise
    except Exception as error:  # noqa: BLE001 - any error that one job's data caused
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
