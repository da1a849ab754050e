"""Decoding: the pixels that OpenCV gives, upright, for every kind of image; a typed error for everything else."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from PIL import Image

from runner.errors import ImageTooManyBytesError, ImageTooManyPixelsError, ImageUndecodableError, JobError
from runner.images import headers
from runner.images.decode import decode
from tests.support import samples
from tests.support.samples import (
    EXIF,
    HEIGHT,
    WIDTH,
    chunk,
    encoded,
    jpeg,
    png,
    riff,
    scene,
    segment,
    tiff,
    with_segments,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHOTOS = samples.photos()
JPEGS = {name: data for name, data in PHOTOS.items() if name.startswith("JPEG")}


def decoded(data: bytes, max_pixels: int = 100_000_000) -> NDArray[np.uint8]:
    return decode(data, max_pixels=max_pixels, max_bytes=1 << 25)


def by_opencv(data: bytes) -> NDArray[np.uint8] | None:
    """Return what InsightFace's own `cv2.imread` would give."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, np.uint8)


def assert_as_opencv(data: bytes) -> None:
    expected = by_opencv(data)
    assert expected is not None
    image = decoded(data)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("name", PHOTOS)
def test_pixels_are_those_of_opencv(name: str) -> None:
    assert_as_opencv(PHOTOS[name])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_what_is_decoded_stands_upright(kind: str, turn: int) -> None:
    """Each of the eight orientations, turned by the definition of EXIF 2.32, is the picture that a viewer shows."""
    stored = decoded(jpeg() if kind == "JPEG" else encoded(scene(), kind.upper()))
    shown = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
        5: stored.transpose(1, 0, 2), 6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1], 8: stored.transpose(1, 0, 2)[::-1],
    }[turn]  # fmt: skip
    np.testing.assert_array_equal(decoded(PHOTOS[f"{kind}, orientation {turn}"]), shown)


def _animated(*parts: tuple[bytes, bytes]) -> bytes:
    """Return an animated PNG of two frames, with `parts` between them."""
    frames = [scene(), scene().rotate(180)]
    first, second = (zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(frame))) for frame in frames)
    control = [struct.pack(">IIIIIHHBB", number, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0) for number in (0, 1)]
    return png(
        WIDTH, HEIGHT, chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"IDAT", first), chunk(b"fcTL", control[0]),
        *(chunk(*part) for part in parts), chunk(b"fdAT", b"\0\0\0\1" + second), chunk(b"fcTL", control[1]),
        chunk(b"fdAT", b"\0\0\0\2" + second),
    )  # fmt: skip


@pytest.mark.parametrize("parts", [[], [(b"CCbA", b"no chunk")], [(b"tEXt", b"")], [(b"IHDR", b"")]])
def test_an_animated_png_is_its_still_picture(parts: list[tuple[bytes, bytes]]) -> None:
    """One whose frames are broken ends OpenCV's own reader, and the process with it, by a segmentation fault."""
    try:
        image = decoded(_animated(*parts))
    except ImageUndecodableError:
        assert parts  # a critical chunk that nobody knows
    else:
        np.testing.assert_array_equal(image, np.asarray(scene())[..., ::-1])


# What phones and programs append and insert


def _film(size: int) -> bytes:
    """Return an MP4 as a motion photo has it: boxes, and random bytes in which every marker occurs."""
    content = np.random.default_rng(1).integers(0, 255, size, np.uint8).tobytes()
    return b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + struct.pack(">I", size + 8) + b"mdat" + content


@pytest.mark.parametrize("name", ["JPEG", "JPEG, progressive", "JPEG, grey", "JPEG, CMYK", "JPEG, orientation 6"])
@pytest.mark.parametrize(
    "trailer",
    [
        b"\0", b"\r\n", b"\0" * 70_000, b"\xff" * 70_000, b"\xff\xd8\xff\xe1 half a thumbnail", b"SEFH\0\0SEFT", jpeg(),
        _film(4_000_000), b"<html>", b"\xff\xd9\xff\xd9",
    ],
    ids=["zero", "line end", "zeros", "ones", "thumbnail", "Samsung", "gain map", "film", "page", "ends"],
)  # fmt: skip
def test_what_follows_the_end_is_nobodys(name: str, trailer: bytes) -> None:
    assert_as_opencv(PHOTOS[name] + trailer)
    np.testing.assert_array_equal(decoded(PHOTOS[name] + trailer), decoded(PHOTOS[name]))


def test_a_picture_of_several_pictures() -> None:
    """MPO: as stereo cameras write it, and phones with a depth map."""
    data = encoded(scene(), "MPO", save_all=True, append_images=[scene().rotate(180)], quality=88)
    assert_as_opencv(data)


