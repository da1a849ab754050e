"""Images with changes in their structure; lengths and checksums fit, so that decoders reach the change."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

from tests.fuzz import containers
from tests.fuzz.bytes import scramble, wrong_number
from tests.support import samples

Part = tuple[bytes, bytes]  # name and content


@cache
def corpus() -> list[bytes]:
    """Return the samples, in the order of their names."""
    return [data for _, data in sorted((samples.photos() | samples.heics()).items())]


def generate(random: Random) -> bytes:
    """Return an image that may be anything from valid to empty."""
    data = random.choice(corpus())
    if random.random() < 0.8:
        data = mutate(random, data)
    if random.random() < 0.4:
        data = scramble(random, data, corpus())
    if random.random() < 0.05:
        data += random.choice((b"\xff\xd9", b"\0" * 300, random.choice(corpus()), random.randbytes(500)))
    if random.random() < 0.02:
        data = random.choice((b"\n", b"\0" * 300, random.randbytes(9))) + data
    return data


def mutate(random: Random, data: bytes) -> bytes:
    """Return `data` with a change in its structure, where it has one."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(random, data)
    if data.startswith(b"\x89PNG"):
        return _png(random, data)
    if data.startswith(b"RIFF"):
        return _webp(random, data)
    return containers.mutate(random, data)


def _shuffled(random: Random, parts: list[Part], invent: Callable[[Random], Part]) -> list[Part]:
    """Drop, repeat, swap, change and invent parts."""
    parts = list(parts)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(parts) + 1)
        match random.randrange(7):
            case 0:
                del parts[at : at + 1]
            case 1:
                parts[at:at] = parts[at : at + 1] * random.choice((1, 1, 3, 40))
            case 2 if parts:
                parts[at:at] = [parts.pop(random.randrange(len(parts)))]
            case 3 | 4 if at < len(parts):
                parts[at] = parts[at][0], scramble(random, parts[at][1])
            case _:
                parts[at:at] = [invent(random)]
    return parts


def _exif(random: Random) -> bytes:
    """Return an EXIF block's TIFF part, valid or not."""
    order = random.choice("<>")
    before = [
        struct.pack(
            f"{order}HHII",
            random.choice((0x010E, 0x010F, 0x0110, 0x0112, 0x011A, 0x0128, 0x0131, 0x013E, 0x8298, 0x8769, 0)),
            random.choice((1, 2, 3, 4, 5, 7, 10, 13, 77)),
            random.choice((0, 1, 2, 4, 5, 20, 2**31, 2**32 - 1)),
            random.choice((0, 8, 26, 50, 1000, 2**31, 2**32 - 1)),
        )
        for _ in range(random.choice((0, 0, 1, 3)))
    ]
    block = samples.tiff(
        random.choice((*range(10), 255, 65_535)),
        order,
        before=before,
        kind=random.choice((3, 3, 3, 4, 1)),
        count=random.choice((1, 1, 0, 2)),
    )
    return scramble(random, block) if random.random() < 0.5 else block


# JPEG


def _jpeg(random: Random, data: bytes) -> bytes:
    parts, rest = _segments(data)
    if random.random() < 0.3:
        rest = scramble(random, rest)
    for at, (name, content) in enumerate(parts):
        if name[0] & 0xF0 == 0xC0 and name[0] not in (0xC4, 0xC8, 0xCC) and random.random() < 0.3:
            parts[at] = _frame(random, name, content)
    if random.random() < 0.7:
        parts = _shuffled(random, parts, _segment)
    written = b"".join(
        b"\xff" + name + struct.pack(">H", wrong_number(random, len(content) + 2, 65_536)) + content[:65_000]
        if random.random() < 0.05
        else b"\xff" + name + struct.pack(">H", min(len(content), 65_000) + 2) + content[:65_000]
        for name, content in parts
    )
    return b"\xff\xd8" + written + rest


