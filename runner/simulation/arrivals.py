"""When jobs are pushed: a burst, a day's curve, or a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.errors import UsageError

Seconds = NDArray[np.float64]

MOST_JOBS = 10_000_000
MOST_SECONDS = 31 * 86_400
_DAY = 86_400
_HEADER = ["seconds", "jobs"]
# Jobs per hour of a day, in relative units, from midnight on: quiet until noon, the most at 21:00. An assumption about
# parties; use a CSV file if the real curve is known.
DAY_CURVE = (4, 3, 2, 1, 1, 1, 1, 2, 4, 6, 8, 10, 12, 13, 14, 16, 18, 20, 24, 32, 40, 44, 32, 14)


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """The times of all pushes in seconds, ascending. `is_burst`: they depend on no time of day, only on KEDA's poll."""

    name: str
    seconds: Seconds = field(repr=False)
    is_burst: bool = False

    def __len__(self) -> int:
        """Return the number of jobs."""
        return len(self.seconds)


def burst(jobs: int) -> Arrivals:
    """Return `jobs` pushes at once. Raises `UsageError` for too many."""
    _check_count(jobs, "--burst")
    return Arrivals(f"a burst of {jobs:,} jobs", np.zeros(jobs), is_burst=True)


def day(jobs: int, seed: int) -> Arrivals:
    """Return `jobs` pushes over a day, at independent random times that follow `DAY_CURVE`."""
    _check_count(jobs, "--day")
    shares = np.cumsum((0, *DAY_CURVE)) / sum(DAY_CURVE)
    drawn = np.sort(np.random.default_rng(seed).random(jobs))
    hours = np.linspace(0, _DAY, len(DAY_CURVE) + 1)
    return Arrivals(f"a day of {jobs:,} jobs", np.interp(drawn, shares, hours))


def from_csv(path: Path) -> Arrivals:
    """Return the pushes of a file with the columns seconds and jobs: how many jobs were pushed at that second.

    Raises `UsageError` if the file cannot be read, or has no jobs, too many, or a malformed row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            moments, counts = _rows(path, file.read().splitlines())
    except OSError as error:
        raise UsageError(f"{path} cannot be read (--csv): {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"{path} is not a CSV file in UTF-8 (--csv)") from None
    order = np.argsort(moments, kind="stable")
    seconds = np.repeat(np.asarray(moments, np.float64)[order], np.asarray(counts, np.int64)[order])
    return Arrivals(f"{len(seconds):,} jobs of {path.name}", seconds - seconds[0])


def _rows(path: Path, lines: list[str]) -> tuple[list[float], list[int]]:
    rows = csv.reader(lines)
    if [name.strip() for name in next(rows, [])] != _HEADER:
        raise UsageError(f"{path}: the first line must be {','.join(_HEADER)} (--csv)")
    moments: list[float] = []
    counts: list[int] = []
    total = 0
    for row in rows:
        if not row:
            continue
        moment, count = _row(path, rows.line_num, row)
        total += count
        if total > MOST_JOBS:
            raise UsageError(f"{path}, row {rows.line_num}: more than {MOST_JOBS:,} jobs (--csv)")
        if count:
            moments.append(moment)
            counts.append(count)
    if not total:
        raise UsageError(f"{path} has no jobs (--csv)")
    return moments, counts


def _row(path: Path, number: int, row: list[str]) -> tuple[float, int]:
    try:
        moment, count = float(row[0]), int(row[1])
    except (ValueError, IndexError):
        moment = count = -1
    if not (isfinite(moment) and 0 <= moment <= MOST_SECONDS and count >= 0) or len(row) != len(_HEADER):
        raise UsageError(
            f"{path}, row {number}: must be a number of seconds from 0 to {MOST_SECONDS} and a whole number of jobs, "
            "such as 3600,25 (--csv)"
        )
    return moment, count


def _check_count(jobs: int, flag: str) -> None:
    if jobs > MOST_JOBS:
        raise UsageError(f"{flag} is at most {MOST_JOBS:,} jobs (got {jobs:,})")
