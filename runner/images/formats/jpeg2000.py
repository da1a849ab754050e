"""Headers of JPEG 2000: the JP2 file format and the bare codestream (ITU-T T.800)."""

from __future__ import annotations

import struct

from runner.errors import ImageUndecodableError
from runner.images.formats.bmff import boxes
from runner.images.header import Header, check_size

_SIGNATURE_BOX = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"  # SOC and SIZ, which must follow (T.800, A.5.1)
MOST_COMPONENTS = 4
MOST_TILES = 4096  # OpenJPEG keeps 9 KB a tile, whatever is in it
COMPONENT_COST = 6  # bytes a pixel and component: OpenJPEG decodes to 32 bits, and converts


def read(data: bytes, max_pixels: int) -> Header | None:
    """Return the header of a JPEG 2000, or None for any other format. Raises as `formats.read` does."""
    start = 0
    if data.startswith(_SIGNATURE_BOX):
        start = next((first for name, first, _ in boxes(data, 0, len(data)) if name == b"jp2c"), -1)
    if start < 0 or not data.startswith(_CODESTREAM, start):
        if start == 0:
            return None
        raise ImageUndecodableError("a JPEG 2000 without a codestream")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">8IH", data, start + 8
    )
    if components > MOST_COMPONENTS:
        raise ImageUndecodableError(f"a JPEG 2000 of more than {MOST_COMPONENTS} components")
    width, height, cost = right - left, bottom - top, components * COMPONENT_COST
    check_size("JPEG 2000", width, height, max_pixels, cost=cost)
    if _count(right - tile_left, tile_width) * _count(bottom - tile_top, tile_height) > MOST_TILES:
        raise ImageUndecodableError(f"a JPEG 2000 of more than {MOST_TILES} tiles")
    return Header("JPEG 2000", width, height, components, cost=cost)


def _count(length: int, tile: int) -> int:
    """Return how many tiles cover `length`; more than are allowed where the tiles are malformed."""
    return -(-length // tile) if tile > 0 and length > 0 else MOST_TILES + 1
