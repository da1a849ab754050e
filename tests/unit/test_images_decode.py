"""Decoding: the pixels that OpenCV gives, upright, for every supported format; a typed error for everything else."""

from __future__ import annotations

import math
import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
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

PHOTOS = samples.photos()
JPEGS = {name: data for name, data in PHOTOS.items() if name.startswith("JPEG") and "2000" not in name}


def decoded(data: bytes, max_pixels: int = 210_000_000) -> NDArray[np.uint8]:
    return decode(data, max_pixels=max_pixels, max_bytes=1 << 25)


def by_opencv(data: bytes) -> NDArray[np.uint8] | None:
    """Return what `cv2.imread` gives InsightFace."""
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
def test_pixels_equal_those_of_opencv(name: str) -> None:
    assert_as_opencv(PHOTOS[name])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_upright_by_their_exif_orientation(kind: str, turn: int) -> None:
    """Each of the eight orientations, as EXIF 2.32 defines them, gives the image that a viewer shows."""
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


@pytest.mark.parametrize("parts", [[], [(b"CCbA", b"unknown")], [(b"tEXt", b"")], [(b"IHDR", b"")]])
def test_an_animated_png_decodes_to_its_still_image(parts: list[tuple[bytes, bytes]]) -> None:
    """Malformed frames make OpenCV's own reader, and the process with it, end with a segmentation fault."""
    try:
        image = decoded(_animated(*parts))
    except ImageUndecodableError:
        assert parts  # an unknown critical chunk
    else:
        np.testing.assert_array_equal(image, np.asarray(scene())[..., ::-1])


# What phones and programs append and insert


def _video(size: int) -> bytes:
    """Return an MP4 as a motion photo carries it: boxes, and random bytes in which every marker occurs."""
    content = np.random.default_rng(1).integers(0, 255, size, np.uint8).tobytes()
    return b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + struct.pack(">I", size + 8) + b"mdat" + content


@pytest.mark.parametrize(
    "name",
    [
        "JPEG",
        "JPEG, progressive",
        "JPEG, grey",
        "JPEG, CMYK",
        "JPEG, orientation 6",
        "JPEG, arithmetic",
        "JPEG, one scan for each component",
    ],
)
@pytest.mark.parametrize(
    "trailer",
    [
        b"\0", b"\r\n", b"\0" * 70_000, b"\xff" * 70_000, b"\xff\xd8\xff\xe1 half a thumbnail", b"SEFH\0\0SEFT", jpeg(),
        _video(12_000_000), b"<html>", b"\xff\xd9\xff\xd9",
    ],
    ids=["zero", "line end", "zeros", "ones", "thumbnail", "Samsung", "gain map", "video", "page", "end markers"],
)  # fmt: skip
def test_trailing_bytes_after_eoi_are_ignored(name: str, trailer: bytes) -> None:
    assert_as_opencv(PHOTOS[name] + trailer)
    np.testing.assert_array_equal(decoded(PHOTOS[name] + trailer), decoded(PHOTOS[name]))


def test_the_first_image_of_an_mpo_is_decoded() -> None:
    """Stereo cameras write MPO, and phones with a depth map."""
    data = encoded(scene(), "MPO", save_all=True, append_images=[scene().rotate(180)], quality=88)
    assert_as_opencv(data)


def _with_thumbnail() -> bytes:
    small = encoded(scene().resize((16, 12)), "JPEG")
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    first = b"II*\0\x08\0\0\0\x01\0" + entry + struct.pack("<I", 26)
    entries = struct.pack("<HHII", 0x0201, 4, 1, 56) + struct.pack("<HHII", 0x0202, 4, 1, len(small))
    return with_segments(jpeg(), segment(0xE1, EXIF + first + b"\x02\0" + entries + b"\0\0\0\0" + small))


def test_an_exif_thumbnail_is_not_decoded() -> None:
    assert_as_opencv(_with_thumbnail())
    assert decoded(_with_thumbnail()).shape == (WIDTH, HEIGHT, 3)


# Truncation

# Every encoding of a JPEG, and problems that libjpeg warns of before it meets the end of the file.
CUT = {
    **{name: data for name, data in JPEGS.items() if "orientation" not in name and "profile" not in name},
    "JPEG with malformed EXIF": with_segments(jpeg(), segment(0xE1, EXIF + b"II")),
    "JPEG with junk between segments": with_segments(jpeg(), segment(0xE0, b"ab") + b"junk between segments"),
    "JPEG, CMYK, with junk between segments": with_segments(
        PHOTOS["JPEG, CMYK"], segment(0xE0, b"ab") + b"junk between segments"
    ),
    "JPEG, restart markers every three blocks": jpeg(restart_marker_blocks=3),
}


