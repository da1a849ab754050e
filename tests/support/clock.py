"""A clock for tests of waits: time passes only by sleeping, and no sleep takes time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """What `time.monotonic` and `time.sleep` are replaced by; `waits` are the sleeps in their order, in seconds."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
