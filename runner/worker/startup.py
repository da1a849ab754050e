"""The start-up of a run: how interpreter and C libraries are set for it, and set back after it.

Imports hold the interpreter, so `app` has them one after the other, in the order in which something slow can begin
behind them: the model loads in a thread of its own, then the first jobs are fetched and computed, and PostgreSQL's
driver, a quarter of all imports, comes last. docs/explanation/performance.md has the measurements.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

M_ARENA_MAX = -8  # malloc.h of glibc
# How long a thread waits for the interpreter before it asks for it: in the start-up, and afterwards (Python's default).
START_UP_SWITCH_SECONDS = 0.00005
SWITCH_SECONDS = 0.005


def begin() -> None:
    """Make the start-up quick: no garbage collection, quick thread switches, one BLAS thread, one malloc arena."""
    # What imports make stays: the collector would look through it a dozen times.
    gc.disable()
    # Imports keep the interpreter busy, and a thread that comes back from native code waits this long for it, every
    # time: the model took 160 instead of 60 ms to load behind them.
    sys.setswitchinterval(START_UP_SWITCH_SECONDS)
    # numpy's BLAS would start a thread for every core of the node, each with a buffer, and a run multiplies small
    # matrices alone.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # OpenCV repeats warnings of its decoders on standard error, which may hold text of the image.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    # glibc gives every thread a heap, which keeps the most it ever held: 40 MiB over 40 photos of 12 megapixels.
    with suppress(OSError, AttributeError):  # another libc has no such call
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def end() -> None:
    """Switch threads and collect garbage as usual, but never look at what the start-up made: not at the exit either."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.enable()


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Do `work` in a daemon thread of its own."""
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=target, name=name, daemon=True).start()
    return future
