"""Image headers: format, size and orientation, read without decoding and without trusting a single length.

Reading takes a bounded time, whatever the bytes: everything that repeats is counted, and nothing is searched twice.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from runner.errors import ImageTooManyPixelsError, ImageUndecodableError

_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff([^\x00\xff])")  # libjpeg, too, skips what else stands between segments
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length: TEM, RST0 to 7, SOI
# Start-of-frame markers: all but the tables and the arithmetic-coding conditions (ITU T.81, table B.1).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = 0xC2
_APP1, _EOI, _SOS = 0xE1, 0xD9, 0xDA
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_TEXT_TAGS = frozenset((0x010E, 0x010F, 0x0110))  # description, make, model: OpenCV reads them on its way
_ASCII, _SHORT = 2, 3  # TIFF types
_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))
# Real images stay far below. Each scan of a progressive JPEG is a pass over all pixels that a few bytes can ask for:
# 0.1 s at 100 megapixels. libjpeg writes 10 of them.
MOST_PIXELS = 1 << 30  # OpenCV's own limit
MOST_SEGMENTS = 16_384  # of a JPEG
MOST_CHUNKS = 65_536  # of a PNG
MOST_JUNK = 1_048_576  # bytes between segments
MOST_SCANS = 100
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG colour type → samples a pixel
_NAMED = {
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL", b"\x1f\x8b": "gzip",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself, before orientation: pixels, colour components, EXIF orientation 1 to 8.

    `orientation` is None where a JPEG's EXIF block is so odd that only OpenCV can say what OpenCV makes of it;
    `animated` is said of PNG alone.
    """

    format: str
    width: int
    height: int
    components: int = 3
    orientation: int | None = 1
    animated: bool = False


def read(data: bytes, max_pixels: int = MOST_PIXELS) -> Header:
    """Return the header of a JPEG, PNG or WebP.

    Raises `ImageTooManyPixelsError` as soon as the size is known, and `ImageUndecodableError` for everything else
    that is wrong, and for what would make a decoder work or allocate far beyond the pixels.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data, max_pixels)
        if data.startswith(_PNG):
            return _png(data, max_pixels)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data, max_pixels)
    except (struct.error, IndexError):
        raise ImageUndecodableError("its header ends too early") from None
    raise ImageUndecodableError(_what(data))


def _check_size(kind: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageUndecodableError(f"a {kind} without pixels")
    if width * height > max_pixels:
        raise ImageTooManyPixelsError(f"{width}x{height}, {max_pixels} pixels allowed")


def _what(data: bytes) -> str:
    """Name what `data` is instead of a JPEG, PNG or WebP."""
    if not data:
        return "there are no bytes"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in data[:4096].lower():
        return "an SVG, which has no pixels"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if data[4:8] == b"ftyp":
        return f"{'AVIF' if data[8:12] == b'avif' else 'HEIF'}, which is not among JPEG, PNG and WebP"
    name = next((name for magic, name in _NAMED.items() if data.startswith(magic)), None)
    return f"{name}, which is not among JPEG, PNG and WebP" if name else "neither JPEG, PNG nor WebP"


def _jpeg(data: bytes, max_pixels: int) -> Header:
    size: tuple[int, int, int] | None = None
    exif: list[bytes] = []
    for marker, start, end in _segments(data):
        if marker in _FRAMES and size is None:
            height, width, components = struct.unpack_from(">HHB", data, start + 1)
            _check_size("JPEG", width, height, max_pixels)
            size = height, width, components
            if marker == _PROGRESSIVE:
                _count_scans(data)
        elif marker == _APP1 and data.startswith(_EXIF, start):
            exif.append(data[start + len(_EXIF) : end])
    if size is None:
        raise ImageUndecodableError("a JPEG without a frame")
    height, width, components = size
    orientation = None if len(exif) > 1 else _orientation(exif[0]) if exif else 1
    return Header("JPEG", width, height, components, orientation)


def _count_scans(data: bytes) -> None:
    position = 0
    for _ in range(MOST_SCANS + 1):
        position = data.find(b"\xff\xda", position) + 2
        if position == 1:
            return
    raise ImageUndecodableError(f"a JPEG of more than {MOST_SCANS} scans")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of every segment before the first scan."""
    position, junk = 2, MOST_JUNK
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, position, position + junk)
        if found is None:
            raise ImageUndecodableError("a JPEG that ends before its pixels")
        junk -= found.start() - position
        marker, position = found[1][0], found.end()
        if marker in (_SOS, _EOI):
            return
        if marker in _ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, position + 2, position + length
        position += max(length, 2)
    raise ImageUndecodableError(f"a JPEG of more than {MOST_SEGMENTS} segments")


