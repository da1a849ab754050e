"""The size that AV1 data announces itself (AV1 Bitstream & Decoding Process Specification, 5.5).

libavif compares it with the size in the file's boxes only after decoding: 2 KB of AVIF that call themselves 64x64 made
it allocate 1.8 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from runner.errors import ImageUndecodableError

_SEQUENCE_HEADER = 1  # OBU type
_LAST_LEVEL_WITHOUT_TIER = 7  # 3.3
_HAS_EXTENSION, _HAS_SIZE = 0x04, 0x02
MOST_OBUS = 256  # of one image


class _Bits:
    """Reads big-endian bit fields. Raises `IndexError` at the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def skip_variable(self) -> None:
        """Skip a `uvlc` (4.10.3)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        self.read(min(zeros, 32))


def sizes(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield the largest frame size of each sequence header, in pixels; none for data that is not AV1.

    Raises `ImageUndecodableError` where there are more than `MOST_OBUS` OBUs.
    """
    with suppress(IndexError):  # cut off: a decoder finds nothing either
        yield from _sizes(data)


def _sizes(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    position = 0
    for _ in range(MOST_OBUS):
        if position >= len(data):
            return
        head = data[position]
        position += 2 if head & _HAS_EXTENSION else 1
        length = len(data) - position
        if head & _HAS_SIZE:
            length, position = _leb128(data, position)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _largest_frame(_Bits(data[position : position + length]))
        position += length
    raise ImageUndecodableError(f"an AVIF of more than {MOST_OBUS} OBUs")


def _leb128(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return a length (4.10.5) and the position after it."""
    value = 0
    for number in range(8):
        byte = data[position + number]
        value |= (byte & 0x7F) << 7 * number
        if not byte & 0x80:
            return value, position + number + 1
    return value, position + 8


def _largest_frame(bits: _Bits) -> tuple[int, int]:
    """Return `max_frame_width` and `max_frame_height` of a sequence header (5.5.1)."""
    bits.read(4)  # profile, still picture
    if bits.read(1):  # the reduced header of a still picture
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing information
        bits.read(64)
        if bits.read(1):  # equal intervals
            bits.skip_variable()
        if bits.read(1):  # a decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    delays = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > _LAST_LEVEL_WITHOUT_TIER:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if delays and bits.read(1):
            bits.read(4)
