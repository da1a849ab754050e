"""Mutations that know nothing of what the bytes mean."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

MOST_BYTES = 200_000
_INTERESTING = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32_767, 32_768, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
_FORMATS = (">B", ">H", "<H", ">I", "<I")


def scramble(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return `data` with one to a few random changes, perhaps spliced with one of `others`."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        _change(random, changed)
    if others and random.random() < 0.05:
        other = random.choice(others)
        changed = changed[: random.randint(0, len(changed))] + other[random.randint(0, len(other)) :]
    return bytes(changed[:MOST_BYTES])


def _change(random: Random, data: bytearray) -> None:
    at = random.randint(0, len(data))
    end = min(len(data), at + random.choice((1, 1, 2, 4, 16, 200)))
    match random.randrange(9):
        case 0 | 1 if at < len(data):
            data[at] ^= 1 << random.randrange(8)
        case 2 if at < len(data):
            data[at] = random.randrange(256)
        case 3:
            form = random.choice(_FORMATS)
            size = struct.calcsize(form)
            if at + size <= len(data):
                data[at : at + size] = struct.pack(form, random.choice(_INTERESTING) % 256**size)
        case 4:
            del data[at:end]
        case 5:
            data[at:at] = data[at:end] * random.choice((1, 1, 2, 50))
        case 6:
            data[at:at] = random.randbytes(random.choice((1, 2, 4, 64)))
        case 7:
            data[at:end] = random.randbytes(end - at)
        case 8 if random.random() < 0.3:
            del data[at:]
        case _:
            pass


def wrong_number(random: Random, right: int, limit: int) -> int:
    """Return `right`, most of the time, or something else below `limit`."""
    if random.random() < 0.8:
        return right % limit
    return random.choice((*_INTERESTING, right - 1, right + 1, right * 2)) % limit