def _orientation(tiff: bytes) -> int | None:
    """Return the orientation in the first directory of a TIFF block (TIFF 6.0, section 2), 1 where it has none.

    Whatever is not as the standard has it gives None: OpenCV reads damaged blocks in a way of its own.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    plain = True
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION_TAG:
                (orientation,) = struct.unpack_from(f"{order}H", tiff, entry + 8)
                return int(orientation) if plain and (kind, number) == (_SHORT, 1) else None
            plain = plain and tag < _ORIENTATION_TAG and (tag not in _TEXT_TAGS or _is_text(tiff, order, entry))
    except struct.error:
        return None
    return 1


def _is_text(tiff: bytes, order: str, entry: int) -> bool:
    """Return whether an entry holds text that lies inside the block: elsewhere OpenCV stops reading."""
    kind, number, offset = struct.unpack_from(f"{order}HII", tiff, entry + 2)
    return bool(kind == _ASCII and (number <= 4 or offset + number <= len(tiff)))  # noqa: PLR2004 - short text stands here


def _png(data: bytes, max_pixels: int) -> Header:
    if data[12:16] != b"IHDR":
        raise ImageUndecodableError("a PNG without a header")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    _check_size("PNG", width, height, max_pixels)
    kinds: set[bytes] = set()
    compressed = 0
    for kind, start, end in _chunks(data):
        kinds.add(kind)
        compressed += end - start - 12 if kind == b"IDAT" else 0
    if b"IDAT" not in kinds:  # OpenCV would look for it behind the end, in what is no chunk
        raise ImageUndecodableError("a PNG without pixels")
    # Deflate never needs more than its input and a little; a PNG can carry gigabytes of pixels behind its last row,
    # which libpng unpacks to throw them away. (Interlacing adds at most a filter byte a row, seven times over.)
    row = (width * _CHANNELS.get(colour, 4) * depth + 7) // 8 + 8
    needed = row * height
    if compressed > needed + needed // 8 + 65_536:
        raise ImageUndecodableError("a PNG with far more data than pixels")
    return Header("PNG", width, height, animated=b"acTL" in kinds)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of every chunk of a PNG, all of which must be there.

    OpenCV 5.0 believes the length of a chunk: 150 bytes that announce a palette of 4 GiB make it allocate as much.
    """
    position = len(_PNG)
    for _ in range(MOST_CHUNKS):
        if position + 12 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + length + 12
        if end > len(data):
            break
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    else:
        raise ImageUndecodableError(f"a PNG of more than {MOST_CHUNKS} chunks")
    raise ImageUndecodableError("a PNG that ends too early")


def without_animation(data: bytes) -> bytes:
    """Return a PNG without what makes it move: its still picture, which every animated PNG has."""
    kept = (data[start:end] for kind, start, end in _chunks(data) if kind not in _ANIMATION)
    return b"".join([_PNG, *kept])


def _webp(data: bytes, max_pixels: int) -> Header:
    """Return the size of the picture or, where there are frames, of the canvas: libwebp refuses frames beyond it."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X" and len(data) >= 30:  # noqa: PLR2004 - the canvas ends there (RFC 9649)
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    else:
        raise ImageUndecodableError("a WebP without a frame")
    _check_size("WebP", width, height, max_pixels)
    return Header("WebP", width, height)
