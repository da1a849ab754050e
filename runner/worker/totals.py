"""What a run adds to the totals of its queues: details of each job at its settlement, and counts of the run itself."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runner.errors import RunnerError
from runner.logs import logger
from runner.output import json_text
from runner.queue import totals
from runner.queue.leases import LeaseQueue
from runner.queue.totals import Tally
from runner.worker.task import AnyTask, Outcome


def job_tally(task: AnyTask, outcome: Outcome) -> Tally:
    """Return what a settlement counts besides what its script counts: stages and, at the end of a job, its result."""
    tally = Counter[str]()
    for name in totals.STAGES:
        if (seconds := task.stages.get(name)) is not None:
            totals.observe(tally, name, seconds)
    if outcome in (Outcome.SUCCEEDED, Outcome.GONE, Outcome.DEAD):
        totals.observe(tally, totals.JOB, task.age_seconds)
    if outcome in (Outcome.SUCCEEDED, Outcome.GONE):
        counted_as = totals.SUCCEEDED if outcome is Outcome.SUCCEEDED else totals.GONE
        tally[totals.job_field(counted_as, task.error.code if task.error else totals.NO_CODE)] += 1
    if outcome is Outcome.SUCCEEDED:
        tally[totals.FACES] += len(task.faces or ())
        if task.ready_seconds is not None:
            totals.observe(tally, totals.PHOTO_READY, task.ready_seconds)
    return tally


class RunTotals:
    """Counts the run itself, in the totals of every queue that it claims from."""

    def __init__(self, queues: Sequence[LeaseQueue]) -> None:
        self._queues = queues
        self._ended = False
        self._carry({totals.RUNS_STARTED: 1})

    def ready(self, provider: str) -> None:
        """Count the start-up, which ends now. May be called from any thread."""
        tally = Counter({totals.provider_field(provider): 1})
        totals.observe(tally, totals.START_UP, process_seconds())
        self._carry(tally)

    def lost(self, task: AnyTask) -> None:
        """Count a lease that another runner has taken over."""
        for queue in self._queues:
            if queue.name == task.lease.queue:
                queue.carry({totals.LEASES_LOST: 1})

    def ended(self, reason: str, summary: Mapping[str, object]) -> None:
        """Count the end of the run and keep its summary, once.

        A failure is a warning: the work of the run is done.
        """
        if self._ended:
            return
        self._ended = True
        self._carry({totals.run_field(reason): 1})
        try:
            for queue in self._queues:
                queue.end_run(json_text({**summary, "exit_reason": reason, "runner": queue.owner}))
        except RunnerError as error:
            logger().warning("run not counted", extra={"error": error.document()})

    def _carry(self, tally: Tally) -> None:
        for queue in self._queues:
            queue.carry(tally)


def process_seconds(read: Callable[[], str] = lambda: Path("/proc/self/stat").read_text("utf-8")) -> float:
    """Return how long this process has been running, 0 if the system does not provide it."""
    try:
        began = int(read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return 0.0
