"""Reads the queues for every request and, in a separate thread, for the history. Survives outages of Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redis import Redis

from runner.errors import RunnerError
from runner.logs import logger
from runner.queue import client
from runner.queue.leases import Leased, LeaseQueue
from runner.queue.memory import Memory, read_memory
from runner.queue.samples import Moment, RunSummary, Sample, Sampler
from runner.settings import Settings

# A scrape must return before Prometheus gives up (10 s), even if Redis does not respond.
PATIENCE_SECONDS = 1.0
# More frequent requests get the same reading, so that clients cannot overload Redis through this process.
FRESH_SECONDS = 0.5
# How often the queues are read without requests, which is the precision of the age of the oldest job.
SAMPLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The queues at `time` (Unix epoch); `samples` is None, and `error` says why, if Redis did not answer.

    `exit_code` is that of a command that ends because of the error.
    """

    time: float
    samples: Sequence[Sample] | None
    seconds: float = 0.0
    error: str = ""
    memory: Memory | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Details:
    """What the page shows about one queue besides its sample."""

    history: Sequence[Moment]
    runs: Sequence[RunSummary]
    leases: Sequence[Leased]


class Reader:
    """Reads the queues of `settings.queues`. Its methods may be called from any thread, and never raise."""

    def __init__(self, settings: Settings) -> None:
        patience = min(settings.connect_timeout_seconds, PATIENCE_SECONDS)
        self._settings = replace(settings, connect_timeout_seconds=patience)
        self._redis: Redis | None = None
        self._samplers: list[Sampler] = []
        self._lock = threading.Lock()
        self._latest: tuple[float, Reading] | None = None
        self._problem: str | None = None
        self._stopped = threading.Event()

    def read(self) -> Reading:
        """Return the current state of the queues, at most half a second old."""
        with self._lock:
            if self._latest is not None and time.monotonic() - self._latest[0] < FRESH_SECONDS:
                return self._latest[1]
            reading = self._read()
            self._latest = time.monotonic(), reading
            return reading

    def details(self) -> dict[str, Details]:
        """Return the other content of the page by queue; nothing if Redis did not answer."""
        with self._lock:
            try:
                return {sampler.name: self._details(sampler) for sampler in self._opened()}
            except RunnerError as error:
                self._note(error)
                return {}

    def run(self) -> None:
        """Read the queues every few seconds until `stop`."""
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.read()

    def stop(self) -> None:
        """End `run`, and close the connection."""
        self._stopped.set()
        with self._lock:
            client.close(self._redis)
            self._redis = None

    def _read(self) -> Reading:
        before = time.perf_counter()
        try:
            samples = [sampler.sample() for sampler in self._opened()]
            memory = read_memory(self._redis) if self._redis is not None else None
        except RunnerError as error:
            self._note(error)
            return Reading(time.time(), None, error=error.code, exit_code=error.exit_code)
        self._note(None)
        return Reading(time.time(), samples, time.perf_counter() - before, memory=memory)

    def _details(self, sampler: Sampler) -> Details:
        assert self._redis is not None  # noqa: S101 - it has samplers only with a connection
        queue = LeaseQueue(self._redis, sampler.name, owner="observer", lease_seconds=0, max_attempts=0)
        return Details(sampler.history(), sampler.runs(), queue.leased())

    def _opened(self) -> list[Sampler]:
        if self._redis is None:
            self._redis = client.connect(self._settings)
            self._samplers = [Sampler(self._redis, name) for name in self._settings.queues]
        return self._samplers

    def _note(self, error: RunnerError | None) -> None:
        """Log once that Redis does not answer, and once that it answers again."""
        problem = None if error is None else error.code
        if problem != self._problem:
            if error is not None:
                logger().error("metrics without Redis", extra={"error": error.document()})
            else:
                logger().info("Redis answers again")
        self._problem = problem
