"""Headers of the ISO base media file format (ISO/IEC 14496-12): AVIF, HEIC, and the videos and raw photos in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from runner.errors import ImageFormatError, ImageUndecodableError
from runner.images.formats import av1
from runner.images.header import Header, check_size

Box = tuple[bytes, int, int]  # type, start and end of the content

MOST_ITEMS = 1024  # 200 megapixels in tiles of 512 pixels a side are fewer
MOST_PARTS = 16  # of one item
MOST_JOINED = 4096  # bytes of a track, or an item in several parts: the sequence header is at its start
_WIDE_VERSION = 2  # of the box `iloc`: numbers of items have 32 bits
_IN_ITEM_DATA = 1  # construction method of an item: in the `idat` box
MOST_BOXES = 8192
_AVIF = frozenset((b"avif", b"avis"))
_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_AVIF_COST, _HEIC_COST, _DEEP_HEIC_COST = 20, 6, 8  # bytes a pixel
_DEPTH_AT = 17  # of the luma, less 8, in an HEVC configuration (ISO/IEC 14496-15, 8.3.2.1)
_NAMES = {
    b"qt  ": "a QuickTime video (MOV)", b"crx ": "a Canon raw photo (CR3)", b"M4A ": "an MPEG-4 sound (M4A)",
    b"jxl ": "a JPEG XL",
}  # fmt: skip
_QUICKTIME = frozenset((b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"))  # what a MOV without a type starts with
# Where the sizes are: the properties of items (ISO/IEC 23008-12, 6.5.3), and the tracks of a sequence.
# At each level: type → bytes before the first child.
_PARENTS: tuple[dict[bytes, int], ...] = (
    {b"meta": 4, b"moov": 0}, {b"iprp": 0, b"trak": 0}, {b"ipco": 0, b"mdia": 0}, {b"minf": 0}, {b"stbl": 0}, {},
)  # fmt: skip


def read(data: bytes, max_pixels: int) -> Header | None:
    """Return the header of an AVIF or a HEIC, or None where this is no such file format.

    Width and height are those of the largest image in the file: the primary image, or the grid that it consists of.
    Raises as `formats.read` does; videos and raw photos are named.
    """
    if data[4:8] in _QUICKTIME:
        raise ImageFormatError(_NAMES[b"qt  "])
    if data[4:8] != b"ftyp":
        return None
    (length,) = struct.unpack_from(">I", data, 0)
    brands = [data[at : at + 4] for at in range(16, min(length, len(data), 1024), 4)]
    major = data[8:12]
    if major in _NAMES:
        raise ImageFormatError(_NAMES[major])
    name = "AVIF" if _AVIF & {major, *brands} else "HEIC" if _HEIF & {major, *brands} else None
    if name is None:
        raise ImageFormatError("an MP4 video")
    file = _File(data)
    width, height = max(file.sizes, key=_area, default=(0, 0))
    cost = _AVIF_COST if name == "AVIF" else _DEEP_HEIC_COST if file.deep else _HEIC_COST
    check_size(name, width, height, max_pixels, cost=cost)
    if name == "AVIF":  # libheif compares the sizes before it decodes a HEIC
        for item in file.items():
            for coded in av1.sizes(item):
                check_size(name, *coded, max_pixels, cost=cost)
    return Header(name, width, height, cost=cost)


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets. Raises `ImageUndecodableError` where there are more than `MOST_BOXES`."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, start)
        first = start + 8
        if length == 1:  # a 64-bit length follows
            (length,) = struct.unpack_from(">Q", data, first)
            first += 8
        stop = end if length == 0 else min(start + length, end)
        if stop < first:
            return
        yield name, first, stop
        start = stop
    raise ImageUndecodableError(f"a file of more than {MOST_BOXES} boxes")


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class _File:
    """What the boxes of a file say: `sizes` of its images and tracks in pixels, and where the data of each starts.

    Raises `ImageUndecodableError` where there are more than `MOST_BOXES`, and `struct.error` where a box is cut off.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sizes: list[tuple[int, int]] = []
        self.deep = False  # more than 8 bits a sample
        self._locations: list[int] = []  # of boxes that say where items are
        self._item_data = len(data)  # start of the box that holds small items
        self._samples: list[int] = []  # starts of tracks' data
        self._parents = [(0, len(data), 0)]
        seen = 0
        while self._parents:
            start, end, level = self._parents.pop()
            for name, first, stop in boxes(data, start, end):
                seen += 1
                if seen > MOST_BOXES:
                    raise ImageUndecodableError(f"a file of more than {MOST_BOXES} boxes")
                self._read(name, first, stop, level)

    def _read(self, name: bytes, first: int, stop: int, level: int) -> None:
        if name in _PARENTS[level]:
            self._parents.append((first + _PARENTS[level][name], stop, level + 1))
        elif name == b"ispe":
            self.sizes.append(struct.unpack_from(">II", self._data, first + 4))
        elif name == b"tkhd":
            width, height = struct.unpack_from(">II", self._data, stop - 8)
            self.sizes.append((width >> 16, height >> 16))
        elif name == b"hvcC":
            self.deep = self.deep or bool(self._data[first + _DEPTH_AT] & 7)
        elif name == b"iloc":
            self._locations.append(first)
        elif name == b"idat":
            self._item_data = first
        elif name in (b"stco", b"co64"):
            form = ">I" if name == b"stco" else ">Q"
            count, start = struct.unpack_from(">I" + form[1], self._data, first + 4)
            self._samples += [start] if count else []

    def items(self) -> Iterator[bytes | memoryview]:
        """Yield the data of every item and the start of every track; of an item in several parts, `MOST_JOINED`."""
        view = memoryview(self._data)
        for start in self._samples:
            yield view[start : start + MOST_JOINED]
        for location in self._locations:
            for parts in self._extents(location):
                if len(parts) == 1:
                    yield view[slice(*parts[0])]
                else:
                    yield b"".join(view[start : min(end, start + MOST_JOINED)] for start, end in parts)[:MOST_JOINED]

    def _extents(self, position: int) -> Iterator[list[tuple[int, int]]]:
        """Yield start and end of the parts of each item (ISO/IEC 14496-12, 8.11.3)."""
        version, sizes, more = struct.unpack_from(">B3xBB", self._data, position)
        offset_size, length_size, base_size, index_size = sizes >> 4, sizes & 15, more >> 4, more & 15
        wide = version == _WIDE_VERSION
        count, position = self._number(position + 6, 4 if wide else 2)
        if count > MOST_ITEMS:
            raise ImageUndecodableError(f"an AVIF of more than {MOST_ITEMS} items")
        for _ in range(count):
            position += 4 if wide else 2
            method, position = self._number(position, 2 if version else 0)
            base, position = self._number(position + 2, base_size)
            base += self._item_data if method & 15 == _IN_ITEM_DATA else 0
            extents, position = self._number(position, 2)
            parts: list[tuple[int, int]] = []
            for _ in range(extents):
                position += index_size if version else 0
                offset, position = self._number(position, offset_size)
                length, position = self._number(position, length_size)
                parts.append((base + offset, base + offset + length if length else len(self._data)))
                if len(parts) > MOST_PARTS:
                    raise ImageUndecodableError(f"an AVIF with an item in more than {MOST_PARTS} parts")
            yield parts

    def _number(self, position: int, size: int) -> tuple[int, int]:
        """Return an unsigned number of `size` bytes, and the position after it."""
        if position + size > len(self._data):
            raise ImageUndecodableError("its header ends too early")
        return int.from_bytes(self._data[position : position + size], "big"), position + size