def _cuts(data: bytes) -> list[int]:
    """Return lengths of `data` that lack a part of the image: all of the last 40, and others."""
    return sorted({*range(0, len(data) - 3, 1 + len(data) // 90), *range(len(data) - 40, len(data) - 3)})


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut off", "cut off, end marker"])
def test_a_jpeg_that_is_cut_off_is_refused(name: str, end: bytes) -> None:
    """libjpeg fills missing pixels with grey: a face that stood there would be missed without an error.

    After the last bytes of an entropy-coded scan nothing may be missing: then the pixels are those of the whole file.
    An arithmetic decoder reads zeros after the end of its data, and may still produce the last blocks from them.
    """
    data, decodes = CUT[name], 0
    whole = decoded(data)
    for length in _cuts(data):
        try:
            image = decoded(data[:length] + end)
        except ImageUndecodableError:
            continue
        decodes += 1
        rows = HEIGHT - 16 if "arithmetic" in name else HEIGHT
        np.testing.assert_array_equal(image[:rows], whole[:rows], err_msg=f"{length} of {len(data)}")
    assert decodes <= (10 if "arithmetic" in name else 1)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_decoded(name: str, missing: int) -> None:
    data = CUT[name]
    np.testing.assert_array_equal(decoded(data[:-missing]), decoded(data))


def test_a_turned_jpeg_without_its_end_marker_is_decoded_upright() -> None:
    data = PHOTOS["JPEG, orientation 6"]
    np.testing.assert_array_equal(decoded(data[:-2]), decoded(data))


@pytest.mark.parametrize("junk", [b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\0" * 512, b"\xff", b"junk" * 1023,
                                  b"--boundary\r\nContent-Type: image/jpeg\r\n\r\n"])  # fmt: skip
@pytest.mark.parametrize("name", ["JPEG", "JPEG, orientation 6", "JPEG, CMYK"])
def test_junk_before_a_jpeg_is_skipped(name: str, junk: bytes) -> None:
    np.testing.assert_array_equal(decoded(junk + PHOTOS[name]), decoded(PHOTOS[name]))
    with pytest.raises(ImageUndecodableError, match="ends too early"):
        decoded(junk + PHOTOS[name][:-200])


def test_a_jpeg_far_into_a_file_is_not_its_image() -> None:
    with pytest.raises(ImageUndecodableError, match="none of JPEG, PNG"):
        decoded(b"x" * 4096 + jpeg())


def test_a_progressive_jpeg_that_lacks_scans_is_refused() -> None:
    """Cut off between two scans it decodes without a warning, blurred."""
    data = jpeg(progressive=True)
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(starts) == 10
    for number, start in enumerate(starts[1:], 1):
        table = data.rfind(b"\xff\xc4", 0, start)
        end = table if table > starts[number - 1] else start
        assert by_opencv(data[:end] + b"\xff\xd9") is not None
        with pytest.raises(ImageUndecodableError, match="some of its scans are missing"):
            decoded(data[:end] + b"\xff\xd9")


def test_a_cut_off_jpeg_with_a_whole_thumbnail_is_refused() -> None:
    data = _with_thumbnail()
    for length in range(len(data) - 900, len(data) - 2, 13):
        with pytest.raises(ImageUndecodableError):
            decoded(data[:length])


@pytest.mark.parametrize("name", ["PNG", "PNG, interlaced", "WebP", "WebP, lossless", "PNG, 16 bit", "WebP, alpha"])
def test_a_truncated_png_or_webp_is_decoded_where_opencv_decodes_it(name: str) -> None:
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
    ids=["junk", "an unknown JFIF version", "padding", "empty segments", "a comment like a header"],
)
def test_problems_that_libjpeg_recovers_from_give_the_pixels_of_opencv(data: bytes) -> None:
    assert_as_opencv(data)


def test_damaged_pixels_are_decoded_as_by_opencv_or_refused() -> None:
    data = jpeg(restart_marker_blocks=2)
    decodes = 0
    for position in range(len(data) // 2, len(data) - 2, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        expected = by_opencv(bytes(damaged))
        try:
            image = decoded(bytes(damaged))
        except ImageUndecodableError as error:
            assert expected is None or "too early" in str(error)  # noqa: PT017 - both outcomes are right
        else:
            decodes += 1
            np.testing.assert_array_equal(image, expected)
    assert decodes > 50


def box(name: bytes, content: bytes) -> bytes:
    """Return a box of the ISO base media file format."""
    return struct.pack(">I", len(content) + 8) + name + content


def ispe(width: int, height: int) -> bytes:
    """Return the box that holds the size of an image in an AVIF or a HEIC."""
    return box(b"ispe", struct.pack(">III", 0, width, height))


def raw(*entries: tuple[int, int, int, int]) -> bytes:
    """Return a TIFF whose first directory has these entries, and the size of a thumbnail."""
    directory = [(256, 4, 1, 160), (257, 4, 1, 120), *entries]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(directory))
    return b"II*\0" + struct.pack("<IH", 8, len(directory)) + packed + b"\0" * 8 + jpeg()


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
def test_malformed_exif_is_read_as_by_opencv(name: str) -> None:
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
def test_segments_that_resemble_exif_are_read_as_by_opencv(segments: list[bytes]) -> None:
    assert_as_opencv(with_segments(jpeg(), *segments))


def test_exif_after_the_frame_header_is_read() -> None:
    data = jpeg()
    scan = data.index(b"\xff\xda")
    assert_as_opencv(data[:scan] + segment(0xE1, EXIF + SIX) + data[scan:])


def test_standard_exif_is_read_without_opencv() -> None:
    """Only malformed EXIF is left to OpenCV, which takes half as long again."""
    usual = [_entry(0x010F, 2, 6, 50), _entry(0x0110, 2, 4, 0x41424344)]
    data = with_segments(jpeg(), segment(0xE1, EXIF + tiff(8, before=usual) + b"Camera" + b"\0" * 99))
    assert headers.read(data).orientation == 8
    assert headers.read(jpeg()).orientation == 1


# Files of other formats than they seem


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "there are no bytes"),
        (b"\0", "none of JPEG, PNG, WebP"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG, which has no pixels"),
        (b"\xef\xbb\xbf  <SVG>", "an SVG"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b'{"error": "no such key"}', "JSON"),
        (b"<Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b"%PDF-1.7", "a PDF"),
        (b"%PDF-1.7" + jpeg(), "a PDF"),
        (b"\x1f\x8b\x08", "gzip"),
        (encoded(scene(), "ICO"), "an icon (ICO)"),
        (b"8BPS\0\x01", "a Photoshop document"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"#?RADIANCE\n", "a Radiance HDR"),
        # Video
        (box(b"ftyp", b"qt  \0\0\0\0qt  ") + jpeg(), "a QuickTime video (MOV)"),
        (box(b"wide", b"") + box(b"mdat", b"x" * 99), "a QuickTime video (MOV)"),
        (box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41"), "an MP4 video"),
        (box(b"ftyp", b"mp42\0\0\0\0isommp42"), "an MP4 video"),
        (box(b"ftyp", b"3gp5\0\0\0\0isom3gp5"), "an MP4 video"),
        (b"\x1aE\xdf\xa3\x93B\x86", "a Matroska or WebM video"),
        (b"RIFF\x10\0\0\0AVI LIST", "an AVI video"),
        ((b"G" + b"\xff" * 187) * 4, "an MPEG video"),
        # Raw photos, with the JPEG that cameras put into them
        (box(b"ftyp", b"crx \0\0\0\1crx isom") + jpeg(), "a Canon raw photo (CR3)"),
        (b"II*\0\x10\0\0\0CR\2\0\0\0\0\0" + raw()[8:], "a camera's raw photo"),
        (raw((50706, 1, 4, 0x00000401)), "a camera's raw photo"),
        (raw((262, 3, 1, 32803)), "a camera's raw photo"),
        (raw((254, 4, 1, 1), (330, 4, 1, 8)), "a camera's raw photo"),
        (b"FUJIFILMCCD-RAW 0201" + jpeg(), "a Fujifilm raw photo (RAF)"),
        (b"IIU\0\x18\0\0\0" + jpeg(), "a Panasonic raw photo (RW2)"),
        (b"IIRO\x08\0\0\0", "an Olympus raw photo (ORF)"),
        # Damaged headers
        (jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "a 12-bit JPEG"),
        (box(b"ftyp", b"avif\0\0\0\0"), "an AVIF without pixels"),
        (box(b"ftyp", b"heic\0\0\0\0mif1"), "a HEIC without pixels"),
        (box(b"ftyp", b"heic") + box(b"meta", b"\0" * 4 + box(b"iprp", box(b"ipco", ispe(9, 9)))), "a damaged HEIC"),
        (b"GIF89a", "ends too early"),
        (b"GIF89a\0\0\0\0", "a GIF without pixels"),
        (b"GIF89a\x05\0\x05\0\0\0\0;", "a damaged GIF"),
        (b"BM", "ends too early"),
        (b"P6\nno numbers", "a PNM without a size"),
        (b"P7\nDEPTH 3\nENDHDR\n", "a PNM without pixels"),
        (b"PF\nx", "a PFM without a size"),
        (b"II*\0", "ends too early"),
        (b"II*\0\x08\0\0\0\0\0", "a TIFF without pixels"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 without a codestream"),
        (b"\xff\x4f\xff\x51\0\x2f", "ends too early"),
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
        (png(5, 5, chunk(b"IDAT", b"not zlib")), "a damaged PNG"),
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
    ids=lambda part: part if isinstance(part, str) else "bytes",
)
def test_a_file_that_is_not_decoded_is_named_for_what_it_is(data: bytes, sentence: str) -> None:
    with pytest.raises(ImageUndecodableError, match=r"not an image that can|of a format that is not") as caught:
        decoded(data)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image_undecodable"),
        (b"no image at all", "image_undecodable"),
        (b"\xff\xd8\xff", "image_undecodable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_format_unsupported"),
        (b"#?RADIANCE", "image_format_unsupported"),
    ],
)
def test_a_damaged_file_and_one_of_another_format_have_different_codes(data: bytes, code: str) -> None:
    with pytest.raises(ImageUndecodableError) as caught:
        decoded(data)
    assert caught.value.code == code


# Limits


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_of_exactly_the_most_pixels_is_decoded(kind: str) -> None:
    data = encoded(scene(), kind)
    assert decoded(data, WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageTooManyPixelsError, match=r"61x43, 2622 pixels allowed"):
        decoded(data, WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_of_exactly_the_most_bytes_is_decoded(kind: str) -> None:
    data = encoded(scene(), kind)
    assert decode(data, max_pixels=10_000, max_bytes=len(data)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageTooManyBytesError, match=f"{len(data)} bytes, {len(data) - 1} allowed"):
        decode(data, max_pixels=10_000, max_bytes=len(data) - 1)


def test_each_limit_has_its_own_error_code() -> None:
    errors: list[type[JobError]] = [ImageTooManyBytesError, ImageTooManyPixelsError, ImageUndecodableError]
    assert len({error.code for error in errors}) == 3
    assert not any(error.transient for error in errors)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("JPEG", (65_500, 1)), ("JPEG", (1, 65_500)), ("JPEG", (65_500, 9)), ("PNG", (1_000_000, 1)),
        ("PNG", (1, 1_000_000)), ("WEBP", (16_383, 1)), ("WEBP", (1, 16_383)),
    ],
)  # fmt: skip
def test_very_wide_and_very_tall_images_are_decoded(kind: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (9, 99, 199)), kind)
    assert decoded(data).shape == (size[1], size[0], 3)
    assert_as_opencv(data)


