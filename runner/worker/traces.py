"""Optional traces: a span for each job, sent over OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is set.

The loop only puts finished jobs into a queue. A daemon thread imports the SDK with the first of them, and sends them:
the collector can never delay a job, and at the end the run waits for a bounded time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from queue import Full, Queue
from typing import NamedTuple

from runner.logs import logger
from runner.worker.task import AnyTask, Outcome

# How long the end of a run waits for the collector; after SIGTERM it has less time.
CLOSE_SECONDS = 2.0
CLOSE_AFTER_SIGNAL_SECONDS = 0.3
# Finished jobs that wait for the sender: further ones are dropped, and counted.
MOST_WAITING = 10_000
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Stage(NamedTuple):
    """A stage of a job; its start is in nanoseconds of the Unix epoch."""

    name: str
    start: int
    nanoseconds: int


class FinishedJob(NamedTuple):
    """What a span says about a job: never its payload or its URL."""

    name: str
    start: int
    end: int
    attributes: Mapping[str, str | int]
    error: str | None
    stages: tuple[Stage, ...]


class Traces:
    """Sends finished jobs as spans. Nothing here raises."""

    def __init__(self) -> None:
        self._jobs: Queue[FinishedJob | None] = Queue(MOST_WAITING)
        self._dropped = 0
        self._sent = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, task: AnyTask, outcome: Outcome, noun: str) -> None:
        """Queue the job of `task`, which is a `noun`, for sending."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()
        try:
            self._jobs.put_nowait(_finished(task, outcome, noun))
        except Full:
            self._dropped += 1

    def close(self, *, stopped: bool) -> None:
        """Wait until everything is sent, for a bounded time: less if a signal has `stopped` the run."""
        if self._thread is None:
            return
        try:
            self._jobs.put_nowait(None)
        except Full:
            self._dropped += 1
        seconds = CLOSE_AFTER_SIGNAL_SECONDS if stopped else CLOSE_SECONDS
        if not self._sent.wait(seconds):
            _warn(f"the collector has not answered within {seconds:g} s of the end of the run")
        elif self._dropped:
            _warn(f"{self._dropped} jobs came faster than they could be sent")

    def _run(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # noqa: BLE001 - a missing package, a malformed setting: no reason to fail a run
            _warn(f"{type(error).__name__}: is the extra traces installed, and is OTEL_EXPORTER_OTLP_* valid?")
        finally:
            self._sent.set()

    def _send_all(self) -> None:
        from runner.worker.otlp import Sender  # the SDK is an extra, and takes 0.3 s to import

        sender = Sender()
        while (job := self._jobs.get()) is not None:
            sender.add(job)
        sender.close()
        if sender.failed:
            _warn("the collector rejected them or is unreachable: check OTEL_EXPORTER_OTLP_ENDPOINT")


def from_environment(environment: Mapping[str, str] = os.environ) -> Traces | None:
    """Return traces if OpenTelemetry's variables ask for them."""
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return None if off or not any(environment.get(name) for name in _ENDPOINTS) else Traces()


def _finished(task: AnyTask, outcome: Outcome, noun: str) -> FinishedJob:
    now = time.time_ns()
    offset = now - time.monotonic_ns()
    fields = {f"spottmee.{name}": value for name, value in task.log_fields().items() if isinstance(value, str | int)}
    stages = tuple(
        Stage(name, offset + round(task.began[name] * 1e9), round(seconds * 1e9))
        for name, seconds in task.stage_seconds().items()
        if name in task.began
    )
    return FinishedJob(
        name=noun,
        start=offset + round(task.claimed_at * 1e9),
        end=now,
        attributes={**fields, "spottmee.outcome": str(outcome)},
        error=task.error.code if task.error is not None else None,
        stages=stages,
    )


def _warn(detail: str) -> None:
    logger().warning("traces not sent", extra={"detail": detail})
