"""HEIC, the format of iPhones, decoded by libheif with libde265. Imported when the first such file arrives.

The compiled part of pi-heif is used directly. Its Python part also reads metadata, thumbnails and depth images that no
run needs: fuzzing met a segmentation fault in the metadata three times in 250,000 images. It also imports Pillow, which
takes 100 ms and 22 MB.
"""

from __future__ import annotations

import _pi_heif
import cv2
import numpy as np
from numpy.typing import NDArray

from runner.errors import ImageUndecodableError

Image = NDArray[np.uint8]

_THREADS = 1  # the engine's other threads decode photos of their own
_GREY_ALPHA = 2  # channels
# Mode of the pixels → their channels, and the conversion to BGR.
_MODES = {
    "L": (1, cv2.COLOR_GRAY2BGR), "LA": (2, cv2.COLOR_GRAY2BGR), "La": (2, cv2.COLOR_GRAY2BGR),
    "BGR": (3, None), "BGRA": (4, cv2.COLOR_BGRA2BGR), "BGRa": (4, cv2.COLOR_BGRA2BGR),
}  # fmt: skip


def decode(data: bytes) -> Image:
    """Return the primary image, upright, BGR, shape (height, width, 3), contiguous.

    Rotation and mirroring are properties of the file (ISO/IEC 23008-12, 6.5.10 and 6.5.12), which libheif applies; its
    EXIF orientation only repeats them. Samples of 10 and 12 bits are reduced to 8. Transparency is ignored, as OpenCV
    ignores it. libheif refuses coded images that are larger than the size in the file's header before it decodes them.
    Raises `ImageUndecodableError`.
    """
    try:
        # Threads, 8 bits, BGR, rows without padding, no 16 bits, no particular decoder, with the security limits.
        images = _pi_heif.load_file(data, _THREADS, True, True, True, False, "", False)  # noqa: FBT003 - takes no names
        (primary,) = [image for image in images if image is not None and image.primary]
        data_of_primary = np.frombuffer(primary.data, np.uint8)
        (width, height), mode = primary.size_mode
    except (ValueError, EOFError, SyntaxError, RuntimeError, OSError):  # all that pi-heif documents
        raise ImageUndecodableError("a damaged HEIC") from None
    if mode not in _MODES:
        raise ImageUndecodableError(f"a HEIC of the mode {mode}")
    channels, conversion = _MODES[mode]
    pixels = np.asarray(_Pixels(primary, data_of_primary, (height, width, channels)))
    if conversion is None:
        return pixels
    return np.asarray(cv2.cvtColor(pixels if channels != _GREY_ALPHA else pixels[..., 0].copy(), conversion), np.uint8)


class _Pixels:
    """Lets an array keep a reference to its image: pi-heif frees the pixels with it, even if views remain."""

    def __init__(self, image: object, pixels: Image, shape: tuple[int, int, int]) -> None:
        if pixels.size != shape[0] * shape[1] * shape[2]:
            raise ImageUndecodableError("a HEIC whose pixels do not fit its size")
        self._image = image
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": shape,
            "data": (pixels.ctypes.data, False),
        }
