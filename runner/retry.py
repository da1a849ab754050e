"""The one retry policy for operations on servers: Redis and PostgreSQL.

tenacity is imported after the first failure: its import takes 4.5 ms, and most runs meet no failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SHORTEST_WAIT_SECONDS = 0.05
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 3.0
_WHOLE_SECONDS_FROM = 10


def _nothing(_: float) -> None:
    pass


class RetryPolicy(NamedTuple):
    """How long an operation is retried, and after which errors.

    `seconds` count from the first failure: no attempt starts after them, and with 0 there is only one. The delays
    between attempts are random: at least 0.05 s, and at most a bound that doubles from 0.1 s to 3 s.
    """

    seconds: float
    is_transient: Callable[[BaseException], bool]

    def call(self, operation: Callable[[], T], *, before_retry: Callable[[float], None] = _nothing) -> T:
        """Return the result of `operation`, which is retried while it fails with transient errors.

        `before_retry` is called before each retry, with the seconds that are left. Raises the last error unchanged.
        """
        try:
            return operation()
        except Exception as error:
            if not self.is_transient(error):
                raise
            failure = error
        return self._repeat(operation, before_retry, failure)

    def _repeat(self, operation: Callable[[], T], before_retry: Callable[[float], None], failure: Exception) -> T:
        # It imports asyncio, and most runs never retry anything.
        from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

        unreported, began = [failure], time.monotonic()

        def attempt() -> T:
            if unreported:  # the first attempt has been made: its failure starts the clock
                raise unreported.pop()
            before_retry(self.seconds - (time.monotonic() - began))
            return operation()

        waits = wait_random_exponential(
            multiplier=FIRST_WAIT_SECONDS, min=SHORTEST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS
        )
        retry = retry_if_exception(self.is_transient)
        return Retrying(stop=stop_before_delay(self.seconds), wait=waits, retry=retry, reraise=True)(attempt)


def time_spent(seconds: float) -> str:
    """Return how long an operation was tried, for messages."""
    if seconds < SHORTEST_WAIT_SECONDS:  # there was no time for a retry
        return "tried once"
    return f"tried for {seconds:.0f} s" if round(seconds, 1) >= _WHOLE_SECONDS_FROM else f"tried for {seconds:.1f} s"
