"""How a claimed job leaves the run: concluded by its handler, then settled in the queue, exactly once."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any

from runner.errors import InvalidJobError, JobError, PhotoGoneError, PoisonJobError, RunnerError
from runner.logs import logger
from runner.queue.leases import backoff
from runner.worker.messages import subject
from runner.worker.summary import Ending, Summary
from runner.worker.task import Conclusion, Handler, Task, job_error

if TYPE_CHECKING:
    from runner.queue.heartbeat import Heartbeat
    from runner.queue.leases import Lease
    from runner.queue.source import LeaseSource
    from runner.settings import Settings

AnyTask = Task[Any]


class Settler:
    """Knows every lease that this run holds, and ends each in one way.

    A failed job is retried while its error is transient and attempts are left; otherwise its handler writes the
    final status, and only then is it buried: a crash in between leaves a lease, never a job without a status.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        queues: Mapping[str, LeaseSource],
        handlers: Mapping[str, Handler[Any]],
        heartbeat: Heartbeat,
        summary: Summary,
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._handlers = handlers
        self._heartbeat = heartbeat
        self._summary = summary
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._log = logger()
        self._held: set[AnyTask] = set()
        self._watched: set[AnyTask] = set()
        self._own_retries: dict[str, float] = {}

    @property
    def watching(self) -> bool:
        """Whether answers are still watched for the API's late INITIATED."""
        return bool(self._watched)

    def next_own_retry(self) -> float | None:
        """Return in how many seconds the next retry that this run has set falls due, or None without one."""
        now = time.monotonic()
        self._own_retries = {k: due for k, due in self._own_retries.items() if due > now - 1}
        return max(0.0, min(self._own_retries.values()) - now) if self._own_retries else None

    def take_due_retries(self) -> int:
        """Return how many retries of this run are due, and count on them no more: another may have been quicker."""
        now = time.monotonic()
        due = [lease_id for lease_id, moment in self._own_retries.items() if moment <= now]
        for lease_id in due:
            del self._own_retries[lease_id]
        return len(due)

    def hold(self, leases: Sequence[Lease]) -> list[AnyTask]:
        """Keep the leases alive from now on, and return a task for each."""
        self._heartbeat.hold(leases)
        self._summary.claimed += len(leases)
        tasks: list[AnyTask] = [
            Task(lease, again=self._own_retries.pop(lease.id, None) is not None) for lease in leases
        ]
        self._held.update(tasks)
        return tasks

    def decode(self, name: str, tasks: Sequence[AnyTask]) -> list[AnyTask]:
        """Let the handler of the list decode the jobs; return what can begin. The others have their `error`."""
        for task in tasks:
            if task.lease.attempts > self._settings.max_attempts:
                task.error = PoisonJobError(f"it ended {task.lease.attempts - 1} of its runners")
            elif task.lease.truncated:
                task.error = InvalidJobError(f"the payload is larger than a runner takes: {task.lease.bytes} bytes")
            if task.error is not None and task.lease.truncated:
                task.error.subject = subject(name, task.lease.payload)
            try:
                task.job = self._handlers[name].decode(task.lease.payload)
            except Exception as error:  # noqa: BLE001 - one job's payload must hurt no other
                task.error = task.error or job_error(task, error)
        return [task for task in tasks if task.error is None]

    def begin(self, name: str, tasks: Sequence[AnyTask]) -> None:
        """Let the handler write that work has begun; what turns out to be in vain gets its `error`.

        What fails as a batch is begun one by one, so that no job hurts another.
        """
        if not tasks:
            return
        try:
            self._handlers[name].begin(tasks)
        except RunnerError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one job's data did to the batch
            if len(tasks) == 1:
                tasks[0].error = tasks[0].error or job_error(tasks[0], error)
                return
            for task in tasks:
                self.begin(name, [task])

    def dropped(self, task: AnyTask) -> bool:
        """Return whether the lease is known to be lost; then the task has ended here."""
        if not self._heartbeat.has_lost(task.lease):
            return False
        self._end(task, Ending.LOST)
        return True

    def conclude(self, tasks: Sequence[AnyTask]) -> None:
        """Retry what may still work; store the outcome of everything else and settle it."""
        final: dict[str, list[AnyTask]] = {}
        for task in tasks:
            error = task.error
            if error is not None and error.transient and task.lease.attempts < self._settings.max_attempts:
                self._retry(task, error)
            else:
                final.setdefault(task.lease.queue, []).append(task)
        for name, group in final.items():
            self._settle(self._stored(self._handlers[name], group))

    def release(self, tasks: Sequence[AnyTask]) -> None:
        """Give the leases back, due at once, without counting the attempt."""
        for task in tasks:
            done = self._queues[task.lease.queue].release(task.lease)
            self._end(task, Ending.RELEASED if done else Ending.LOST)

    def abandon(self) -> None:
        """End everything that is still held, from any thread: the run ends before its time."""
        self.settle_unconfirmed()
        self.release(list(self._held))

    def settle_confirmed(self) -> None:
        """Acknowledge the watched answers that nothing can overwrite any more."""
        if self._watched:
            self._finish([task for handler in self._handlers.values() for task in handler.confirmed()])

    def settle_unconfirmed(self) -> None:
        """Acknowledge every watched answer: the run ends, and a later one heals what the API overwrote."""
        if self._watched:
            self._finish([task for handler in self._handlers.values() for task in handler.stop_watching()])

    def _stored(self, handler: Handler[Any], tasks: list[AnyTask]) -> dict[AnyTask, Conclusion]:
        """Return the conclusions of a batch; what fails as a batch is stored one by one, so none hurts another."""
        start = time.monotonic()
        try:
            return handler.conclude(tasks)
        except RunnerError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one job's data did to the batch
            if len(tasks) > 1:
                return {k: v for task in tasks for k, v in self._stored(handler, [task]).items()}
            return self._refused(handler, tasks[0], job_error(tasks[0], error))
        finally:
            share = (time.monotonic() - start) / len(tasks)
            for task in tasks:
                task.stages["store"] = task.stages.get("store", 0.0) + share

    def _refused(self, handler: Handler[Any], task: AnyTask, fault: JobError) -> dict[AnyTask, Conclusion]:
        """Try again later to store it, or store that it failed; what cannot even be that is buried all the same."""
        failed_before = task.error is not None
        task.error = task.error or fault
        if task.lease.attempts < self._settings.max_attempts:
            self._retry(task, fault)
            return {}
        return {task: Conclusion.DONE} if failed_before else self._stored(handler, [task])

    def _settle(self, conclusions: Mapping[AnyTask, Conclusion]) -> None:
        finished: list[AnyTask] = []
        for task, conclusion in conclusions.items():
            if conclusion is Conclusion.LOST:
                self._end(task, Ending.LOST)
            elif conclusion is Conclusion.UNCONFIRMED:
                self._watched.add(task)
            else:
                if conclusion is Conclusion.GONE:
                    task.error = PhotoGoneError()
                finished.append(task)
        self._finish(finished)

    def _retry(self, task: AnyTask, error: JobError) -> None:
        settings = self._settings
        delay = backoff(
            task.lease.attempts, base=settings.retry_seconds, cap=settings.retry_max_seconds, random=self._random
        )
        if self._queues[task.lease.queue].retry(task.lease, delay, error.word):
            self._own_retries[task.lease.id] = time.monotonic() + delay
            self._end(task, Ending.RETRIED, again_in_seconds=round(delay, 3))
        else:
            self._end(task, Ending.LOST)

    def _bury(self, task: AnyTask, error: JobError) -> None:
        done = self._queues[task.lease.queue].bury(task.lease, error.word, str(error))
        self._end(task, Ending.BURIED if done else Ending.LOST)

    def _finish(self, tasks: Sequence[AnyTask]) -> None:
        """Bury the faults and acknowledge the others, those of a list in one call."""
        good: dict[str, list[AnyTask]] = {}
        for task in tasks:
            self._watched.discard(task)
            if task.error is not None and task.error.is_fault:
                self._bury(task, task.error)
            else:
                good.setdefault(task.lease.queue, []).append(task)
        for name, group in good.items():
            lost = self._queues[name].acknowledge_many([task.lease for task in group])
            for task in group:
                self._end(task, Ending.LOST if task.lease.id in lost else Ending.SUCCEEDED)

    def _end(self, task: AnyTask, ending: Ending, **more: object) -> None:
        """Count the ending and write the one log line of the job."""
        try:
            self._held.remove(task)
        except KeyError:  # `abandon` ended it from another thread meanwhile
            return
        self._heartbeat.drop(task.lease)
        self._summary.endings[ending] += 1
        self._summary.count(task.lease.queue, len(task.faces or ()), task.stages, done=ending is Ending.SUCCEEDED)
        error = task.error
        level = WARNING if error is not None and error.is_fault else INFO
        self._log.log(
            level,
            "photo" if task.lease.queue == "process" else "comparison",
            extra={
                **task.names(),
                "outcome": str(ending),
                "faces_found": None if task.faces is None else len(task.faces),
                "reason": error.word if error else None,
                "detail": str(error) if error else None,
                "milliseconds": round((time.monotonic() - task.claimed_at) * 1000, 1),
                "stages_ms": {name: round(seconds * 1000, 1) for name, seconds in task.stages.items()},
                **more,
            },
        )
