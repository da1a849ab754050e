"""SIGTERM and SIGINT: a request to stop, seen by the drain, with a last resort when it cannot see it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class StoppedEarlyError(BaseException):
    """Raised in the main thread by a signal that arrives before the drain has begun."""


class Stop:
    """Installs the handlers for the time of a `with` block in the main thread.

    Until `begin`, nothing has been claimed and a signal simply ends the start-up (`StoppedEarlyError`). From then
    on it sets `requested` and calls `wake`. Should the main thread be inside a call that does not return,
    `last_resort` runs `grace_seconds` after the signal, in a thread of its own.
    """

    def __init__(self, grace_seconds: float, last_resort: Callable[[], None]) -> None:
        self.requested = False
        self.requested_at = 0.0
        self.wake: Callable[[], None] = lambda: None
        self._begun = False
        self._grace_seconds = grace_seconds
        self._timer = threading.Timer(grace_seconds, last_resort)
        self._timer.daemon = True
        self._previous: dict[int, object] = {}

    def begin(self) -> None:
        """Say that leases may be held from now on."""
        self._begun = True

    def overdue(self, seconds: float) -> bool:
        """Return whether a stop was requested at least `seconds` ago."""
        return self.requested and time.monotonic() - self.requested_at >= seconds

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]  # what signal.signal returned

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:  # a second Ctrl-C: the person means it; leases expire by themselves
                os._exit(130)
            return
        self.requested = True
        self.requested_at = time.monotonic()
        if not self._begun:
            raise StoppedEarlyError
        self._timer.start()
        self.wake()
