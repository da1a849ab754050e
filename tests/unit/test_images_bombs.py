"""Decompression bombs are refused within 100 ms of CPU time and 50 MiB, each measured in a process of its own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from PIL import Image

from tests.support import samples
from tests.support.samples import chunk, jpeg, png, riff

# Of CPU time: how long it takes on a machine that is busy with other tests says nothing. Coverage slows loops down.
SECONDS = 0.1 if sys.gettrace() is None else 0.5
MIB = 50.0
# CPU time varies too, with what the processor's other threads do: the best of a few measurements counts.
TRIES = 3

# Reads the names of files, and measures each in a fork of itself: with everything imported, and nothing decoded.
MEASURE = """
import json, os, sys, time
from runner.images.decode import decode
from runner.errors import SpottmeeError

import runner.images.formats  # loaded with the first such file

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def measure(name):
    data = open(name, "rb").read()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # VmHWM starts again from what is in use now
    before, began = peak(), time.process_time()
    try:
        outcome = list(decode(data, max_pixels=210_000_000, max_bytes=104_857_600).shape)
    except SpottmeeError as error:
        outcome = error.code
    return [outcome, time.process_time() - began, (peak() - before) / 1024]

for line in sys.stdin:
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps(["died", 0, 0]), flush=True)
    else:
        print(json.dumps(measure(line.rstrip())), flush=True)
        os._exit(0)