def test_a_turned_image_of_the_most_pixels_is_decoded() -> None:
    data = with_segments(encoded(Image.new("RGB", (4000, 2500)), "JPEG"), segment(0xE1, EXIF + tiff(8)))
    assert decoded(data, 10_000_000).shape == (4000, 2500, 3)


def test_a_png_with_far_more_data_than_pixels_is_refused() -> None:
    """Gigabytes after the last row would be decompressed only to be thrown away: 2.5 s for each megabyte."""
    behind = zlib.compress(b"\0" * (80 << 20), 9)
    assert len(behind) > 66_000
    with pytest.raises(ImageUndecodableError, match="far more data than pixels"):
        decoded(png(1, 1, chunk(b"IDAT", behind)))
    raw = zlib.compress(np.random.default_rng(3).integers(0, 255, (300, 901), np.uint8).tobytes(), 0)
    noise = png(300, 300, *(chunk(b"IDAT", raw[start : start + 8192]) for start in range(0, len(raw), 8192)))
    with pytest.raises(ImageUndecodableError, match="a damaged PNG"):  # a wrong filter, but not too much data
        decoded(noise)


def test_a_progressive_jpeg_of_too_many_scans_for_its_size_is_refused() -> None:
    data = jpeg(progressive=True)
    scan = data.rindex(b"\xff\xda")
    frame = data.index(b"\xff\xc2") + 5
    large = data[:frame] + struct.pack(">HH", 12_240, 16_320) + data[frame + 4 :]
    assert headers.read(large).width == 16_320
    with pytest.raises(ImageUndecodableError, match="16320x12240 of more than 25 scans"):
        headers.read(large[:-2] + large[scan:-2] * 16 + b"\xff\xd9")
    with pytest.raises(ImageUndecodableError, match="more than 100 scans"):
        decoded(data[:-2] + data[scan:-2] * 100 + b"\xff\xd9")


