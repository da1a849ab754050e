"""Wakes an idle run as soon as a job is pushed, with one blocking Redis call per list instead of polling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from runner.errors import RunnerError, SpottmeeError
from runner.logs import logger
from runner.queue.leases import LeaseQueue

# How long a call blocks: shorter than any sensible socket timeout, so that a thread that is no longer needed ends soon.
BLOCK_SECONDS = 2.0
# A list can have jobs that this run may not claim, or that another run claims first: then wake-ups are this far apart.
PAUSE_SECONDS = 0.05


class Arrivals:
    """Watches lists while the run is idle, each in a daemon thread. `wake` is called in such a thread.

    `close` ends the threads without waiting for them. A list that cannot be watched (the Redis user lacks +blmove, or
    Redis is unreachable) is a warning: `expect` is False from then on, and the caller polls.
    """

    def __init__(self, queues: Iterable[LeaseQueue], wake: Callable[[], None]) -> None:
        self._queues = list(queues)
        self._wake = wake
        self._expected = [threading.Event() for _ in self._queues]
        self._started = self._failed = self._closed = False

    def expect(self) -> bool:
        """Call `wake` once for each list when a job waits in it. Return whether every list can be watched."""
        if not self._started:
            self._started = True
            for queue, expected in zip(self._queues, self._expected, strict=True):
                thread = threading.Thread(target=self._watch, args=(queue, expected), name="arrivals", daemon=True)
                thread.start()
        for expected in self._expected:
            expected.set()
        return not self._failed

    def close(self) -> None:
        """End the threads; `wake` is not called any more."""
        self._closed = True
        for expected in self._expected:
            expected.set()

    def _watch(self, queue: LeaseQueue, expected: threading.Event) -> None:
        while not self._failed:
            expected.wait()
            if self._closed:
                return
            try:
                arrived = queue.wait_for_push(BLOCK_SECONDS)
            except Exception as error:  # noqa: BLE001 - the run polls instead, and its claim gets the same error
                self._give_up(queue, error)
                return
            if arrived and not self._closed:
                expected.clear()
                self._wake()
                time.sleep(PAUSE_SECONDS)

    def _give_up(self, queue: LeaseQueue, error: Exception) -> None:
        if self._closed:
            return
        self._failed = True
        known = error if isinstance(error, SpottmeeError) else RunnerError(type(error).__name__)
        logger().warning(
            "cannot wait for pushes, polling instead", extra={"queue": queue.name, "error": known.document()}
        )
        self._wake()
