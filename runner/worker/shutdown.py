"""Graceful shutdown on SIGTERM and SIGINT, and a watchdog for a main thread that hangs.

The worker loop checks for a shutdown request in every iteration. The watchdog thread is the last resort if there is no
next iteration: `signal.set_wakeup_fd` notifies it of signals even while the main thread is inside a native call, where
Python runs no handlers.
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

# How often the watchdog checks for progress: a call counts as hung only after many seconds.
WATCHDOG_SECONDS = 5.0
# Native code that holds the GIL blocks the watchdog too: then faulthandler's timer ends the process.
FROZEN_SECONDS = 60.0


class StoppedEarlyError(BaseException):
    """Raised in the main thread by a signal that arrives before the worker loop has begun."""


def wait_before_exit(seconds: float) -> None:
    """Wait for `seconds`, or until SIGTERM or SIGINT. Called in the main thread, after a `Stop` has ended."""
    if seconds <= 0:
        return
    signalled = threading.Event()
    # For the first process of a container, the kernel ignores signals without a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signalled.set())
    signalled.wait(seconds)


class Stop:
    """Installs the signal handlers and the watchdog for the duration of a `with` block in the main thread.

    Until `begin`, nothing has been claimed and a signal ends the start-up (`StoppedEarlyError`). From then on it sets
    `requested` and calls `wake`. `last_resort` runs in the watchdog's thread, and must end the process: with "signal"
    `grace_seconds` after a signal, or with "hung" after `hung_seconds` without a call of `progress`.
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
        self._receiver, self._sender = socket.socketpair()
        self._previous: dict[int, object] = {}

    @property
    def early(self) -> bool:
        """Whether a stop was requested before anything was claimed."""
        return self.requested and not self._begun

    def begin(self) -> None:
        """Mark the end of the start-up: from now on the run may own leases."""
        self.progress()
        self._begun = True

    def progress(self) -> None:
        """Report that the main thread is not hung."""
        self._progress_at = time.monotonic()

    def overdue(self, seconds: float) -> bool:
        """Return whether a stop was requested at least `seconds` ago."""
        return self.requested and time.monotonic() - self.requested_at >= seconds

    def _watch(self) -> None:
        while not self._ended.is_set():
            faulthandler.dump_traceback_later(self._hung_seconds + FROZEN_SECONDS, exit=True)
            if select.select([self._receiver], [], [], WATCHDOG_SECONDS)[0]:
                faulthandler.dump_traceback_later(self._grace_seconds + FROZEN_SECONDS, exit=True)
                if not self._ended.wait(self._grace_seconds):
                    self._last_resort("signal")
            elif time.monotonic() - self._progress_at > self._hung_seconds:
                self._last_resort("hung")
        faulthandler.cancel_dump_traceback_later()
        self._receiver.close()

    def __enter__(self) -> Self:
        self._sender.setblocking(False)  # noqa: FBT003 - the method takes it no other way
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]  # what signal.signal returned
        signal.set_wakeup_fd(-1)
        self._sender.close()  # wakes the watchdog

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:  # a second Ctrl-C: exit at once; the leases expire
                os._exit(130)
            return
        self.requested = True
        self.requested_at = time.monotonic()
        if not self._begun:
            raise StoppedEarlyError
        self.wake()
