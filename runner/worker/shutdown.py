"""What ends a run before its time: SIGTERM and SIGINT, and a main thread that does not come back.

The drain sees a request to stop at its next turn. A guard thread is the last resort for when it has no next turn:
it hears of a signal from the kernel's side of Python (`signal.set_wakeup_fd`), also while the main thread is
inside a native call, where Python runs no handlers.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

# How often the guard looks; what it has to notice takes many seconds.
GUARD_SECONDS = 5.0
# Native code that holds the interpreter's lock stops the guard too: then the C library's timer ends the process.
FROZEN_SECONDS = 60.0


class StoppedEarlyError(BaseException):
    """Raised in the main thread by a signal that arrives before the drain has begun."""


class Stop:
    """Installs the handlers and the guard for the time of a `with` block in the main thread.

    Until `begin`, nothing has been claimed and a signal simply ends the start-up (`StoppedEarlyError`). From then
    on it sets `requested` and calls `wake`. `last_resort` runs in the guard's thread, and must end the process:
    `grace_seconds` after a signal, or when `progress` was not called for `hung_seconds`. It is told which: "signal"
    or "hung".
    """

    def __init__(self, grace_seconds: float, hung_seconds: float, last_resort: Callable[[str], None]) -> None:
        self.requested = False
        self.requested_at = 0.0
        self.wake: Callable[[], None] = lambda: None
        self._begun = False
        self._progress_at = time.monotonic()
        self._grace_seconds = grace_seconds
        self._hung_seconds = hung_seconds
        self._last_resort = last_resort
        self._ended = threading.Event()
        self._heard, self._kernel = socket.socketpair()
        self._previous: dict[int, object] = {}

    @property
    def early(self) -> bool:
        """Whether a stop was requested before anything was claimed."""
        return self.requested and not self._begun

    def begin(self) -> None:
        """Say that leases may be held from now on."""
        self.progress()
        self._begun = True

    def progress(self) -> None:
        """Say that the main thread has come back."""
        self._progress_at = time.monotonic()

    def overdue(self, seconds: float) -> bool:
        """Return whether a stop was requested at least `seconds` ago."""
        return self.requested and time.monotonic() - self.requested_at >= seconds

    def _guard(self) -> None:
        while not self._ended.is_set():
            faulthandler.dump_traceback_later(self._hung_seconds + FROZEN_SECONDS, exit=True)
            if select.select([self._heard], [], [], GUARD_SECONDS)[0]:
                if not self._ended.wait(self._grace_seconds):
                    self._last_resort("signal")
            elif time.monotonic() - self._progress_at > self._hung_seconds:
                self._last_resort("hung")
        faulthandler.cancel_dump_traceback_later()
        self._heard.close()

    def __enter__(self) -> Self:
        self._kernel.setblocking(False)  # noqa: FBT003 - the method takes it no other way
        signal.set_wakeup_fd(self._kernel.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._guard, name="guard", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]  # what signal.signal returned
        signal.set_wakeup_fd(-1)
        self._kernel.close()  # which wakes the guard

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:  # a second Ctrl-C: the person means it; leases expire by themselves
                os._exit(130)
            return
        self.requested = True
        self.requested_at = time.monotonic()
        if not self._begun:
            raise StoppedEarlyError
        self.wake()
