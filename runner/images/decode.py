"""From bytes to an upright BGR array, with limits that hold before anything is allocated.

The contract's formats are JPEG, PNG and WebP. Pixels equal those of `cv2.imdecode(…, IMREAD_COLOR)`: JPEG goes
through simplejpeg, which is a third quicker with the same pixels, and is turned upright here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from runner.errors import (
    ImageTooManyBytesError,
    ImageUndecodableError,
    JobError,
    OutOfMemoryError,
)
from runner.images import headers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.images.buffers import PixelMemory

    Image = NDArray[np.uint8]

# EXIF orientation → what turns the stored image upright (EXIF 2.32, tag 0x0112).
_FLIPS = {2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}
_TRANSPOSED = {5, 6, 7, 8}


def decode(data: bytes, *, max_pixels: int, max_bytes: int, memory: PixelMemory | None = None) -> Image:
    """Return the image in `data`, upright, BGR, shape (height, width, 3), contiguous.

    With `memory`, the image is good until this thread decodes the next one with the same memory.
    Raises `ImageTooManyBytesError`, `ImageTooManyPixelsError` (from the header, before decoding),
    `ImageUndecodableError` and `OutOfMemoryError`; nothing else, whatever the bytes.
    """
    if len(data) > max_bytes:
        raise ImageTooManyBytesError(f"{len(data)} bytes, {max_bytes} allowed")
    header = headers.read(data, max_pixels)
    try:
        return _decode_jpeg(data, header, memory) if header.format == "JPEG" else _opencv(data, header)
    except JobError:
        raise
    except MemoryError:
        raise OutOfMemoryError from None
    except (cv2.error, ValueError, OverflowError) as error:
        if "Insufficient memory" in str(error):
            raise OutOfMemoryError from None
        raise ImageUndecodableError(f"a damaged {header.format}") from None


def _decode_jpeg(data: bytes, header: headers.Header, memory: PixelMemory | None) -> Image:
    if header.components == 4 or header.orientation is None:  # noqa: PLR2004 - CMYK: OpenCV knows Adobe's inversions
        return _opencv(data, header)
    import simplejpeg

    room = memory.room(3 * header.width * header.height) if memory else None
    try:
        image: Image = simplejpeg.decode_jpeg(data, colorspace="BGR", fastdct=False, fastupsample=False, buffer=room)
    except ValueError as error:
        # libjpeg's first complaint. It would fill what is missing with grey, and a face there would be missed
        # without a word; what follows the end (a phone's film, several megabytes of it) it never looks at.
        if "remature end" in str(error):
            raise ImageUndecodableError("a JPEG that ends too early") from None
        if "Insufficient memory" in str(error):
            raise OutOfMemoryError from None
        return _opencv(data, header)  # damage that libjpeg gets over, or a kind that simplejpeg does not know
    return upright(image, header.orientation)


def _opencv(data: bytes, header: headers.Header) -> Image:
    """Decode with OpenCV, which turns the image upright by itself."""
    if header.animated:
        # OpenCV 5.0's reader of animated PNGs returns into a finished function after some errors of libpng: fuzzing
        # met a segmentation fault once in 50,000 images. Without its frames such a file is an ordinary PNG.
        data = headers.without_animation(data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageUndecodableError(f"a damaged {header.format}")
    return np.asarray(image, np.uint8)


def upright(image: Image, orientation: int) -> Image:
    """Return `image` turned as its EXIF orientation (1 to 8) says; other values leave it."""
    if orientation not in _FLIPS:
        return image
    if orientation in _TRANSPOSED:
        image = np.asarray(cv2.transpose(image), np.uint8)
    flip = _FLIPS[orientation]
    return image if flip is None else np.asarray(cv2.flip(image, flip), np.uint8)
