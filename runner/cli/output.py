"""Rows as people read them on a terminal and scripts cut them: plain text in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.output import printable


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line for each row, its cells two blanks apart and below one another."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
