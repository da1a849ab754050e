"""Failing image servers: which photos try them, which wait, and for how long.

The readers of a run stop trying a server after a few failures in a row; the state shared by all runs is in Redis
(`runner.queue.hosts`). A photo waits for its server for at most RUNNER_OUTAGE_SECONDS, and no attempt is counted.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from runner.errors import FetchError, FetchTimeoutError, ForbiddenUrlError, ImageMissingError, ImageTooManyBytesError
from runner.images.urls import server_of
from runner.queue.hosts import Failure, Hosts, Verdict
from runner.queue.leases import Lease, age, backoff
from runner.worker.messages import ProcessJob
from runner.worker.task import AnyTask, Outcome, Task
from runner.worker.totals import job_tally

# The number that `wait_for_host.lua` treats as an outage.
_FAILURES_IN_A_ROW = 3


class Waited(NamedTuple):
    """The state of a photo's server in its lease: the job's age at the first failure, their number, the last one."""

    first_at: float
    failures: int = 0
    code: str = FetchError.code
    detail: str = ""

    def dump(self) -> bytes:
        """Return the state for the lease."""
        return json.dumps([self.first_at, self.failures, self.code, self.detail]).encode()

    @classmethod
    def load(cls, lease: Lease) -> Waited | None:
        """Return what the lease stores; None if the photo has not waited."""
        try:
            first_at, failures, code, detail = json.loads(lease.state or b"[]")
            return cls(float(first_at), int(failures), str(code), str(detail))
        except (ValueError, TypeError):
            return None

    def error(self) -> FetchError:
        """Return the last failure."""
        kind = FetchTimeoutError if self.code == FetchTimeoutError.code else FetchError
        return kind(self.detail, was_asked=False)


class OutageGate:
    """Decides which photos wait for their server. Only `asking` may be called in any thread."""

    def __init__(self, hosts: Hosts, *, timeout_seconds: float, base_seconds: float, cap_seconds: float) -> None:
        self._hosts = hosts
        self._timeout_seconds = timeout_seconds
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._lock = threading.Lock()
        self._in_a_row: Counter[str] = Counter()  # by server: failures since its last answer to this run
        self._failing: set[str] = set()  # as of the last query to Redis
        self._failed_at: dict[str, float] = {}  # by server: when this run recorded its last failure

    # In the readers

    @contextmanager
    def asking(self, task: AnyTask) -> Iterator[None]:
        """Raise `FetchError` if the task's server is failing; otherwise note how the block's request to it ends."""
        with self._lock:
            if not task.is_probe and self._in_a_row[task.server] >= _FAILURES_IN_A_ROW:
                raise FetchError(f"{task.server} is failing", was_asked=False)
        task.asked_at = time.monotonic()
        try:
            yield
        except FetchError as error:
            self._note_failure(task, error)
            raise
        except (ImageMissingError, ImageTooManyBytesError):
            self._note_answer(task)
            raise
        self._note_answer(task)

    def _note_failure(self, task: AnyTask, error: FetchError) -> None:
        with self._lock:
            if error.pause_seconds:
                self._in_a_row[task.server] = _FAILURES_IN_A_ROW
            elif Waited.load(task.lease) is None:  # a single bad object does not decide for its server
                self._in_a_row[task.server] += 1

    def _note_answer(self, task: AnyTask) -> None:
        task.was_answered = True
        self._forget(task.server)

    def _forget(self, server: str) -> None:
        with self._lock:
            del self._in_a_row[server]

    # In the coordinating thread

    def admit(self, tasks: Sequence[AnyTask]) -> dict[AnyTask, tuple[Verdict, float]]:
        """Set the server of each task; return the tasks that wait for theirs, or have lost their lease.

        A task that has waited for too long gets the last failure as its `error`.
        """
        photos = [task for task in tasks if isinstance(task.job, ProcessJob)]
        for task in photos:
            task.server = _server(task)
        if not photos:
            return {}
        self._failing = self._hosts.failing()
        waiting: dict[AnyTask, tuple[Verdict, float]] = {}
        for task in photos:
            if task.error is None and task.server in self._failing:
                self._admit(task, waiting)
        return waiting

    def _admit(self, task: AnyTask, waiting: dict[AnyTask, tuple[Verdict, float]]) -> None:
        waited = Waited.load(task.lease)
        if waited is not None and self._is_over(task, waited):
            task.error = waited.error()
            return
        verdict, seconds = self._wait(task, waited or Waited(age(task.lease), 0, detail=f"{task.server} is failing"))
        if verdict is Verdict.ASK:
            task.is_probe = True
        else:
            waiting[task] = verdict, seconds

    def failed(self, task: AnyTask) -> tuple[Verdict, float] | None:
        """Decide about a task whose `error` is a `FetchError`; None if it has waited for long enough.

        `Verdict.ASK` means that the server is not known to fail: the job is to be claimed again.
        """
        error = task.error
        assert isinstance(error, FetchError)  # noqa: S101 - as documented
        earlier = Waited.load(task.lease)
        waited = earlier or Waited(age(task.lease))
        if self._is_over(task, waited):
            return None
        if not error.was_asked:
            found = self._wait(task, waited._replace(detail=waited.detail or error.detail))
            if found[0] is Verdict.ASK:
                self._forget(task.server)
            return found
        waited = Waited(waited.first_at, waited.failures + 1, error.code, error.detail)
        delay = backoff(waited.failures, base=self._base_seconds, cap=self._cap_seconds, random=self._random)
        self._failed_at[task.server] = time.monotonic()
        return self._wait(task, waited, Failure(waited.failures == 1, error.pause_seconds, delay))

    def _wait(self, task: AnyTask, waited: Waited, failure: Failure | None = None) -> tuple[Verdict, float]:
        return self._hosts.wait(
            task.lease,
            task.server,
            failure=failure,
            timeout_seconds=waited.first_at + self._timeout_seconds,
            state=waited.dump(),
            tally=job_tally(task, Outcome.PARKED),
        )

    def _is_over(self, task: AnyTask, waited: Waited) -> bool:
        return age(task.lease) >= waited.first_at + self._timeout_seconds

    def concerns(self, task: AnyTask) -> bool:
        """Return whether the failure of the task is one of its server."""
        return isinstance(task.error, FetchError) and bool(task.server)

    def heard(self, tasks: Iterable[AnyTask]) -> None:
        """Record the servers that have answered since their last failure: the photos that wait for them become due."""
        answered = [task for task in tasks if task.was_answered]
        for server in {task.server for task in answered if task.is_probe or self._is_news(task)}:
            self._failed_at.pop(server, None)
            self._hosts.answers(server)

    def _is_news(self, task: AnyTask) -> bool:
        return task.asked_at > self._failed_at.get(task.server, math.inf)

    def ending(self, tasks: Iterable[AnyTask]) -> None:
        """Replace the probes among the tasks whose leases are about to end without an answer from their server."""
        for task in tasks:
            if task.server in self._failing and not task.was_answered:
                self._hosts.replace_probe(task.server, task.lease.id)

    def check(self) -> None:
        """Replace lost probes, and wake the photos that have waited for too long."""
        self._hosts.check()

    def failing(self) -> int:
        """Return how many servers are failing."""
        return len(self._hosts.failing())


def _server(task: Task[ProcessJob]) -> str:
    assert task.job is not None  # noqa: S101 - selected by the type of its job
    try:
        return server_of(task.job.image_url)
    except ForbiddenUrlError:  # raised again when the photo is fetched
        return ""
