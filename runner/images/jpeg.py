"""The structure of a JPEG (ITU-T T.81): size, orientation, scans, and whether the file was cut off.

Reading takes bounded time for any input: everything that repeats is counted, and nothing is searched twice.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from runner.errors import ImageUndecodableError
from runner.images.header import DECODING_BYTES, Header, check_size

SIGNATURE = b"\xff\xd8\xff"
EOI = b"\xff\xd9"
_MARKER = re.compile(rb"\xff([^\x00\xff])")  # libjpeg also skips anything else between segments
_MARKER_AFTER_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # RST0 to RST7 belong to the scan
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length: TEM, RST0 to 7, SOI
# Start-of-frame markers: all but the tables and the arithmetic-coding conditions (T.81, table B.1).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xCA))
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
_APP1, _EOI, _SOS = 0xE1, 0xD9, 0xDA
_FILL = 0xFF  # a fill byte, or the first half of a marker
_PRECISION = 8  # what libjpeg is built for
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_TEXT_TAGS = frozenset((0x010E, 0x010F, 0x0110))  # description, make, model: OpenCV reads them on its way
_ASCII, _SHORT = 2, 3  # TIFF types
_ALL_COEFFICIENTS = (1 << 64) - 1  # one bit for each of a block's 64
# Real images stay far below these. Each scan of a progressive JPEG is a pass over all pixels that a few bytes can
# request: 0.1 s at 100 megapixels. libjpeg writes 10 of them.
MOST_SEGMENTS = 16_384
MOST_JUNK = 1_048_576  # bytes between segments
MOST_SCANS = 100
MOST_SCANNED_PIXELS = 5 * 10**9  # of all scans together: 23 scans of the largest photo

Segment = tuple[int, int, int]  # marker, start and end of the content


class _Frame(NamedTuple):
    marker: int
    height: int
    width: int
    components: bytes  # their identifiers


def read(data: bytes, max_pixels: int) -> Header:
    """Return the header of a JPEG that starts with its signature.

    Raises `ImageTooManyPixelsError` as soon as the size is known, `ImageUndecodableError` for a JPEG that is cut off
    before its last scan, that cannot be decoded, or that would cost far more than its pixels; `struct.error` and
    `IndexError` where a segment is cut off.
    """
    frame: _Frame | None = None
    cost = DECODING_BYTES
    exif: list[bytes] = []
    segments = _segments(data)
    for marker, start, end in segments:
        if marker in _FRAMES and frame is None:
            frame = _frame(data, marker, start)
            cost = _cost(data, frame, start)
            check_size("JPEG", frame.width, frame.height, max_pixels, cost=cost)
        elif marker == _APP1 and data.startswith(_EXIF, start):
            exif.append(data[start + len(_EXIF) : end])
        elif marker == _SOS:
            if frame is not None:
                _check_scans(data, frame, start, segments)
            break
    if frame is None:
        raise ImageUndecodableError("a JPEG without a frame")
    orientation = None if len(exif) > 1 else _orientation(exif[0]) if exif else 1
    return Header(
        "JPEG",
        frame.width,
        frame.height,
        len(frame.components),
        orientation,
        arithmetic=frame.marker in _ARITHMETIC,
        cost=cost,
    )


def _frame(data: bytes, marker: int, start: int) -> _Frame:
    precision, height, width, count = struct.unpack_from(">BHHB", data, start)
    if precision != _PRECISION:
        raise ImageUndecodableError(f"a {precision}-bit JPEG: only 8 bits a sample are supported")
    return _Frame(marker, height, width, bytes(data[start + 6 : start + 6 + 3 * count : 3]))


def _cost(data: bytes, frame: _Frame, start: int) -> int:
    """Return the bytes a pixel that decoding takes: a progressive JPEG keeps all coefficients, 16 bits each."""
    if frame.marker not in _PROGRESSIVE:
        return DECODING_BYTES
    factors = data[start + 7 : start + 6 + 3 * len(frame.components) : 3]
    areas = [(factor >> 4) * (factor & 15) for factor in factors]
    largest = max((factor >> 4 for factor in factors), default=1) * max((factor & 15 for factor in factors), default=1)
    return 3 + -(-2 * sum(areas) // max(largest, 1))


def _segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments of a JPEG; after a scan's header, its entropy-coded data is skipped."""
    position, junk, scanned = 2, MOST_JUNK, False
    for _ in range(MOST_SEGMENTS):
        if scanned:
            found = _MARKER_AFTER_SCAN.search(data, position)
        else:
            found = _MARKER.search(data, position, position + junk)
        if found is None or (scanned and found.end() + 2 > len(data)):
            if scanned:
                return
            raise ImageUndecodableError("a JPEG that ends before its pixels")
        junk -= 0 if scanned else found.start() - position
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            return
        if marker in _ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, position + 2, position + length
        position += max(length, 2)
        scanned = scanned or marker == _SOS
    raise ImageUndecodableError(f"a JPEG of more than {MOST_SEGMENTS} segments")


