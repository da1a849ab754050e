"""What a run did, counted while it runs and printed as its last line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from runner.output import json_text


class Ending(StrEnum):
    """How a claimed job left this run. Every claimed job has exactly one, or is `unsettled`."""

    SUCCEEDED = "succeeded"  # done and acknowledged
    RETRIED = "retried"  # given a later moment
    BURIED = "buried"  # a dead letter, its final status written
    RELEASED = "released"  # given back, the attempt not counted
    LOST = "lost"  # another runner has taken the lease over


@dataclass
class Summary:
    """The counts of one run. `seconds` is wall time; stages add up over threads, so they can exceed it."""

    started: float = field(default_factory=time.monotonic)
    claimed: int = 0
    endings: Counter[Ending] = field(default_factory=Counter)
    photos: int = 0
    faces: int = 0
    comparisons: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def count(self, queue: str, faces: int, stages: Mapping[str, float], *, done: bool) -> None:
        """Add what one settled job took and, where it is done, what it brought."""
        for name, seconds in stages.items():
            self.stages[name] = self.stages.get(name, 0.0) + seconds
        if done:
            self.photos += queue == "process"
            self.comparisons += queue == "compare"
            self.faces += faces if queue == "process" else 0

    @property
    def unsettled(self) -> int:
        """How many claimed jobs have no ending: their leases fall due by themselves."""
        return self.claimed - sum(self.endings.values())

    def document(self) -> dict[str, object]:
        """Return the object that is printed."""
        return {
            "claimed": self.claimed,
            **{str(ending): self.endings[ending] for ending in Ending},
            "unsettled": self.unsettled,
            "photos": self.photos,
            "comparisons": self.comparisons,
            "faces": self.faces,
            "seconds": round(time.monotonic() - self.started, 3),
            "stages": {name: round(seconds, 3) for name, seconds in sorted(self.stages.items())},
            "reason": self.reason,
        }

    def line(self) -> str:
        """Return the last line of standard output."""
        return json_text(self.document())