def _with_thumbnail() -> bytes:
    small = encoded(scene().resize((16, 12)), "JPEG")
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    first = b"II*\0\x08\0\0\0\x01\0" + entry + struct.pack("<I", 26)
    entries = struct.pack("<HHII", 0x0201, 4, 1, 56) + struct.pack("<HHII", 0x0202, 4, 1, len(small))
    return with_segments(jpeg(), segment(0xE1, EXIF + first + b"\x02\0" + entries + b"\0\0\0\0" + small))


def test_the_thumbnail_is_not_the_picture() -> None:
    assert_as_opencv(_with_thumbnail())
    assert decoded(_with_thumbnail()).shape == (WIDTH, HEIGHT, 3)


# Truncation


@pytest.mark.parametrize("name", ["JPEG", "JPEG, progressive", "JPEG, restart markers", "JPEG, grey", "JPEG, CMYK"])
def test_a_truncated_jpeg_at_every_point(name: str) -> None:
    data = PHOTOS[name]
    for length in {*range(0, len(data) - 1, 7), *range(len(data) - 40, len(data))}:
        with pytest.raises(ImageUndecodableError):
            decoded(data[:length])


def test_a_truncated_jpeg_with_a_whole_thumbnail() -> None:
    data = _with_thumbnail()
    for length in range(len(data) - 900, len(data), 13):
        with pytest.raises(ImageUndecodableError):
            decoded(data[:length])


@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("name", ["JPEG", "JPEG, grey"])
def test_an_end_put_where_the_picture_was_cut_off(name: str, share: float) -> None:
    """Where pixels are missing libjpeg fills with grey: a face that stood there must not be missed without a word."""
    data = PHOTOS[name]
    with pytest.raises(ImageUndecodableError, match="ends too early"):
        decoded(data[: int(len(data) * share)] + b"\xff\xd9")


@pytest.mark.parametrize("name", ["PNG", "PNG, interlaced", "WebP", "WebP, lossless", "PNG, 16 bit", "WebP, alpha"])
def test_a_truncated_png_or_webp_is_judged_as_by_opencv(name: str) -> None:
    data = PHOTOS[name]
    for length in range(1, len(data) - 1, 11):
        expected = by_opencv(data[:length])
        if expected is None:
            with pytest.raises(ImageUndecodableError):
                decoded(data[:length])
        else:
            np.testing.assert_array_equal(decoded(data[:length]), expected)


# Damage


@pytest.mark.parametrize(
    "data",
    [
        with_segments(jpeg(), segment(0xE0, b"ab") + b"junk between segments"),
        with_segments(jpeg(), segment(0xE0, b"JFIF\0\x07\x02\0\0\1\0\1\0\0")),
        jpeg()[:-2] + b"\0" * 50 + b"\xff\xd9",
        with_segments(jpeg(), segment(0xE1, b"") * 3, segment(0xEE, b"Adobe"), b"\xff" * 100),
        with_segments(jpeg(), segment(0xFE, b"\xff\xd9\xff\xda\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03")),
    ],
    ids=["junk", "a JFIF of the future", "padding", "strange segments", "a comment like a header"],
)
def test_what_libjpeg_gets_over(data: bytes) -> None:
    assert_as_opencv(data)


def test_damage_in_the_picture_is_judged_as_by_opencv() -> None:
    data = jpeg(restart_marker_blocks=2)
    judged = 0
    for position in range(len(data) // 2, len(data) - 2, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        expected = by_opencv(bytes(damaged))
        try:
            image = decoded(bytes(damaged))
        except ImageUndecodableError as error:
            assert expected is None or "too early" in str(error)  # noqa: PT017 - both verdicts are right
        else:
            judged += 1
            np.testing.assert_array_equal(image, expected)
    assert judged > 50


def _entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, kind, count, value)


