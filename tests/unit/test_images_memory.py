"""Decoding into reused memory gives the same pixels in every order and thread; large photos share a bound."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from runner.errors import JobError, OutOfMemoryError
from runner.images import buffers
from runner.images import decode as decoding
from runner.images.buffers import PixelMemory
from tests.support import samples

PHOTOS = samples.photos()


def decode(data: bytes, memory: PixelMemory | None = None) -> NDArray[np.uint8]:
    return decoding.decode(data, max_pixels=10**8, max_bytes=10**8, memory=memory)


def test_reused_memory_does_not_change_pixels() -> None:
    memory = PixelMemory()
    for name in [*PHOTOS, *reversed(PHOTOS)]:
        alone = decode(PHOTOS[name])
        again = decode(PHOTOS[name], memory)
        assert again.flags.c_contiguous
        np.testing.assert_array_equal(again, alone, err_msg=name)


def test_a_damaged_image_does_not_affect_the_next_one() -> None:
    memory = PixelMemory()
    data = samples.jpeg()
    with pytest.raises(JobError):
        decode(data[: len(data) // 2], memory)
    np.testing.assert_array_equal(decode(data, memory), decode(data))


def test_the_next_photo_of_the_same_size_reuses_the_memory() -> None:
    memory = PixelMemory()
    data = samples.jpeg()
    first, second = decode(data, memory), decode(data, memory)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(first, decode(data))


def test_each_thread_has_its_own_memory() -> None:
    memory = PixelMemory()
    data = samples.jpeg()
    here = decode(data, memory)
    there = []
    thread = threading.Thread(target=lambda: there.append(decode(data, memory)))
    thread.start()
    thread.join()
    assert not np.shares_memory(here, there[0])


def test_memory_of_large_photos_is_not_kept() -> None:
    memory = PixelMemory()
    assert memory.room(buffers.KEPT_BYTES + 1) is None
    small = memory.room(10)
    assert small is not None
    assert memory.room(5) is small
    larger = memory.room(20)
    assert larger is not None
    assert larger.size == 20


# The bound for large photos


def _started(action: object) -> threading.Thread:
    assert callable(action)
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_large_photos_wait_while_their_memory_is_in_use() -> None:
    memory = PixelMemory(100)
    memory.reserve(60)
    memory.reserve(40)
    waiting = _started(lambda: memory.reserve(10))
    waiting.join(0.2)
    assert waiting.is_alive()
    memory.release(40)
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_photo_above_the_bound_is_decoded_alone() -> None:
    memory = PixelMemory(100)
    memory.reserve(500)
    waiting = _started(lambda: memory.reserve(1))
    waiting.join(0.2)
    assert waiting.is_alive()
    memory.release(500)
    waiting.join(60)
    assert not waiting.is_alive()


def test_waiting_for_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A native call that never returns keeps its memory, and must not stop the other threads."""
    monkeypatch.setattr(buffers, "MOST_WAIT_SECONDS", 0.2)
    memory = PixelMemory(100)
    memory.reserve(100)
    began = time.monotonic()
    memory.reserve(100)
    assert 0.15 < time.monotonic() - began < 25


def test_decoding_reserves_memory_until_the_image_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "KEPT_BYTES", 0)
    monkeypatch.setattr(buffers, "KEPT_BYTES", 0)
    for name in ("JPEG", "JPEG, orientation 6", "JPEG, CMYK", "PNG", "GIF", "AVIF"):
        memory = PixelMemory(1)  # every photo is above the bound: two never fit
        image = decode(PHOTOS[name], memory)
        with pytest.raises(JobError):
            _impatient(memory, monkeypatch)
        del image
        _impatient(memory, monkeypatch)


def test_failed_decoding_releases_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "KEPT_BYTES", 0)
    memory = PixelMemory(1)
    for _ in range(3):
        with pytest.raises(JobError):
            decode(samples.jpeg()[:-200], memory)
        _impatient(memory, monkeypatch)


def _impatient(memory: PixelMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reserve and release a byte. Raises `OutOfMemoryError` where that takes long."""
    monkeypatch.setattr(buffers, "MOST_WAIT_SECONDS", 0.1)
    began = time.monotonic()
    memory.reserve(1)
    memory.release(1)
    if time.monotonic() - began > 0.09:
        raise OutOfMemoryError
