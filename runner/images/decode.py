"""From the bytes of a file to an upright BGR image, with limits that hold before anything is allocated.

Pixels equal those of `cv2.imdecode(…, IMREAD_COLOR)`, and so those of `cv2.imread`. JPEG goes through simplejpeg, which
takes a third less time for the same pixels, and is turned upright here. HEIC, which OpenCV does not decode, goes
through pi-heif.
"""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runner.errors import (
    ImageTooManyBytesError,
    ImageUndecodableError,
    JobError,
    OutOfMemoryError,
)
from runner.images import headers, jpeg
from runner.images.buffers import KEPT_BYTES, PixelMemory
from runner.images.header import Header

Image = NDArray[np.uint8]

CHANNELS = 3
_CMYK = 4  # components
# EXIF orientation → what turns the stored image upright (EXIF 2.32, tag 0x0112).
_FLIPS = {2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}
_TRANSPOSED = {5, 6, 7, 8}


def decode(data: bytes, *, max_pixels: int, max_bytes: int, memory: PixelMemory | None = None) -> Image:
    """Return the image in `data`, upright, BGR, shape (height, width, 3), contiguous.

    With `memory`, the image is valid until this thread decodes the next one with the same memory.
    Raises `ImageTooManyBytesError`, `ImageTooManyPixelsError` (from the header, before decoding),
    `ImageUndecodableError` and `OutOfMemoryError`; nothing else, whatever the bytes.
    """
    if len(data) > max_bytes:
        raise ImageTooManyBytesError(f"{len(data)} bytes, {max_bytes} allowed")
    header = headers.read(data, max_pixels)
    if header.start:
        data = data[header.start :]
    size = header.cost * header.width * header.height
    if memory is None or CHANNELS * header.width * header.height <= KEPT_BYTES:
        return _typed(data, header, memory)
    memory.reserve(size)
    try:
        image = _typed(data, header, memory)
    except BaseException:
        memory.release(size)
        raise
    memory.release_with(image, size)
    return image


def _typed(data: bytes, header: Header, memory: PixelMemory | None) -> Image:
    """Decode, and raise nothing but `JobError`."""
    try:
        return _decode(data, header, memory)
    except JobError:
        raise
    except MemoryError:
        raise OutOfMemoryError from None
    except (cv2.error, ValueError, OverflowError) as error:
        if "Insufficient memory" in str(error):
            raise OutOfMemoryError from None
        raise ImageUndecodableError(f"a damaged {header.format}") from None


def _decode(data: bytes, header: Header, memory: PixelMemory | None) -> Image:
    if header.format == "JPEG":
        return _decode_jpeg(data, header, memory)
    if header.format == "HEIC":
        from runner.images import heif  # imported only for such a file: it costs time and memory

        return heif.decode(data)
    return _opencv(data, header)


def _decode_jpeg(data: bytes, header: Header, memory: PixelMemory | None) -> Image:
    # OpenCV handles Adobe's inverted CMYK, and has its own way to read a malformed EXIF block: let it decode these.
    by_opencv = header.components == _CMYK or header.orientation is None
    room = memory.room(CHANNELS * header.width * header.height) if memory and not by_opencv else None
    image: Image | None = None
    warning = ""
    try:
        image = _libjpeg(data, colorspace=_colour_space(header), fastdct=False, fastupsample=False, buffer=room)
    except ValueError as error:
        warning = str(error)
    if "Insufficient memory" in warning:
        raise OutOfMemoryError
    if image is not None and header.orientation is not None and not by_opencv and not header.arithmetic:
        return upright(image, header.orientation)
    del image
    # Either libjpeg has warned, of the first problem alone, or it does not warn (arithmetic coding). It would fill what
    # is missing with grey, and a face there would be missed without an error. What follows the end of the image, such
    # as a phone's video of several megabytes, it never reads.
    if "premature end of data segment" in warning or ((warning or header.arithmetic) and _is_cut_off(data, header)):
        raise ImageUndecodableError("a JPEG that ends too early")
    # Complete. A missing end marker is one of the problems that libjpeg recovers from, but not OpenCV.
    return _opencv(jpeg.closed(data) if warning else data, header)


def _libjpeg(data: bytes, **options: Any) -> Image:
    import simplejpeg  # 3 ms that no other format costs

    image: Image = simplejpeg.decode_jpeg(data, **options)
    return image


def _is_cut_off(data: bytes, header: Header) -> bool:
    """Return whether the last scan of a JPEG ends before its last block. Decodes twice."""
    return _checksum(jpeg.closed(data), header) != _checksum(jpeg.continued(data, arithmetic=header.arithmetic), header)


def _checksum(data: bytes, header: Header) -> int | None:
    """Return a checksum of a JPEG's pixels, so that they need not be kept, or None if it cannot be decoded."""
    image: Image | None
    try:
        image = _libjpeg(data, colorspace=_colour_space(header), strict=False)
    except ValueError:  # it requires a header without warnings; OpenCV does not, but prints them
        image = _imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else zlib.crc32(image.data)


def _colour_space(header: Header) -> str:
    return "CMYK" if header.components == _CMYK else "BGR"


def _opencv(data: bytes, header: Header) -> Image:
    """Decode with OpenCV, which turns the image upright by itself."""
    if header.animated:
        # OpenCV 5.0's reader of animated PNGs returns into a finished function after some errors of libpng: fuzzing
        # met a segmentation fault once in 50,000 images. Without its frames such a file is an ordinary PNG.
        data = headers.without_animation(data)
    image = _imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise ImageUndecodableError(f"a damaged {header.format}")
    return image


def _imdecode(data: bytes, flags: int) -> Image | None:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if image is None else np.asarray(image, np.uint8)


def upright(image: Image, orientation: int) -> Image:
    """Return `image` turned as its EXIF orientation (1 to 8) says, in place if that keeps its shape.

    Other values leave it unchanged.
    """
    if orientation not in _FLIPS:
        return image
    if orientation in _TRANSPOSED:
        image = np.asarray(cv2.transpose(image), np.uint8)
    flip = _FLIPS[orientation]
    return image if flip is None else np.asarray(cv2.flip(image, flip, image), np.uint8)