SIX = tiff(6)
EXIFS: dict[str, list[bytes]] = {
    "nothing": [b""],
    "only an order": [b"II"],
    "no order": [b"XX" + SIX[2:]],
    "mixed order": [b"IM" + SIX[2:]],
    "another magic": [SIX.replace(b"II*", b"II+")],
    "a directory far away": [SIX[:4] + b"\xff\xff\xff\x7f" + SIX[8:]],
    "a directory before the block": [SIX[:4] + b"\xff\xff\xff\xff" + SIX[8:]],
    "a directory over the head": [SIX[:4] + b"\0\0\0\0" + SIX[8:]],
    "more entries than there are": [SIX[:8] + b"\xc8\0" + SIX[10:]],
    "no entries": [SIX[:8] + b"\0\0" + SIX[10:]],
    **{f"cut after {length} bytes": [SIX[:length]] for length in range(8, len(SIX))},
    **{f"type {kind}": [tiff(6, kind=kind)] for kind in (0, 1, 2, 4, 5, 7, 9, 13, 255)},
    **{f"type {kind}, big-endian": [tiff(6, ">", kind=kind)] for kind in (1, 4)},
    "count 0": [tiff(6, count=0)],
    "count 2": [tiff(6, count=2)],
    "value 0": [tiff(0)],
    "value 9": [tiff(9)],
    "value 65535": [tiff(65535)],
    "two orientations": [tiff(6, before=[_entry(0x0112, 3, 1, 3)])],
    "two orientations, upright first": [tiff(6, before=[_entry(0x0112, 3, 1, 1)])],
    "a maker before it": [tiff(6, before=[_entry(0x010F, 2, 4, 0x41424344)])],
    "a maker outside": [tiff(6, before=[_entry(0x010F, 2, 99, 90_000)])],
    "a maker that is endless": [tiff(6, before=[_entry(0x010F, 2, 0xFFFFFFFF, 8)])],
    "a white point of another type, before it": [tiff(6, before=[_entry(0x013E, 7, 4, 1000)])],
    "a maker of another type": [tiff(6, before=[_entry(0x010F, 7, 99, 8)])],
    "a short maker": [tiff(6, before=[_entry(0x010F, 2, 3, 0x00414243)])],
    "an empty maker": [tiff(6, before=[_entry(0x010F, 2, 0, 0)])],
    "no orientation": [tiff(6).replace(b"\x12\x01", b"\x13\x02")],
    "a resolution outside": [tiff(6, before=[_entry(0x011A, 5, 1, 90_000)])],
    "an unknown tag outside": [tiff(6, before=[_entry(0x0100, 7, 99, 90_000)])],
    "an unknown type": [tiff(6, before=[_entry(0x0100, 77, 1, 1)])],
    "a block behind": [SIX + b"MakerNote" * 50],
    "two blocks, the first upright": [tiff(1), SIX],
    "two blocks, both turned": [SIX, tiff(3)],
    "two blocks, the first broken": [b"II", SIX],
    "two blocks, the first empty": [b"", SIX],
}


@pytest.mark.parametrize("name", EXIFS)
def test_damaged_exif_is_read_as_by_opencv(name: str) -> None:
    assert_as_opencv(with_segments(jpeg(), *(segment(0xE1, EXIF + block) for block in EXIFS[name])))


@pytest.mark.parametrize(
    "segments",
    [
        [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), segment(0xE1, EXIF + SIX)],
        [segment(0xE1, b"Exif\0\x01" + SIX)],
        [segment(0xE1, b"exif\0\0" + SIX)],
        [segment(0xE1, b"EXIF\0\0" + SIX)],
        [segment(0xE1, b"Exif" + SIX)],
        [segment(0xE2, EXIF + SIX)],
        [segment(0xE0, EXIF + SIX)],
        [segment(0xE1, b"Ex")],
    ],
)
def test_what_is_like_exif(segments: list[bytes]) -> None:
    assert_as_opencv(with_segments(jpeg(), *segments))


def test_exif_after_the_frame_counts_too() -> None:
    data = jpeg()
    scan = data.index(b"\xff\xda")
    assert_as_opencv(data[:scan] + segment(0xE1, EXIF + SIX) + data[scan:])


def test_ordinary_exif_takes_the_quick_way() -> None:
    """Only what is out of the standard is left to OpenCV, which is half as fast."""
    usual = [_entry(0x010F, 2, 6, 50), _entry(0x0110, 2, 4, 0x41424344)]
    data = with_segments(jpeg(), segment(0xE1, EXIF + tiff(8, before=usual) + b"Camera" + b"\0" * 99))
    assert headers.read(data).orientation == 8
    assert headers.read(jpeg()).orientation == 1


