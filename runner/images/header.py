"""The header of an image file, and the limit that applies before anything is decoded."""

from __future__ import annotations

from typing import NamedTuple

from runner.errors import ImageTooManyPixelsError, ImageUndecodableError

MOST_PIXELS = 1 << 30  # OpenCV's own limit
# What decoding takes at its peak, in bytes a pixel (docs/fetching.md has the measurements): of a JPEG turned upright
# and of a progressive one with reduced chroma, of PNG, WebP, BMP, PNM and HEIC. Formats that need more have a lower
# limit of pixels.
DECODING_BYTES = 6


class Header(NamedTuple):
    """Format, size in pixels before orientation, number of colour components, and EXIF orientation (1 to 8).

    `orientation` is None where a JPEG's EXIF block is malformed, so that only OpenCV can tell how OpenCV reads it.
    `start` is the offset of the image in the file, in bytes: above 0 where junk precedes it.
    `cost` is the memory that decoding takes at its peak, in bytes a pixel.
    `animated` is set for PNG alone, `arithmetic` (the entropy coding) for JPEG alone.
    """

    format: str
    width: int
    height: int
    components: int = 3
    orientation: int | None = 1
    animated: bool = False
    arithmetic: bool = False
    start: int = 0
    cost: int = DECODING_BYTES


def check_size(name: str, width: int, height: int, max_pixels: int, *, cost: int = DECODING_BYTES) -> None:
    """Check a size in pixels, for a format whose decoder takes `cost` bytes a pixel.

    Raises `ImageUndecodableError` for an image without pixels, and `ImageTooManyPixelsError` for one of more than
    `max_pixels`, or of so many that decoding it would take more memory than `max_pixels` of a JPEG.
    """
    named = f"an {name}" if name == "AVIF" else f"a {name}"
    if width < 1 or height < 1:
        raise ImageUndecodableError(f"{named} without pixels")
    allowed = max_pixels * DECODING_BYTES // max(cost, DECODING_BYTES)
    if width * height > allowed:
        raise ImageTooManyPixelsError(f"{named} of {width}x{height}, {allowed} pixels allowed")