"""
Measured = Callable[[bytes], tuple[object, float, float]]


def _frame(width: int, height: int) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 0, 0))


def _jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    """Return a JPEG whose header names another size, with as many scans as it has."""
    data = bytearray(jpeg(progressive=progressive))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _vp8(width: int, height: int) -> bytes:
    return b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + b"\0" * 100


def _vp8l(width: int, height: int) -> bytes:
    return b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0" * 100


def _vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


@cache
def _zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(mebibytes)) + packer.flush()


def _animated_webp(canvas: int, frame: int) -> bytes:
    place = b"\0" * 6 + (frame - 1).to_bytes(3, "little") * 2 + b"\x64\0\0\0"
    content = place + b"VP8L" + struct.pack("<I", 105) + _vp8l(min(frame, 16_383), min(frame, 16_383)) + b"\0"
    return riff(_vp8x(canvas, canvas, 0x02), (b"ANIM", b"\0" * 6), (b"ANMF", content), (b"ANMF", content))


TOO_MANY: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: png(30_000, 30_000, chunk(b"IDAT", _zeros(128))),
    "PNG, one bit": lambda: png(30_000, 30_000, chunk(b"IDAT", _zeros(128)), depth=1, colour=0),
    "PNG, interlaced": lambda: png(30_000, 30_000, chunk(b"IDAT", _zeros(128)), interlaced=1),
    "PNG, the largest that there is": lambda: png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", _zeros(1))),
    "PNG, wide": lambda: png(2**31 - 1, 1, chunk(b"IDAT", _zeros(1))),
    "PNG, animated": lambda: png(30_000, 30_000, chunk(b"acTL", struct.pack(">II", 2, 0)), _frame(30_000, 30_000)),
    "JPEG": lambda: _jpeg(30_000, 30_000),
    "JPEG, progressive": lambda: _jpeg(30_000, 30_000, progressive=True),
    "JPEG, the largest that there is": lambda: _jpeg(65_535, 65_535),
    "WebP": lambda: riff((b"VP8 ", _vp8(16_383, 16_383))),
    "WebP, lossless": lambda: riff((b"VP8L", _vp8l(16_384, 16_384))),
    "WebP, canvas of 30,000": lambda: riff(_vp8x(30_000, 30_000), (b"VP8L", _vp8l(16_383, 16_383))),
    "WebP, the largest canvas that there is": lambda: riff(_vp8x(1 << 24, 1 << 24), (b"VP8L", _vp8l(5, 5))),
    "WebP, animated": lambda: _animated_webp(30_000, 30_000),
    "PNG, nothing but a header": lambda: png(30_000, 30_000)[:33],
    "JPEG, nothing but a header": lambda: b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 30_000, 30_000) + b"\x03",
}


def _sized(name: str, old: bytes, new: bytes) -> Callable[[], bytes]:
    """Return a valid image whose header announces another size."""

    def make() -> bytes:
        data = (samples.photos() | samples.heics())[name]
        assert old in data
        return data.replace(old, new)

    return make


def _tiff(*changes: tuple[int, int], big: bool = False) -> bytes:
    """Return a TIFF of one pixel with other values for these tags."""
    values = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1} | dict(changes)
    entry = "<HHQQ" if big else "<HHII"
    packed = b"".join(struct.pack(entry, tag, 4, 1, value) for tag, value in sorted(values.items()))
    head = (
        struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(values))
        if big
        else struct.pack("<2sHIH", b"II", 42, 8, len(values))
    )
    return head + packed + b"\0" * 8


SIZE, HUGE = struct.pack(">II", 61, 43), struct.pack(">II", 30_000, 30_000)
LITTLE_SIZE, LITTLE_HUGE = struct.pack("<II", 61, 43), struct.pack("<II", 30_000, 30_000)
GRAY_GIF = b"GIF89a" + struct.pack("<HH", 30_000, 30_000) + b"\0\0\0"
TOO_MANY |= {
    "GIF": lambda: GRAY_GIF + b",\0\0\0\0" + struct.pack("<HH", 30_000, 30_000) + b"\0\2\2\x4c\1\0;",
    "GIF, one small frame": lambda: GRAY_GIF + b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0;",
    "BMP": _sized("BMP", LITTLE_SIZE, LITTLE_HUGE),
    "BMP, from top to bottom": _sized("BMP", LITTLE_SIZE, struct.pack("<ii", 30_000, -30_000)),
    "BMP, the largest that there is": _sized("BMP", LITTLE_SIZE, struct.pack("<ii", 2**31 - 1, -(2**31))),
    "TIFF": lambda: _tiff((256, 30_000), (257, 30_000)),
    "TIFF, BigTIFF": lambda: _tiff((256, 30_000), (257, 30_000), big=True),
    "TIFF, wide samples": lambda: _tiff((256, 12_000), (257, 12_000), (258, 16), (277, 4)),
    "AVIF": _sized("AVIF", b"ispe\0\0\0\0" + SIZE, b"ispe\0\0\0\0" + HUGE),
    "AVIF, within the pixels, but not within the memory": _sized(
        "AVIF", b"ispe\0\0\0\0" + SIZE, b"ispe\0\0\0\0" + struct.pack(">II", 10_000, 8_000)
    ),
    "HEIC": _sized("plain", b"ispe\0\0\0\0" + struct.pack(">II", 64, 64), b"ispe\0\0\0\0" + HUGE),
    "JPEG 2000": _sized("JPEG 2000", b"\xff\x51\0\x2f\0\0" + SIZE, b"\xff\x51\0\x2f\0\0" + HUGE),
    "PNM": lambda: b"P6 30000 30000 255\n",
    "PNM, behind a comment": lambda: b"P5 #" + b"x" * 60_000 + b"\n30000 30000 255\n",
    "PNM, PAM": lambda: b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
    "PFM": lambda: b"PF\n30000 30000\n-1\n",
    "AVIF, 1.9 KB that call themselves 64x64": lambda: samples.stored("mismatch.avif"),
    "Sun raster": lambda: b"Y\xa6j\x95" + HUGE + struct.pack(">IIIII", 24, 0, 1, 0, 0),
}
UNDECODABLE: dict[str, Callable[[], bytes]] = {
    "PNG, a second header": lambda: png(1, 1, chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))),
    "PNG, 128 MiB after one pixel": lambda: png(1, 1, chunk(b"IDAT", _zeros(128))),
    "PNG, 32 MiB of orientation": lambda: png(1, 1, chunk(b"eXIf", b"MM\0*" + b"x" * (31 << 20))),
    "PNG, an unknown chunk of 32 MiB": lambda: png(1, 1, chunk(b"abCd", b"x" * (31 << 20))),
    "PNG, endless chunks": lambda: png(1, 1, *[chunk(b"tEXt", b"")] * 2_000_000),
    "PNG, 4 GiB of palette announced": lambda: png(1, 1)[:-12] + b"\xff\xff\xff\xffPLTE" + b"\0" * 99,
    "PNG, 2 GiB of transparency announced": lambda: png(1, 1)[:-12] + b"\x7f\xff\xff\xfftRNS" + b"\0" * 99,
    "PNG, 4 GiB announced after the end": lambda: png(5, 5) + b"\xff\xff\xff\xffPLTE" + b"\0" * 99,
    "PNG, 2 GiB of pixels after the end": lambda: png(5, 5) + b"\x7f\xff\xff\xffIDAT" + b"\0" * 99,
    "JPEG, endless segments": lambda: b"\xff\xd8" + b"\xff\xe1\0\x02" * 8_000_000,
    "JPEG, endless fill": lambda: b"\xff\xd8" + b"\xff" * 32_000_000,
    "JPEG, endless junk": lambda: b"\xff\xd8\xff\xe0\0\x02" + b"\xff\0" * 16_000_000,
    "JPEG, endless scans": lambda: _jpeg(9_000, 9_000, progressive=True)[:-2] + b"\xff\xda\0\0" * 8_000_000,
    "WebP, an image beyond its canvas": lambda: riff(_vp8x(5, 5), (b"VP8L", _vp8l(9_000, 9_000))),
    "WebP, a frame beyond its canvas": lambda: _animated_webp(5, 9_000),
    "TIFF, a tile of which only the width is set": lambda: _tiff((257, 200_000), (322, 1 << 24), (324, 8), (325, 1)),
    "TIFF, a tile of 2^48 pixels": lambda: _tiff((322, 1 << 24), (323, 1 << 24), (324, 8), (325, 1)),
    "GIF, a frame beyond the canvas": lambda: (
        b"GIF89a\5\0\5\0\0\0\0,\0\0\0\0" + struct.pack("<HH", 30_000, 30_000) + b"\0\2\2\x4c\1\0;"
    ),
    "AVIF, endless boxes": lambda: b"\0\0\0\x10ftypavif\0\0\0\0" + b"\0\0\0\x08free" * 4_000_000,
    "HEIC, endless boxes in boxes": lambda: b"\0\0\0\x10ftypheic\0\0\0\0" + b"\0\0\0\0moov" * 4_000_000,
    "JPEG 2000, a million tiles": _sized(
        "JPEG 2000, tiles",
        SIZE + b"\0" * 8 + struct.pack(">II", 32, 32),
        struct.pack(">II", 1000, 1000) + b"\0" * 8 + struct.pack(">II", 1, 1),
    ),
    "JPEG 2000, 16,384 components": _sized("JPEG 2000", b"\0\3\x07\1\1", b"\x40\0\x07\1\1"),
    "PNM, an endless comment": lambda: b"P6 #" + b"x" * 30_000_000,
    "PNM, endless digits": lambda: b"P6 " + b"1" * 30_000_000,
    "an endless SVG": lambda: b"<svg>" + b"<g>" * 10_000_000,
}
# What would expand beside a valid image is skipped.
DECODED: dict[str, Callable[[], bytes]] = {
    f"PNG, {kind.decode()} of 128 MiB": lambda kind=kind, head=head: png(  # type: ignore[misc] # bound at once
        1, 1, chunk(kind, head + _zeros(128)), chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    )
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0"))
}
DECODED["PNG, 4 GiB announced after the pixels"] = lambda: (
    png(1, 1, chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))) + b"\xff\xff\xff\xffPLTE" + b"\0" * 99
)
DECODED["TIFF, 4 GiB in a strip"] = lambda: _tiff((279, 2**32 - 1))
DECODED["TIFF, 4 GiB of rows in a strip"] = lambda: _tiff((278, 2**32 - 1), (279, 2**32 - 1))
DECODED["PNG, a frame beyond the image"] = lambda: png(
    1, 1, chunk(b"acTL", struct.pack(">II", 2, 0)), _frame(30_000, 30_000), chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Return a function that returns outcome, seconds and MiB of decoding."""
    file = tmp_path_factory.mktemp("bombs") / "bomb"
    command = [sys.executable, "-c", MEASURE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        (to, back) = (process.stdin, process.stdout)
        assert to is not None
        assert back is not None

        def measure(data: bytes) -> tuple[object, float, float]:
            file.write_bytes(data)
            best = float("inf")
            for _ in range(TRIES):
                print(file, file=to, flush=True)
                outcome, seconds, mebibytes = json.loads(back.readline())
                best = min(best, seconds)
                if best < SECONDS:
                    break
            return outcome, best, mebibytes

        yield measure
        to.close()


@pytest.mark.parametrize("name", [*TOO_MANY, *UNDECODABLE])
def test_a_decompression_bomb_is_refused_before_decoding(name: str, measured: Measured) -> None:
    make = TOO_MANY.get(name) or UNDECODABLE[name]
    outcome, seconds, mebibytes = measured(make())
    expected = "image_format_unsupported" if "SVG" in name else "image_undecodable"
    assert outcome == ("image_too_many_pixels" if name in TOO_MANY else expected)
    assert seconds < SECONDS
    assert mebibytes < MIB


@pytest.mark.parametrize("name", DECODED)
def test_compressed_metadata_is_not_expanded(name: str, measured: Measured) -> None:
    outcome, seconds, mebibytes = measured(DECODED[name]())
    assert outcome == [1, 1, 3]
    assert seconds < SECONDS
    assert mebibytes < MIB


def test_the_measurement_reports_memory_and_time(measured: Measured) -> None:
    """An image within the limits takes what it needs."""
    outcome, seconds, mebibytes = measured(png(6600, 6600, chunk(b"IDAT", _zeros(128))))
    assert outcome == [6600, 6600, 3]
    assert seconds > 0.05
    assert mebibytes > 100


def test_a_phone_photo_of_200_megapixels_takes_6_bytes_a_pixel(measured: Measured) -> None:
    """16,320x12,240 pixels, upright on their side, as the largest phone cameras store them."""
    width, height = 16_320, 12_240
    turn = samples.EXIF + samples.tiff(6)
    data = samples.encoded(Image.new("L", (width, height), 90), "JPEG", exif=turn)
    outcome, _, mebibytes = measured(data)
    assert outcome == [width, height, 3]
    assert mebibytes * 2**20 < 6.3 * width * height
