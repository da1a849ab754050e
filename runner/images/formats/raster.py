"""Headers of plain raster formats: GIF, BMP, PNM (PBM, PGM, PPM, PAM), PFM and Sun raster."""

from __future__ import annotations

import re
import struct

from runner.errors import ImageUndecodableError
from runner.images.header import DECODING_BYTES, Header, check_size

_COSTS = {"GIF": 9, "PFM": 25}  # bytes a pixel
_CORE_HEADER = 12  # bytes of a BMP's header of OS/2 1.x; all later ones are longer
_MOST_TEXT = 65_536  # bytes of a PNM's header, comments included
_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])*"  # what may stand between the numbers (netpbm: ppm(5))
_NUMBER = rb"(\d{1,10})\s"  # OpenCV takes any character for the end of a number
_PNM = re.compile(rb"P[1-6]" + _SPACE + _NUMBER + _SPACE + _NUMBER)
_PFM = re.compile(rb"P[Ff]\s+" + _NUMBER + rb"\s*" + _NUMBER)
_PAM_SIDE = re.compile(rb"^\s*(WIDTH|HEIGHT)\s+(\d{1,10})", re.MULTILINE)


def read(data: bytes, max_pixels: int) -> Header | None:
    """Return the header of one of these formats, or None for any other. Raises as `formats.read` does."""
    for magic, reader in _READERS.items():
        if data.startswith(magic):
            name, width, height = reader(data)
            cost = _COSTS.get(name, DECODING_BYTES)
            check_size(name, width, height, max_pixels, cost=cost)
            return Header(name, width, height, cost=cost)
    return None


def _gif(data: bytes) -> tuple[str, int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return "GIF", width, height


def _bmp(data: bytes) -> tuple[str, int, int]:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == _CORE_HEADER else "<ii", data, 18)
    return "BMP", width, abs(height)  # below 0: rows from top to bottom


def _pnm(data: bytes) -> tuple[str, int, int]:
    found = _PNM.match(data, 0, _MOST_TEXT)
    if found is None:
        raise ImageUndecodableError("a PNM without a size")
    return "PNM", int(found[1]), int(found[2])


def _pam(data: bytes) -> tuple[str, int, int]:
    sides = {name: int(size) for name, size in _PAM_SIDE.findall(data[:_MOST_TEXT].partition(b"ENDHDR")[0])}
    return "PNM", sides.get(b"WIDTH", 0), sides.get(b"HEIGHT", 0)


def _pfm(data: bytes) -> tuple[str, int, int]:
    found = _PFM.match(data, 0, _MOST_TEXT)
    if found is None:
        raise ImageUndecodableError("a PFM without a size")
    return "PFM", int(found[1]), int(found[2])


def _sun(data: bytes) -> tuple[str, int, int]:
    width, height = struct.unpack_from(">II", data, 4)
    return "Sun raster", width, height


_READERS = {
    b"GIF87a": _gif, b"GIF89a": _gif, b"BM": _bmp, b"P7\n": _pam, b"PF\n": _pfm, b"Pf\n": _pfm, b"Y\xa6j\x95": _sun,
    **{b"P%d" % number: _pnm for number in range(1, 7)},
}  # fmt: skip
