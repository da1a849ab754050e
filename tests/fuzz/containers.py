"""Images of the formats besides JPEG, PNG and WebP, changed where their structure lies."""

from __future__ import annotations

import struct
from random import Random

from tests.fuzz.bytes import scramble, wrong_number

_SIDES = (0, 1, 2, 16, 43, 61, 64, 700, 4096, 16_384, 30_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
_PARENTS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"jp2h": 0}
_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339,
         347, 530, 50706)  # fmt: skip
_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32_773, 32_946, 34_887, 34_925, 50_000, 0)


def mutate(random: Random, data: bytes) -> bytes:
    """Return `data`, an image of one of these formats, with a change in its structure."""
    if data[4:8] in (b"ftyp", b"jP  "):
        return _boxes(random, data, 0)
    if data.startswith(b"\xff\x4f"):
        return _codestream(random, data)
    if data[:2] in (b"II", b"MM"):
        return _tiff(random, data)
    if data.startswith(b"GIF8"):
        return _gif(random, data)
    if data[:1] == b"P":
        return _text_header(random, data)
    return _numbers(random, data, 60)


def _numbers(random: Random, data: bytes, length: int) -> bytes:
    """Change some of the numbers in the first `length` bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        form = random.choice((">I", "<I", ">H", "<H", ">B"))
        at = random.randrange(2, max(3, min(length, len(changed) - 4)))
        size = struct.calcsize(form)
        if at + size <= len(changed):
            changed[at : at + size] = struct.pack(form, random.choice(_SIDES) % 256**size)
    return bytes(changed)


def _boxes(random: Random, data: bytes, level: int) -> bytes:
    """Change a box, or a box in it, with lengths that fit most of the time."""
    parts: list[tuple[bytes, bytes]] = []
    position = 0
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + length if length >= 8 else len(data)
        parts.append((name, data[position + 8 : end]))
        position = end
    if not parts:
        return scramble(random, data)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(parts))
        name, content = parts[at]
        match random.randrange(8):
            case 0:
                del parts[at : at + 1]
                parts = parts or [(name, content)]
            case 1:
                parts.insert(random.randrange(len(parts)), parts[at])
            case 2:
                parts[at] = name, scramble(random, content)
            case _ if name in _PARENTS and level < 6:
                skip = _PARENTS[name]
                parts[at] = name, content[:skip] + _boxes(random, content[skip:], level + 1)
            case _ if name == b"jp2c":
                parts[at] = name, _codestream(random, content)
            case _:
                parts[at] = name, _numbers(random, content, 40) if len(content) > 8 else scramble(random, content)
    return b"".join(
        struct.pack(">I4s", wrong_number(random, len(content) + 8, 2**32) if random.random() < 0.05
                    else len(content) + 8, name) + content
        for name, content in parts
    )  # fmt: skip


def _codestream(random: Random, data: bytes) -> bytes:
    """Change a marker segment of a JPEG 2000 codestream's main header."""
    segments, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] not in (0x90, 0x93):
        (length,) = struct.unpack_from(">H", data, position + 2)
        segments.append(data[position : position + 2 + length])
        position += 2 + max(length, 2)
    rest = data[position:]
    if segments and random.random() < 0.8:
        at = random.randrange(len(segments))
        segments[at] = segments[at][:4] + (
            _numbers(random, segments[at][2:], 44)[2:] if random.random() < 0.5 else scramble(random, segments[at][4:])
        )
    if random.random() < 0.4:
        rest = scramble(random, rest)
    return data[:2] + b"".join(segments) + rest


def _tiff(random: Random, data: bytes) -> bytes:
    """Change entries of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    changed = bytearray(data)
    if len(data) < 8 or struct.unpack_from(f"{order}H", data, 2) != (42,):
        return _numbers(random, data, 200)
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 14 > len(data):
        return scramble(random, data)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for _ in range(random.choice((1, 1, 2, 4))):
        entry = start + 2 + 12 * random.randrange(max(count, 1))
        if entry + 12 > len(data):
            break
        tag, kind, number, value = struct.unpack_from(f"{order}HHII", data, entry)
        match random.randrange(6):
            case 0:
                tag = random.choice(_TAGS)
            case 1:
                kind = random.choice((1, 2, 3, 4, 5, 12, 16, 0))
            case 2:
                number = random.choice((0, 1, 2, 3, 4, 1000, 2**31, 2**32 - 1))
            case 3:
                tag, value = 259, random.choice(_COMPRESSIONS)
            case _:
                value = random.choice((*_SIDES, value + 1, value * 2, 8, 12)) % 2**32
        struct.pack_into(f"{order}HHII", changed, entry, tag, kind, number, value)
    return scramble(random, bytes(changed)) if random.random() < 0.2 else bytes(changed)


def _gif(random: Random, data: bytes) -> bytes:
    """Change sizes, flags or the compressed pixels."""
    changed = bytearray(_numbers(random, data, 13) if random.random() < 0.3 else data)
    frame = changed.find(b",", 13)
    if frame > 0 and frame + 12 < len(changed):
        for _ in range(random.choice((0, 1, 2))):
            at = frame + random.randrange(1, 12)
            changed[at] = random.choice((0, 1, 2, 8, 12, 43, 61, 0x40, 0x80, 0x87, 255))
    return scramble(random, bytes(changed)) if random.random() < 0.5 else bytes(changed)


def _text_header(random: Random, data: bytes) -> bytes:
    """Change the numbers of a PNM or a PFM."""
    head, rest = data[:40], data[40:]
    words = head.split(b" ") if b" " in head else head.split(b"\n")
    mark = b" " if b" " in head else b"\n"
    at = random.randrange(len(words))
    words[at] = random.choice((b"%d" % random.choice(_SIDES), b"-1", b"61 # note\n", b"", b"1e3", words[at] * 2))
    return mark.join(words) + (scramble(random, rest) if random.random() < 0.3 else rest)
