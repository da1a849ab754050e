"""`spottmee-worker run` that measures how busy its engine is.

    python benchmarks/watched_run.py FILE JOBS

Writes to FILE the share of the time, from the start of the first photo to the end of the last one, during which the
engine's threads were busy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from runner import settings
from runner.faces import engine
from runner.faces.engine import Engine, Face
from runner.worker.app import run


class WatchedEngine(Engine):
    """Records when it started its first photo and finished its last."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.began: float | None = None
        self.ended = 0.0
        opened.append(self)

    def submit(self, load: Callable[[], Any]) -> Future[list[Face]]:
        """Submit as the engine does, and record the times."""

        def noted() -> Any:
            self.began = time.monotonic() if self.began is None else self.began
            return load()

        future = super().submit(noted)
        future.add_done_callback(lambda _: setattr(self, "ended", time.monotonic()))
        return future


opened: list[WatchedEngine] = []


def main(output: Path, jobs: str) -> int:
    """Run and write the file."""
    engine.Engine = WatchedEngine  # type: ignore[misc]  # later imports get the watched engine
    code = run(settings.load(flags={"max_jobs": jobs}))
    for one in opened:
        span = one.ended - (one.began or one.ended)
        output.write_text(json.dumps({"busy": one.busy_seconds / (one.threads * span) if span else 0.0}))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