def _segments(data: bytes) -> tuple[list[Part], bytes]:
    """Return the segments before the first scan, and the rest."""
    parts, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, position + 2)
        parts.append((data[position + 1 : position + 2], data[position + 4 : position + 2 + length]))
        position += 2 + max(length, 2)
    return parts, data[position:]


def _frame(random: Random, name: bytes, content: bytes) -> Part:
    """Change kind, precision, size, components or sampling of a frame."""
    changed = bytearray(content)
    match random.randrange(5):
        case 0:
            name = bytes([random.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCF))])
        case 1 if changed:
            changed[0] = random.choice((8, 8, 12, 16, 2, 0))
        case 2 if len(changed) > 5:
            changed[1:5] = struct.pack(">HH", *(random.choice((0, 1, 8, 43, 61, 500, 65_535)) for _ in range(2)))
        case 3 if len(changed) > 6:
            components = random.choice((0, 1, 2, 3, 4, 5, 10))
            changed[5] = components
            changed[6:] = b"".join(
                bytes([at + 1, random.choice((0x11, 0x21, 0x22, 0x12, 0x41, 0x44, 0)), 0]) for at in range(components)
            )
        case _ if len(changed) > 7:
            changed[7] = random.choice((0x11, 0x12, 0x21, 0x22, 0x14, 0x41, 0x42, 0x24, 0x44, 0x31, 0x13, 0))
    return name, bytes(changed)


def _segment(random: Random) -> Part:
    """Return a segment that was not there."""
    makers: list[Callable[[], Part]] = [
        lambda: (b"\xe1", samples.EXIF + _exif(random)),
        lambda: (b"\xe1", samples.EXIF + _exif(random)),
        lambda: (b"\xe1", b"http://ns.adobe.com/xap/1.0/\0" + random.randbytes(20)),
        lambda: (b"\xee", b"Adobe\0\x64\0\0\0\0" + bytes([random.randrange(4)])),
        lambda: (b"\xdd", struct.pack(">H", random.choice((0, 1, 2, 7, 65_535)))),
        lambda: (b"\xe0", b"JFIF\0\x01\x02\0\0\x01\0\x01\0\0"),
        lambda: (b"\xe2", b"ICC_PROFILE\0\x01\x01" + random.randbytes(200)),
        lambda: (bytes([random.randrange(1, 255)]), random.randbytes(random.choice((0, 1, 6, 17, 300)))),
    ]
    return random.choice(makers)()


# PNG


def _png(random: Random, data: bytes) -> bytes:
    parts = _chunks(data)
    if random.random() < 0.4 and parts:
        parts[0] = _picture_header(random, parts[0])
    if random.random() < 0.3:
        parts = [_rows(random, part) if part[0] == b"IDAT" else part for part in parts]
    if random.random() < 0.6:
        parts = _shuffled(random, parts, _chunk)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        samples.chunk(name, content)
        if random.random() < 0.97
        else struct.pack(">I", wrong_number(random, len(content), 2**32)) + name + content + random.randbytes(4)
        for name, content in parts
    )


def _chunks(data: bytes) -> list[Part]:
    parts, position = [], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        parts.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return parts


def _picture_header(random: Random, part: Part) -> Part:
    if len(part[1]) != 13:
        return part
    width, height, depth, colour, packing, filtering, interlace = struct.unpack(">IIBBBBB", part[1])
    sides = (0, 1, 8, 61, 62, 700, 30_000, 2**31 - 1, 2**32 - 1)
    return part[0], struct.pack(
        ">IIBBBBB",
        random.choice((width, width, random.choice(sides))),
        random.choice((height, height, random.choice(sides))),
        random.choice((depth, 1, 2, 4, 8, 16, 3)),
        random.choice((colour, 0, 2, 3, 4, 6, 5)),
        wrong_number(random, packing, 256),
        wrong_number(random, filtering, 256),
        random.choice((interlace, 0, 1, 2)),
    )