def _check_scans(data: bytes, frame: _Frame, first: int, following: Iterator[Segment]) -> None:
    """Reject a JPEG whose scans omit a coefficient: a browser would show a blurred or colourless image.

    libjpeg does not report that: a progressive JPEG cut off between two scans decodes without a warning.
    """
    missing = dict.fromkeys(frame.components, _ALL_COEFFICIENTS)
    if _scan_covers_all(data, frame, first, missing):
        return
    scans, most = 1, min(MOST_SCANS, MOST_SCANNED_PIXELS // max(frame.width * frame.height, 1))
    for marker, start, _ in following:
        if marker == _SOS:
            scans += 1
            if scans > most:
                raise ImageUndecodableError(f"a JPEG of {frame.width}x{frame.height} of more than {most} scans")
            _scan_covers_all(data, frame, start, missing)
    if any(missing.values()):
        raise ImageUndecodableError("a JPEG that ends too early: some of its scans are missing")


def _scan_covers_all(data: bytes, frame: _Frame, start: int, missing: dict[int, int]) -> bool:
    """Remove from `missing` what the scan header at `start` codes to its last bit; return whether nothing is left."""
    count = data[start]
    first, last, approximation = struct.unpack_from("BBB", data, start + 1 + 2 * count)
    if frame.marker not in _PROGRESSIVE:
        first, last, approximation = 0, 63, 0
    if approximation & 0x0F == 0:  # the bits that this scan leaves to later ones (T.81, B.2.3: Al)
        coded = (1 << min(last, 63) + 1) - (1 << min(first, 63))
        for component in data[start + 1 : start + 1 + 2 * count : 2]:
            missing[component] = missing.get(component, 0) & ~coded
    return not any(missing.values())


def closed(data: bytes) -> bytes:
    """Return a JPEG that lacks its end marker with one, and any other as it is."""
    _, end = _last_scan(data)
    return data if data.startswith(EOI, end) else data[:end] + EOI


def continued(data: bytes, *, arithmetic: bool) -> bytes:
    """Return the JPEG with entropy-coded noise after its last scan, and an end marker.

    This and what `closed` returns decode to the same pixels when the last scan is complete: a decoder does not read on
    after the last block. Where the file was cut off, the one is filled with noise and the other with grey. That holds
    for every coding. libjpeg's warnings do not tell: it reports the first problem of a file alone, and none with
    arithmetic coding.
    """
    start, end = _last_scan(data)
    random = Random(0)  # noqa: S311 - the same noise every time
    # An arithmetic encoder leaves out the zeros at its end (T.81, D.1.8): those come first, and where there is an end
    # marker, a few more. In Huffman codes many ones are a long code.
    begin = b"\0" * (4 if data.startswith(EOI, end) else 1) if arithmetic else b"\xfe\xfe"
    due = 0
    for restart in _RESTART.finditer(data, start, end):
        due = restart[1][0] + 1
    markers = [b"", *(bytes([0xFF, 0xD0 | (due + number) & 7]) for number in range(8))]  # T.81, B.1.1.3
    noise = b"".join(marker + begin + bytes(random.choices(range(1, 0xFF), k=64)) for marker in markers)
    return data[:end] + noise + EOI


def _last_scan(data: bytes) -> tuple[int, int]:
    """Return start and end of the entropy-coded data of the last scan."""
    start, end = 0, len(data)
    for marker, _, after in _segments(data):
        if marker == _SOS:
            found = _MARKER_AFTER_SCAN.search(data, after)
            start, end = after, found.start() if found else len(data)
    while end > start and data[end - 1] == _FILL:
        end -= 1
    return start, end


def _orientation(tiff: bytes) -> int | None:
    """Return the orientation in the first directory of a TIFF block (TIFF 6.0, section 2), 1 where it has none.

    Anything outside the standard gives None: OpenCV has its own way to read malformed blocks.
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
