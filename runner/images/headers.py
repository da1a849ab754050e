"""Image headers: format, size and orientation, read without decoding and without trusting a single length.

Reading takes bounded time for any input: everything that repeats is counted, and nothing is searched twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from runner.errors import ImageUndecodableError
from runner.images import jpeg
from runner.images.header import DECODING_BYTES, MOST_PIXELS, Header, check_size

_PNG = b"\x89PNG\r\n\x1a\n"
_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))
MOST_CHUNKS = 65_536  # of a PNG: real ones stay far below
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG colour type → samples a pixel


def read(data: bytes, max_pixels: int = MOST_PIXELS) -> Header:
    """Return the header of an image of any supported format.

    Raises `ImageTooManyPixelsError` as soon as the size is known, and `ImageUndecodableError` for a file of another
    kind (the message names it), a malformed header, and whatever would cost a decoder far more than the pixels.
    """
    try:
        if data.startswith(jpeg.SIGNATURE):
            return jpeg.read(data, max_pixels)
        if data.startswith(_PNG):
            return _png(data, max_pixels)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data, max_pixels)
        from runner.images import formats  # rarely needed: not loaded at the start of a run

        return formats.read(data, max_pixels)
    except (struct.error, IndexError, OverflowError):  # the last one for an offset beyond any memory
        raise ImageUndecodableError("its header ends too early") from None


def _png(data: bytes, max_pixels: int) -> Header:
    if data[12:16] != b"IHDR":
        raise ImageUndecodableError("a PNG without a header")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    check_size("PNG", width, height, max_pixels)
    kinds: set[bytes] = set()
    compressed = 0
    for kind, start, end in _chunks(data):
        kinds.add(kind)
        compressed += end - start - 12 if kind == b"IDAT" else 0
    if b"IDAT" not in kinds:  # OpenCV would look for it after the end, in whatever follows
        raise ImageUndecodableError("a PNG without pixels")
    # Deflate never needs more than its input and a little; a PNG can carry gigabytes of pixels after its last row,
    # which libpng decompresses to throw them away. (Interlacing adds at most a filter byte a row, seven times over.)
    row = (width * _CHANNELS.get(colour, 4) * depth + 7) // 8 + 8
    needed = row * height
    if compressed > needed + needed // 8 + 65_536:
        raise ImageUndecodableError("a PNG with far more data than pixels")
    return Header("PNG", width, height, animated=b"acTL" in kinds)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of every chunk of a PNG. Raises `ImageUndecodableError` where one is cut off.

    OpenCV 5.0 trusts the length of a chunk: 150 bytes that announce a palette of 4 GiB make it allocate as much.
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
    """Return a PNG without its animation: the still image, which every animated PNG has."""
    kept = (data[start:end] for kind, start, end in _chunks(data) if kind not in _ANIMATION)
    return b"".join([_PNG, *kept])


def _webp(data: bytes, max_pixels: int) -> Header:
    """Read the size of the image or, of an animation, of the canvas: libwebp refuses frames beyond it."""
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
    cost = DECODING_BYTES if kind == b"VP8 " else 8  # lossless, or with transparency
    check_size("WebP", width, height, max_pixels, cost=cost)
    return Header("WebP", width, height, cost=cost)
