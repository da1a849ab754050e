"""Progress of the demonstration: a live panel on a terminal, a line every second elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.table import Table

from demo.chart import Sample

LINE_SECONDS = 1.0
_STATUSES = ("UPLOADED", "PROCESSING", "READY", "NO_FACES_FOUND", "FAILED")


class Progress:
    """Shows samples as they are taken; `say` prints a message that stays."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self._live = Live(refresh_per_second=10, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays on the screen."""
        if self._live is not None:
            self._live.console.print(text, highlight=False)
        else:
            print(text, flush=True)

    def show(self, sample: Sample) -> None:
        """Show the latest sample."""
        if self._live is not None:
            self._live.update(_table(sample))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            print(f"  {sample.seconds:5.1f} s  {_line(sample)}", flush=True)


def _line(sample: Sample) -> str:
    depth = f"waiting {sample.waiting}, in flight {sample.in_flight}, runners {sample.runners}"
    return f"{depth} | {_counts(sample.statuses)}"


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {statuses[name]}" for name in _STATUSES if statuses.get(name)) or "no photos yet"


def _table(sample: Sample) -> Table:
    table = Table(title=f"{sample.seconds:.1f} s", box=None, show_header=False, title_justify="left")
    table.add_row("waiting", f"[blue]{'■' * min(sample.waiting, 60)}[/] {sample.waiting}")
    table.add_row("in flight", f"[cyan]{'■' * min(sample.in_flight, 60)}[/] {sample.in_flight}")
    table.add_row("runners", f"[yellow]{'●' * sample.runners}[/] {sample.runners}")
    table.add_row("photos", _counts(sample.statuses))
    return table
