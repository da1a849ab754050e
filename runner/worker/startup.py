"""The start-up of a run: settings of the interpreter and the C libraries that make it fast, undone after it.

Imports hold the GIL, so `app` orders them by what can then start in the background: first the model loads in a thread
of its own, then the first jobs are fetched and computed, and the PostgreSQL driver, a quarter of all imports, is
imported last. docs/explanation/performance.md has the measurements.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

M_ARENA_MAX = -8  # malloc.h of glibc
# How long a thread waits for the GIL before it requests it: during the start-up, and afterwards (Python's default).
START_UP_SWITCH_SECONDS = 0.00005
SWITCH_SECONDS = 0.005


def begin() -> None:
    """Speed up the start-up: no garbage collection, fast thread switches, one BLAS thread, one malloc arena."""
    # Imported objects stay: the collector would traverse them a dozen times.
    gc.disable()
    # Imports hold the GIL, and a thread that returns from native code waits this long for it every time: the model took
    # 160 instead of 60 ms to load during them.
    sys.setswitchinterval(START_UP_SWITCH_SECONDS)
    # numpy's BLAS would start a thread for every core of the node, each with a buffer, although a run multiplies only
    # small matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # OpenCV repeats warnings of its decoders on standard error, which may hold text of the image.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    # glibc gives every thread an arena that never shrinks: 40 MiB over 40 photos of 12 megapixels.
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Let imports in the block find no such `package`, unless it has been imported before.

    redis-py imports the SDK of OpenTelemetry wherever it is installed (45 ms), for metrics that a run has no use for.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to make an import fail
    try:
        yield
    finally:
        del sys.modules[package]


def end() -> None:
    """Restore thread switching and garbage collection, which ignores what the start-up has allocated from now on."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.enable()


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Do `work` in a new daemon thread."""
    future: Future[T] = Future()

    def target() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by `Future.result`
            future.set_exception(error)

    threading.Thread(target=target, name=name, daemon=True).start()
    return future
