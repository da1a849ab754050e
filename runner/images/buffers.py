"""Memory for decoded pixels, reused from photo to photo, and a bound on the total of all threads."""

from __future__ import annotations

import threading
import weakref

import numpy as np
from numpy.typing import NDArray

# Memory for photos of up to 21 megapixels is reused; that of larger ones is freed at once.
KEPT_BYTES = 64 * 2**20
# A native call that never returns must not block the other threads, which wait for its memory.
MOST_WAIT_SECONDS = 30.0


class PixelMemory:
    """Memory for one photo per thread, which its next photo overwrites, and a bound for large photos.

    New memory consists of pages that the kernel has to clear: decoding 12 megapixels took 42 ms, and 37 with this.
    Photos above `KEPT_BYTES` are decoded concurrently only while together they need at most `most_bytes`, so that the
    memory of a pod depends on the largest allowed photo, and not on the number of its threads.
    """

    def __init__(self, most_bytes: int = 2**63) -> None:
        self._local = threading.local()
        self._most_bytes = most_bytes
        self._in_use = 0
        self._released = threading.Condition()

    def room(self, size: int) -> NDArray[np.uint8] | None:
        """Return this thread's memory of at least `size` bytes, or None for more than is kept."""
        if size > KEPT_BYTES:
            return None
        kept: NDArray[np.uint8] | None = getattr(self._local, "kept", None)
        if kept is None or kept.size < size:
            kept = self._local.kept = None  # freed before more is allocated
            kept = self._local.kept = np.empty(size, np.uint8)
        return kept

    def reserve(self, size: int) -> None:
        """Wait until another `size` bytes stay within the bound, or nothing else is in use; at most 30 s."""
        with self._released:
            self._released.wait_for(lambda: self._fits(size), MOST_WAIT_SECONDS)
            self._in_use += size

    def _fits(self, size: int) -> bool:
        return not self._in_use or self._in_use + size <= self._most_bytes

    def release(self, size: int) -> None:
        """Release what `reserve` took."""
        with self._released:
            self._in_use -= size
            self._released.notify_all()

    def release_with(self, image: NDArray[np.uint8], size: int) -> None:
        """Release what `reserve` took when `image` is freed."""
        weakref.finalize(image, self.release, size).atexit = False
