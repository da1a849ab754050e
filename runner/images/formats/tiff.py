"""Headers of TIFF (TIFF 6.0) and BigTIFF, and the raw photos of cameras, which are TIFF files too."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runner.errors import ImageFormatError, ImageUndecodableError
from runner.images.header import Header, check_size

_ORDERS = {b"II": "<", b"MM": ">"}
_CLASSIC, _BIG = 42, 43  # the version; BigTIFF has offsets of 64 bits
# Type of an entry → that of its values. libtiff also reads sizes from signed types.
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 254, 256, 257, 258, 262, 277
_TILE_WIDTH, _TILE_HEIGHT, _SUB_IFDS, _DNG_VERSION = 322, 323, 330, 50706
_REDUCED = 1  # a bit of the subfile type: a smaller version of another image in the file
_CFA, _LINEAR_RAW = 32803, 34892  # photometric interpretations of raw data (TIFF/EP, DNG)
_NUMBERS = frozenset((_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT))
MOST_BITS = 16  # a sample
MOST_SAMPLES = 5  # a pixel
MOST_TILE_PADDING = 1 << 22  # pixels of a tile beyond those of the image


@dataclass(frozen=True, slots=True)
class _Directory:
    """The first values of a directory's entries, by tag."""

    values: dict[int, int]

    def get(self, tag: int, default: int = 0) -> int:
        return self.values.get(tag, default)


def read(data: bytes, max_pixels: int) -> Header | None:
    """Return the header of a TIFF's first image, or None for any other format.

    Raises as `formats.read` does. Raw photos (CR2, NEF, ARW, DNG and others) are named: what OpenCV would decode of
    them is a thumbnail.
    """
    order = _ORDERS.get(data[:2])
    if order is None:
        return None
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    if version not in (_CLASSIC, _BIG):
        return None
    directory = _directory(data, order, big=version == _BIG)
    if data[8:10] == b"CR" or _is_raw(directory):
        raise ImageFormatError("a camera's raw photo (CR2, NEF, ARW, DNG or another)")
    width, height = directory.get(_WIDTH), directory.get(_HEIGHT)
    samples, bits = directory.get(_SAMPLES, 1), directory.get(_BITS, 1)
    cost = 4 + samples * bits // 4  # a strip may be the whole image, compressed and not
    check_size("TIFF", width, height, max_pixels, cost=cost)
    if bits > MOST_BITS or samples > MOST_SAMPLES:
        raise ImageFormatError(f"a TIFF of {samples} samples of {bits} bits a pixel, which OpenCV does not decode")
    tile = (directory.get(_TILE_WIDTH) or width) * (directory.get(_TILE_HEIGHT) or height)
    if tile > width * height + MOST_TILE_PADDING:
        raise ImageUndecodableError("a TIFF whose tiles are far larger than the image")
    return Header("TIFF", width, height, samples, cost=cost)


def _is_raw(directory: _Directory) -> bool:
    if directory.get(_DNG_VERSION) or directory.get(_PHOTOMETRIC) in (_CFA, _LINEAR_RAW):
        return True
    return bool(directory.get(_SUBFILE) & _REDUCED and directory.get(_SUB_IFDS))


def _directory(data: bytes, order: str, *, big: bool) -> _Directory:
    """Read the first directory; of entries with the same tag, the first counts, as for libtiff."""
    offset_format, count_format, entry_format, size = ("Q", "Q", "HHQ", 20) if big else ("I", "H", "HHI", 12)
    (start,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_format, data, start)
    first = start + struct.calcsize(order + count_format)
    values: dict[int, int] = {}
    for entry in range(first, min(first + size * count, len(data) - size + 1), size):
        tag, kind, number = struct.unpack_from(order + entry_format, data, entry)
        if tag in values:
            continue
        form = _FORMATS.get(kind)
        if form is None:
            if tag in _NUMBERS:
                raise ImageUndecodableError("a TIFF whose size is not a whole number")
            continue
        at = entry + struct.calcsize(order + entry_format)
        if number * struct.calcsize(order + form) > size - struct.calcsize(order + entry_format):
            (at,) = struct.unpack_from(order + offset_format, data, at)
        values[tag] = struct.unpack_from(order + form, data, at)[0] if at + 8 <= len(data) else 0
    return _Directory(values)
