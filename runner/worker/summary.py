"""The summary of a run: counted during the run, and printed as its last line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.output import json_text
from runner.worker.kinds import KINDS, Kind
from runner.worker.task import AnyTask, Outcome


@dataclass
class Summary:
    """The counts of one run. `duration_seconds` is wall time; stages add up over threads, so they can exceed it."""

    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)
    started: float = field(default_factory=time.monotonic)
    claimed: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)  # by queue
    faces: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    exit_reason: str = ""
    exit_message: str = ""  # of the error that ended the run

    def count(self, task: AnyTask, outcome: Outcome) -> None:
        """Count a settled task: its outcome, its stages and, if it succeeded, its faces."""
        self.outcomes[outcome] += 1
        for name, seconds in task.stage_seconds().items():
            self.stages[name] = self.stages.get(name, 0.0) + seconds
        if outcome is Outcome.SUCCEEDED:
            self.succeeded[task.lease.queue] += 1
            self.faces += len(task.faces or ()) if self.kinds[task.lease.queue].stores_faces else 0

    @property
    def unsettled(self) -> int:
        """How many claimed jobs have no outcome: their leases expire."""
        return self.claimed - sum(self.outcomes.values())

    @property
    def has_finished_job(self) -> bool:
        """Whether a job has ended, rather than waiting for another attempt or run."""
        return any(self.outcomes[outcome] for outcome in (Outcome.SUCCEEDED, Outcome.GONE, Outcome.DEAD))

    def document(self) -> dict[str, object]:
        """Return the object that is printed."""
        return {
            "claimed": self.claimed,
            **{str(outcome): self.outcomes[outcome] for outcome in Outcome},
            "unsettled": self.unsettled,
            **{kind.plural: self.succeeded[queue] for queue, kind in self.kinds.items()},
            "faces": self.faces,
            "duration_seconds": round(time.monotonic() - self.started, 3),
            "stage_seconds": {name: round(seconds, 3) for name, seconds in sorted(self.stages.items())},
            "exit_reason": self.exit_reason,
            **({"exit_message": self.exit_message} if self.exit_message else {}),
        }

    def line(self) -> str:
        """Return the last line of standard output."""
        return json_text(self.document())
