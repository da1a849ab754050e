"""Image headers: format, size and orientation, read without decoding and without trusting a single length."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from runner.errors import ImageUndecodableError

_PNG = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: all but the tables and the arithmetic-coding conditions (ITU T.81, table B.1).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION_TAG = 0x0112
_SHORT = 3  # TIFF type
_NAMED = {
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL", b"\x1f\x8b": "gzip",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself, before orientation: pixels, colour components, EXIF orientation 1 to 8."""

    format: str
    width: int
    height: int
    components: int = 3
    orientation: int = 1


def read(data: bytes) -> Header:
    """Return the header of a JPEG, PNG or WebP. Raises `ImageUndecodableError` for everything else."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = _jpeg(data)
        elif data.startswith(_PNG):
            header = _png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _webp(data)
        else:
            raise ImageUndecodableError(_what(data))
    except (struct.error, IndexError):
        raise ImageUndecodableError("its header ends too early") from None
    if header.width < 1 or header.height < 1:
        raise ImageUndecodableError(f"a {header.format} without pixels")
    return header


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
        brand = data[8:12].decode("ascii", "replace")
        return f"{'AVIF' if brand == 'avif' else 'HEIF'}, which is not among JPEG, PNG and WebP"
    name = next((name for magic, name in _NAMED.items() if data.startswith(magic)), None)
    return f"{name}, which is not among JPEG, PNG and WebP" if name else "neither JPEG, PNG nor WebP"


def _jpeg(data: bytes) -> Header:
    orientation = 1
    position = 2
    while True:
        while data[position] != 0xFF:  # noqa: PLR2004 - libjpeg skips what stands between segments, too
            position += 1
        while data[position] == 0xFF:  # noqa: PLR2004 - fill bytes
            position += 1
        marker = data[position]
        position += 1
        if marker in (0x01, *range(0xD0, 0xD9)):  # without a length
            continue
        if marker in (0xD9, 0xDA):
            raise ImageUndecodableError("a JPEG without a frame")
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, position + 3)
            return Header("JPEG", width, height, components, orientation)
        if marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0" and orientation == 1:  # noqa: PLR2004
            orientation = _orientation(data[position + 8 : position + length])
        position += length


def _orientation(tiff: bytes) -> int:
    """Return the orientation in the first directory of a TIFF block, 1 where there is none or it is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for index in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, start + 2 + 12 * index)
            if tag == _ORIENTATION_TAG and kind == _SHORT:
                (value,) = struct.unpack_from(f"{order}H", tiff, start + 2 + 12 * index + 8)
                return int(value)
    except struct.error:
        pass
    return 1


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise ImageUndecodableError("a PNG without a header")
    width, height = struct.unpack_from(">II", data, 16)
    return Header("PNG", width, height)


def _webp(data: bytes) -> Header:
    """Return the largest of the sizes that a WebP names: the canvas and each frame (RFC 9649)."""
    sizes = list(_webp_sizes(data))
    if not sizes:
        raise ImageUndecodableError("a WebP without a frame")
    return Header("WebP", max(width for width, _ in sizes), max(height for _, height in sizes))


def _webp_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        yield width & 0x3FFF, height & 0x3FFF
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        yield (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        yield int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
