"""How a single run ended, with the checks that every run must pass."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """The result of a run; `seconds` is how long it took to end."""

    code: int
    summary: dict[str, Any]
    errors: str
    seconds: float


def end(process: subprocess.Popen[str], seconds: float) -> Ended:
    """Wait up to `seconds` for a run to end, and check that its summary adds up."""
    started = time.monotonic()
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
        process.wait()
    lines = output.splitlines()
    summary = json.loads(lines[-1]) if lines else {}
    if summary:
        outcomes = ("succeeded", "photo_gone", "retried", "dead_lettered", "parked", "released", "lease_lost")
        settled = sum(summary[outcome] for outcome in outcomes)
        assert summary["claimed"] == settled + summary["unsettled"]
        assert summary["unsettled"] == 0 or process.returncode != 0
    return Ended(process.returncode, summary, errors, time.monotonic() - started)
