"""A progress bar on a terminal, drawn by rich."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """Shows the progress of `what` and the remaining time on standard error; optionally the `waiting` jobs too."""

    def __init__(self, what: str, *, waiting: bool = False) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            *([TextColumn("{task.fields[waiting]} waiting")] if waiting else []),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", waiting=0)

    def start(self, total: int) -> None:
        """Begin, with the number of items."""
        self._progress.update(self._task, total=total)
        self._progress.start()

    def update(self, done: int, waiting: int = 0) -> None:
        """Draw the bar."""
        self._progress.update(self._task, completed=done, waiting=waiting)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()
