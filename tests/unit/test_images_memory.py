"""Decoding into memory that is used again: the same pixels, one photo after the other and in every thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from runner.errors import JobError
from runner.images import buffers as kept
from runner.images import decode as decoding
from runner.images.buffers import PixelMemory
from tests.support import samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHOTOS = samples.photos()


def decode(data: bytes, memory: PixelMemory | None = None) -> NDArray[np.uint8]:
    return decoding.decode(data, max_pixels=10**8, max_bytes=10**8, memory=memory)


def test_every_kind_of_image_after_every_other() -> None:
    memory = PixelMemory()
    for name in [*PHOTOS, *reversed(PHOTOS)]:
        alone = decode(PHOTOS[name])
        again = decode(PHOTOS[name], memory)
        assert again.flags.c_contiguous
        np.testing.assert_array_equal(again, alone, err_msg=name)


def test_a_damaged_image_leaves_nothing_behind() -> None:
    memory = PixelMemory()
    data = samples.jpeg()
    with pytest.raises(JobError):
        decode(data[: len(data) // 2], memory)
    np.testing.assert_array_equal(decode(data, memory), decode(data))


def test_the_next_photo_of_the_same_size_finds_the_memory_again() -> None:
    memory = PixelMemory()
    data = samples.jpeg()
    first, second = decode(data, memory), decode(data, memory)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(first, decode(data))


def test_each_thread_has_its_own() -> None:
    memory = PixelMemory()
    data = samples.jpeg()
    here = decode(data, memory)
    there = []
    thread = threading.Thread(target=lambda: there.append(decode(data, memory)))
    thread.start()
    thread.join()
    assert not np.shares_memory(here, there[0])


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PixelMemory()
    assert memory.room(kept.KEPT_BYTES + 1) is None
    small = memory.room(10)
    assert small is not None
    assert memory.room(5) is small
    larger = memory.room(20)
    assert larger is not None
    assert larger.size == 20