# What is no image


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "there are no bytes"),
        (b"\0", "neither JPEG, PNG nor WebP"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG, which has no pixels"),
        (b"\xef\xbb\xbf  <SVG>", "an SVG"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b'{"error": "no such key"}', "neither"),
        (b"<Error><Code>AccessDenied</Code></Error>", "neither"),
        (encoded(scene(), "GIF"), "GIF, which is not among"),
        (encoded(scene(), "BMP"), "BMP"),
        (encoded(scene(), "TIFF"), "TIFF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x20ftypheic", "HEIF"),
        (b"%PDF-1.7", "PDF"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xff\xd8\xff", "ends before its pixels"),
        (b"\xff\xd8\xff\xd9", "without a frame"),
        (b"\xff\xd8\xff" + b"\xff" * 2_000_000, "ends before its pixels"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 1_000_000, "ends before its pixels"),
        (b"\xff\xd8" + b"\xff\xe0\0\x02" * 70_000, "more than 16384 segments"),
        (b"\x89PNG\r\n\x1a\n", "without a header"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") * 3, "without a header"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0", "ends too early"),
        (png(5, 5)[:-12] + b"\xff\xff\xff\xffPLTE" + b"\0" * 99, "ends too early"),
        (png(0, 5), "without pixels"),
        (png(5, 0), "without pixels"),
        (png(5, 5), "a PNG without pixels"),
        (png(5, 5, chunk(b"IDAT", b"no zlib")), "a damaged PNG"),
        (png(5, 5, chunk(b"IDAT", zlib.compress(b"\0" * 80)), colour=9), "a damaged PNG"),
        (png(5, 5, chunk(b"IDAT", zlib.compress(b"\0" * 80)), depth=3), "a damaged PNG"),
        (png(1, 1, *[chunk(b"tEXt", b"")] * 70_000), "more than 65536 chunks"),
        (riff(), "without a frame"),
        (riff((b"VP8 ", b"")), "ends too early"),
        (riff((b"VP8X", b"\0" * 3)), "without a frame"),
        (riff((b"VP8X", b"\0" * 10)), "a damaged WebP"),
        (riff((b"VP8 ", b"\0\0\0\x9d\x01\x2a\x05\0\x05\0")), "a damaged WebP"),
        (riff((b"VP8L", b"\x2f\x05\0\0\0\0")), "a damaged WebP"),
        (riff((b"ALPH", b"\0" * 30)), "without a frame"),
    ],
    ids=range(38),
)
def test_what_is_no_image_says_what_it_is(data: bytes, sentence: str) -> None:
    with pytest.raises(ImageUndecodableError, match="The file is not an image that can be decoded: ") as caught:
        decoded(data)
    assert sentence in str(caught.value)


# Limits


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exactly_the_most_pixels(kind: str) -> None:
    data = encoded(scene(), kind)
    assert decoded(data, WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageTooManyPixelsError, match=r"61x43, 2622 pixels allowed"):
        decoded(data, WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exactly_the_most_bytes(kind: str) -> None:
    data = encoded(scene(), kind)
    assert decode(data, max_pixels=10_000, max_bytes=len(data)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageTooManyBytesError, match=f"{len(data)} bytes, {len(data) - 1} allowed"):
        decode(data, max_pixels=10_000, max_bytes=len(data) - 1)


def test_each_limit_has_an_error_of_its_own() -> None:
    errors: list[type[JobError]] = [ImageTooManyBytesError, ImageTooManyPixelsError, ImageUndecodableError]
    assert len({error.word for error in errors}) == 3
    assert not any(error.transient for error in errors)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("JPEG", (65_500, 1)), ("JPEG", (1, 65_500)), ("JPEG", (65_500, 9)), ("PNG", (1_000_000, 1)),
        ("PNG", (1, 1_000_000)), ("WEBP", (16_383, 1)), ("WEBP", (1, 16_383)),
    ],
)  # fmt: skip
def test_very_wide_and_very_tall(kind: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (9, 99, 199)), kind)
    assert decoded(data).shape == (size[1], size[0], 3)
    assert_as_opencv(data)


def test_a_turned_picture_of_the_most_pixels() -> None:
    data = with_segments(encoded(Image.new("RGB", (4000, 2500)), "JPEG"), segment(0xE1, EXIF + tiff(8)))
    assert decoded(data, 10_000_000).shape == (4000, 2500, 3)


def test_more_data_than_pixels() -> None:
    """Gigabytes behind the last row would be unpacked only to be thrown away: 2.5 s of it a megabyte."""
    behind = zlib.compress(b"\0" * (80 << 20), 9)
    assert len(behind) > 66_000
    with pytest.raises(ImageUndecodableError, match="far more data than pixels"):
        decoded(png(1, 1, chunk(b"IDAT", behind)))
    raw = zlib.compress(np.random.default_rng(3).integers(0, 255, (300, 901), np.uint8).tobytes(), 0)
    noise = png(300, 300, *(chunk(b"IDAT", raw[start : start + 8192]) for start in range(0, len(raw), 8192)))
    with pytest.raises(ImageUndecodableError, match="a damaged PNG"):  # a wrong filter, but not too much data
        decoded(noise)


def test_more_scans_than_a_picture_needs() -> None:
    data = jpeg(progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageUndecodableError, match="more than 100 scans"):
        decoded(data[:-2] + data[scan:-2] * 100 + b"\xff\xd9")