# HEIC


def test_formats_whose_decoder_takes_more_memory_may_have_fewer_pixels() -> None:
    heics = samples.heics()
    cases = [
        (heics["plain"], 64 * 64),
        (heics["ten-bit"], 64 * 64 * 8 / 6),
        (PHOTOS["AVIF"], 61 * 43 * 20 / 6),
        (PHOTOS["JPEG 2000"], 61 * 43 * 18 / 6),
        (jpeg(progressive=True, subsampling=0), 61 * 43 * 9 / 6),
        (jpeg(progressive=True), 61 * 43),
    ]
    for data, most in cases:
        assert decoded(data, math.ceil(most)).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(ImageTooManyPixelsError):
            decoded(data, math.ceil(most) - 1)


def _close(image: NDArray[np.uint8], expected: NDArray[np.uint8]) -> bool:
    """Return whether two images show the same: HEIC is compressed at quality 80."""
    return image.shape == expected.shape and float(np.abs(image.astype(int) - expected).mean()) < 8


@pytest.mark.parametrize("name", ["plain", "alpha", "ten-bit", "two-images"])
def test_a_heic_is_decoded(name: str) -> None:
    image = decoded(samples.heics()[name])
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert _close(image, np.asarray(scene())[..., ::-1])


def test_a_grey_heic_is_decoded_to_bgr() -> None:
    image = decoded(samples.heics()["grey"])
    assert _close(image, np.asarray(scene().convert("L").convert("RGB")))
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("turn", range(2, 9))
def test_a_heic_is_turned_upright_by_its_own_properties(turn: int) -> None:
    stored = np.asarray(scene())[..., ::-1]
    turned = stored.transpose(1, 0, 2) if turn >= 5 else stored
    upright = {
        2: turned[:, ::-1], 3: turned[::-1, ::-1], 4: turned[::-1], 5: turned, 6: turned[:, ::-1],
        7: turned[::-1, ::-1], 8: turned[::-1],
    }[turn]  # fmt: skip
    assert _close(decoded(samples.heics()[f"orientation-{turn}"]), upright)


