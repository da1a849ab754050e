"""Progress of a command that processes items, shown only on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from runner.output import is_terminal

if TYPE_CHECKING:  # rich is an extra
    from runner.cli.progress_bar import Bar

_EVERY = 20  # the line is redrawn after this many items


class Counter(Protocol):
    """Shows how many items are done."""

    def start(self, total: int) -> None:
        """Begin, with the number of items."""

    def update(self, done: int) -> None:
        """Show how many items are done."""

    def close(self) -> None:
        """Leave the terminal ready for the next line."""


def bar(what: str, *, waiting: bool = False) -> Bar | None:
    """Return a progress bar if standard error is a terminal and rich is installed, else nothing."""
    if not is_terminal("stderr"):
        return None
    try:
        from runner.cli.progress_bar import Bar  # rich is an extra
    except ModuleNotFoundError:
        return None
    return Bar(what, waiting=waiting)


def counter(what: str) -> Counter:
    """Return a bar on a terminal, a plain count there where rich is not installed, and nothing in a pipe."""
    if not is_terminal("stderr"):
        return _Silent()
    return bar(what) or _Line(what)


class _Silent:
    def start(self, total: int) -> None: ...

    def update(self, done: int) -> None: ...

    def close(self) -> None: ...


class _Line:
    """A line on standard error that is written over."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._total = 0

    def start(self, total: int) -> None:
        self._total = total
        self.update(0)

    def update(self, done: int) -> None:
        if done % _EVERY == 0 or done == self._total:
            sys.stderr.write(f"\r{self._what}: {done} of {self._total}")
            sys.stderr.flush()

    def close(self) -> None:
        sys.stderr.write("\n")