def _rows(random: Random, part: Part) -> Part:
    """Change the rows themselves, and pack them again."""
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(part[1], 500_000)
    except zlib.error:
        return part
    return part[0], zlib.compress(scramble(random, rows), 1)


def _chunk(random: Random) -> Part:
    sizes = (0, 1, 43, 61, 30_000)
    makers: list[Callable[[], Part]] = [
        lambda: (b"eXIf", _exif(random)),
        lambda: (b"eXIf", samples.EXIF + _exif(random)),
        lambda: (b"tRNS", random.randbytes(random.choice((0, 1, 2, 6, 256, 257)))),
        lambda: (b"PLTE", random.randbytes(random.choice((0, 3, 48, 768, 769, 900)))),
        lambda: (b"acTL", struct.pack(">II", random.choice((0, 1, 2, 2**31)), 0)),
        lambda: (
            b"fcTL",
            struct.pack(
                ">IIIIIHHBB",
                random.choice((0, 1, 9)),
                *(random.choice(sizes) for _ in range(4)),
                1,
                0,
                random.randrange(4),
                random.randrange(3),
            ),
        ),
        lambda: (b"fdAT", struct.pack(">I", random.choice((0, 1, 2))) + zlib.compress(random.randbytes(99))),
        lambda: (b"iCCP", b"k\0\0" + zlib.compress(random.randbytes(200))),
        lambda: (b"zTXt", b"k\0\0" + zlib.compress(b"x" * 100_000)),
        lambda: (b"gAMA", struct.pack(">I", random.choice((0, 45_455, 2**31)))),
        lambda: (b"bKGD", random.randbytes(random.choice((1, 2, 6)))),
        lambda: (b"sBIT", random.randbytes(random.choice((1, 3, 4)))),
        lambda: (b"IDAT", random.randbytes(30)),
        lambda: (bytes(random.choice(b"abcdABCD") for _ in range(4)), random.randbytes(random.choice((0, 9, 900)))),
    ]
    return random.choice(makers)()


# WebP


def _webp(random: Random, data: bytes) -> bytes:
    parts = _riff_chunks(data)
    if random.random() < 0.4:
        parts = [_canvas(random, part) if part[0] in (b"VP8X", b"VP8 ", b"VP8L") else part for part in parts]
    if random.random() < 0.7:
        parts = _shuffled(random, parts, _riff_chunk)
    written = samples.riff(*parts)
    if random.random() < 0.05:
        written = written[:4] + struct.pack("<I", wrong_number(random, len(written) - 8, 2**32)) + written[8:]
    return written


def _riff_chunks(data: bytes) -> list[Part]:
    parts, position = [], 12
    while position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        parts.append((data[position : position + 4], data[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    return parts


def _canvas(random: Random, part: Part) -> Part:
    """Change the bytes that hold flags and sizes."""
    content = bytearray(part[1])
    for _ in range(random.choice((1, 2, 4))):
        if content:
            content[random.randrange(min(len(content), 10))] = random.choice(
                (0, 1, 2, 16, 61, 255, random.randrange(256))
            )
    return part[0], bytes(content)


def _riff_chunk(random: Random) -> Part:
    side = random.choice((0, 42, 60, 16_383, 2**24 - 1)).to_bytes(3, "little")
    makers: list[Callable[[], Part]] = [
        lambda: (b"VP8X", bytes([random.randrange(64), 0, 0, 0]) + side + side),
        lambda: (b"ANIM", random.randbytes(6)),
        lambda: (b"ANMF", b"\0" * 6 + side + side + b"\x64\0\0\0" + random.randbytes(60)),
        lambda: (b"EXIF", _exif(random)),
        lambda: (b"EXIF", samples.EXIF + _exif(random)),
        lambda: (b"ALPH", random.randbytes(50)),
        lambda: (b"ICCP", random.randbytes(50)),
        lambda: (bytes(random.choice(b"ABCP8XL ") for _ in range(4)), random.randbytes(40)),
    ]
    return random.choice(makers)()