def test_a_tiled_heic_is_assembled_and_rotated() -> None:
    """iPhones store a grid of tiles, and its rotation."""
    assert _close(decoded(samples.heics()["grid"]), np.rot90(np.asarray(scene(128, 128))[..., ::-1]))


def test_the_pixels_of_a_heic_outlive_the_decoder() -> None:
    """pi-heif frees its memory with the object that it returns: a view alone showed other data after that."""
    images = [decoded(samples.heics()["plain"]) for _ in range(20)]
    junk = [np.full(image.nbytes, 7, np.uint8) for image in images]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert _close(images[0], np.asarray(scene())[..., ::-1])
    del junk


@pytest.mark.parametrize("name", ["plain", "orientation-6"])
def test_a_heic_that_is_cut_off_is_refused(name: str) -> None:
    data = samples.heics()[name]
    for length in range(0, len(data), 17):
        with pytest.raises(ImageUndecodableError):
            decoded(data[:length])


@pytest.mark.parametrize("name", ["GIF, animated", "TIFF, two pages", "AVIF, animated"])
def test_the_first_of_several_frames_or_pages_is_decoded(name: str) -> None:
    first = np.asarray(scene())[..., ::-1]
    assert float(np.abs(decoded(PHOTOS[name]).astype(int) - first).mean()) < 20
