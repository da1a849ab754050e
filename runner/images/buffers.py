"""Memory for decoded pixels: reused from photo to photo, and shared out among the threads."""

from __future__ import annotations

import threading
import weakref

import numpy as np
from numpy.typing import NDArray

# Photos of up to 21 megapixels find their memory again; that of larger ones is freed at once.
KEPT_BYTES = 64 * 2**20
# A native call that never returns must not keep the other threads waiting for its memory.
MOST_WAIT_SECONDS = 30.0


class PixelMemory:
    """Memory for one photo's pixels in each thread, which its next photo overwrites, and a bound for large photos.

    New memory comes in pages that the kernel has to clear: decoding 12 megapixels took 42 ms, with this 37.
    Photos above `KEPT_BYTES` are decoded at the same time only while they need at most `most_bytes` together, so that
    the largest photo that is allowed decides on the memory that a pod needs, and not the number of its threads.
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
            kept = self._local.kept = None  # freed before there is more
            kept = self._local.kept = np.empty(size, np.uint8)
        return kept

    def reserve(self, size: int) -> None:
        """Wait until `size` bytes more stay within the bound, or nothing else is in use; at most 30 s."""
        with self._released:
            self._released.wait_for(lambda: self._fits(size), MOST_WAIT_SECONDS)
            self._in_use += size

    def _fits(self, size: int) -> bool:
        return not self._in_use or self._in_use + size <= self._most_bytes

    def release(self, size: int) -> None:
        """Give back what `reserve` took."""
        with self._released:
            self._in_use -= size
            self._released.notify_all()

    def release_with(self, image: NDArray[np.uint8], size: int) -> None:
        """Give back what `reserve` took when `image` is freed."""
        weakref.finalize(image, self.release, size).atexit = False
