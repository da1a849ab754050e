"""Plain text for a terminal or a script: columns, durations and questions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from runner.errors import UsageError
from runner.output import is_terminal, printable


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line for each row, its cells aligned in columns, two spaces apart."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def duration(seconds: float | None) -> str:
    """Return a time as kubectl does: 45s, 3m12s, 5h02m, 3d04h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d{hours_left:02d}h"
    if hours:
        return f"{hours}h{minutes_left:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{whole}s"


def confirmed(question: str, consequence: str) -> bool:
    """Ask for confirmation on the terminal, and return whether the answer is yes.

    Raises `UsageError`, with the `consequence`, where there is no terminal.
    """
    if not is_terminal("stdin") or sys.stderr is None:
        raise UsageError(f"{consequence}, and there is no terminal to ask for confirmation: pass --yes")
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
