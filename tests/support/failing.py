"""An operation that fails before it succeeds."""

from __future__ import annotations


class Failing:
    """Raises `failures`, one per call, and then returns "done"."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"
