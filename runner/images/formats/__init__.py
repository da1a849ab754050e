"""The formats besides JPEG, PNG and WebP: their headers, and the names of files that are no images to decode."""

from __future__ import annotations

from runner.errors import ImageFormatError, ImageUndecodableError
from runner.images import jpeg
from runner.images.formats import bmff, jpeg2000, raster, tiff
from runner.images.header import Header

MOST_LEADING_JUNK = 4096  # bytes: line ends, a byte order mark, the headers of a form's part

_SUPPORTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000 and PNM"
_NAMES = {
    # Raw photos that are not TIFF files
    b"IIU\0": "a Panasonic raw photo (RW2)", b"FUJIFILMCCD-RAW": "a Fujifilm raw photo (RAF)",
    b"IIRO": "an Olympus raw photo (ORF)", b"IIRS": "an Olympus raw photo (ORF)", b"MMOR": "an Olympus raw photo (ORF)",
    b"II\x1a\0\0\0HEAPCCDR": "a Canon raw photo (CRW)", b"FOVb": "a Sigma raw photo (X3F)",
    b"\0MRM": "a Minolta raw photo (MRW)",
    # Video and sound
    b"\x1aE\xdf\xa3": "a Matroska or WebM video", b"FLV": "a Flash video", b"\0\0\x01\xba": "an MPEG video",
    b"\0\0\x01\xb3": "an MPEG video", b"0&\xb2u\x8ef\xcf\x11": "a Windows Media video",
    b"OggS": "an Ogg video or sound", b"ID3": "an MP3 sound",
    # Documents and archives
    b"%PDF": "a PDF", b"%!PS": "a PostScript document", b"8BPS": "a Photoshop document", b"gimp xcf": "a GIMP document",
    b"PK\3\4": "a ZIP archive", b"\x1f\x8b": "gzip", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a RAR archive",
    b"\x7fELF": "a program", b"MZ": "a program",
    # Images that OpenCV does not decode
    b"\xff\x0a": "a JPEG XL", b"\0\0\0\x0cJXL ": "a JPEG XL", b"II\xbc\x01": "a JPEG XR", b"\0\0\1\0": "an icon (ICO)",
    b"v/1\x01": "an OpenEXR", b"#?RADIANCE": "a Radiance HDR", b"#?RGBE": "a Radiance HDR", b"qoif": "a QOI",
    b"DDS ": "a DDS",
}  # fmt: skip
_RIFF_NAMES = {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}


def read(data: bytes, max_pixels: int) -> Header:
    """Return the header of an image that is neither a PNG nor a WebP, nor a JPEG from its first byte on.

    Raises `ImageTooManyPixelsError`, `ImageFormatError` (which names what the file is), `ImageUndecodableError`, and
    `struct.error` or `IndexError` where a header is cut off.
    """
    for reader in (bmff.read, jpeg2000.read, raster.read, tiff.read):
        header = reader(data, max_pixels)
        if header is not None:
            return header
    if not data:
        raise ImageUndecodableError("there are no bytes")
    name = _name(data)
    if name is None:
        start = data.find(jpeg.SIGNATURE, 0, MOST_LEADING_JUNK)
        if start > 0:
            return jpeg.read(data[start:], max_pixels)._replace(start=start)
    if name is None:
        raise ImageUndecodableError(f"none of {_SUPPORTED}")
    raise ImageFormatError(name)


def _name(data: bytes) -> str | None:
    """Return what `data` is where that is known, with an article."""
    return _text_name(data) or _binary_name(data)


def _text_name(data: bytes) -> str | None:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if b"<svg" in data[:4096].lower():
        return "an SVG, which has no pixels"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document"
    return "JSON" if start.startswith((b"{", b"[")) else None


def _binary_name(data: bytes) -> str | None:
    if data[:4] == b"RIFF":
        return _RIFF_NAMES.get(data[8:12])
    if data[:1] == data[188:189] == data[376:377] == b"G":  # sync bytes of packets (ISO/IEC 13818-1)
        return "an MPEG video"
    return next((name for magic, name in _NAMES.items() if data.startswith(magic)), None)
