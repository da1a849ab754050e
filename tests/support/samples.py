"""Images of every supported kind: small, with distinct content in every corner."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 61, 43  # odd, and not a multiple of a codec's block size
EXIF = b"Exif\0\0"
FILES = Path(__file__).with_name("files")


@cache
def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return a picture with smooth areas, edges and no symmetry."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 255, (7, 9, 3), np.uint8)
    pixels = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)).copy()
    pixels[: height // 3, : width // 4] = (255, 20, 20)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return `image` as a file in the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(**options: object) -> bytes:
    return encoded(scene(), "JPEG", **({"quality": 88} | options))


def tiff(orientation: int, order: str = "<", *, before: Sequence[bytes] = (), kind: int = 3, count: int = 1) -> bytes:
    """Return the TIFF part of an EXIF block, with the entries `before` ahead of the orientation."""
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    entries = [*before, struct.pack(f"{order}HHI", 0x0112, kind, count) + value]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", 0)


def segment(marker: int, content: bytes) -> bytes:
    """Return a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with `segments` inserted before all others."""
    return data[:2] + b"".join(segments) + data[2:]


def rotated(orientation: int, order: str = "<") -> bytes:
    return with_segments(jpeg(), segment(0xE1, EXIF + tiff(orientation, order)))


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    """Return a PNG of these chunks, which need not be valid."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def interlaced_png() -> bytes:
    """Return an interlaced PNG (Adam7; ISO/IEC 15948, section 8.2), which Pillow cannot write."""
    pixels = np.asarray(scene())
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = pixels[top::down, left::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part) if part.shape[1] else b""
    return png(WIDTH, HEIGHT, chunk(b"IDAT", zlib.compress(rows)), interlaced=1)


def png16() -> bytes:
    deep = np.asarray(scene()).astype(np.uint16) * 257 + np.arange(WIDTH, dtype=np.uint16)[None, :, None]
    return cv2.imencode(".png", deep)[1].tobytes()


def ycck() -> bytes:
    """Return a CMYK JPEG as Photoshop writes it: with Adobe's marker, inverted, in YCCK."""
    return encoded(scene().convert("CMYK"), "JPEG", quality=88)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP container (RFC 9649) of these chunks."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif_webp(orientation: int) -> bytes:
    return encoded(scene(), "WEBP", exif=EXIF + tiff(orientation))


def stored(name: str) -> bytes:
    """Return an image of `tests/support/files`."""
    return (FILES / name).read_bytes()


def heics() -> dict[str, bytes]:
    """Return every kind of HEIC that must decode: OpenCV decodes none."""
    return {path.stem: path.read_bytes() for path in sorted(FILES.glob("*.heic"))}


def _by_opencv(suffix: str, pixels: NDArray[Any], *options: int) -> bytes:
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def tiff_file(**options: object) -> bytes:
    """Return a TIFF of the scene, uncompressed unless `options` say otherwise."""
    return encoded(scene(), "TIFF", **options)


def _other_photos() -> dict[str, bytes]:
    """Return every kind of image besides JPEG, PNG and WebP that OpenCV decodes."""
    grey, alpha = scene().convert("L"), scene().convert("RGBA")
    alpha.putalpha(grey)
    palette = scene().convert("P", palette=Image.Palette.ADAPTIVE, colors=50)
    frames = [scene().rotate(angle).convert("P") for angle in (0, 90, 180)]
    pixels = np.asarray(scene())[..., ::-1].copy()
    deep, real = pixels.astype(np.uint16) * 257, pixels.astype(np.float32) / 255
    return {
        "GIF": encoded(palette, "GIF"),
        "GIF, grey": encoded(grey, "GIF"),
        "GIF, interlaced": encoded(palette, "GIF", interlace=1),
        "GIF, transparent": encoded(palette, "GIF", transparency=3),
        "GIF, animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "BMP": encoded(scene(), "BMP"),
        "BMP, grey": encoded(grey, "BMP"),
        "BMP, one bit": encoded(scene().convert("1"), "BMP"),
        "BMP, palette": encoded(palette, "BMP"),
        "BMP, alpha": encoded(alpha, "BMP"),
        "TIFF": tiff_file(),
        "TIFF, LZW": tiff_file(compression="tiff_lzw"),
        "TIFF, Deflate": tiff_file(compression="tiff_adobe_deflate"),
        "TIFF, PackBits": tiff_file(compression="packbits"),
        "TIFF, JPEG": tiff_file(compression="jpeg"),
        "TIFF, grey": encoded(grey, "TIFF"),
        "TIFF, alpha": encoded(alpha, "TIFF"),
        "TIFF, palette": encoded(palette, "TIFF"),
        "TIFF, fax": encoded(scene().convert("1"), "TIFF", compression="group4"),
        "TIFF, BigTIFF": tiff_file(big_tiff=True),
        "TIFF, two pages": tiff_file(save_all=True, append_images=[scene().rotate(180)]),
        "TIFF, 16 bit": _by_opencv(".tiff", deep),
        **{f"TIFF, orientation {turn}": tiff_file(tiffinfo={0x0112: turn}) for turn in range(1, 9)},
        "AVIF": encoded(scene(), "AVIF", speed=10),
        "AVIF, alpha": encoded(alpha, "AVIF", speed=10),
        "AVIF, grey": encoded(grey, "AVIF", speed=10),
        "AVIF, animated": encoded(frames[0].convert("RGB"), "AVIF", speed=10, save_all=True,
                                  append_images=[frame.convert("RGB") for frame in frames[1:]]),
        **{f"AVIF, orientation {turn}": encoded(scene(), "AVIF", speed=10, exif=EXIF + tiff(turn)) for turn in (3, 6)},
        "JPEG 2000": encoded(scene(), "JPEG2000"),
        "JPEG 2000, codestream": encoded(scene(), "JPEG2000", no_jp2=True),
        "JPEG 2000, tiles": encoded(scene(), "JPEG2000", tile_size=(32, 32)),
        "JPEG 2000, lossy": encoded(scene(), "JPEG2000", irreversible=True, quality_layers=[20]),
        "JPEG 2000, grey": encoded(grey, "JPEG2000"),
        "JPEG 2000, alpha": encoded(alpha, "JPEG2000"),
        "PNM, PBM": encoded(scene().convert("1"), "PPM"),
        "PNM, PGM": encoded(grey, "PPM"),
        "PNM, PPM": encoded(scene(), "PPM"),
        "PNM, PPM, 16 bit": _by_opencv(".ppm", deep),
        "PNM, plain text": b"P3\n# said\n2 1 # more\n255\n1 2 3  4 5 6\n",
        "PNM, PAM": _by_opencv(".pam", pixels),
        "PFM": _by_opencv(".pfm", real),
        "Sun raster": _by_opencv(".ras", pixels),
    }  # fmt: skip


def photos() -> dict[str, bytes]:
    """Return every kind of image that must decode to the pixels that OpenCV gives."""
    grey, alpha = scene().convert("L"), scene().convert("RGBA")
    alpha.putalpha(grey)
    palette = scene().convert("P", palette=Image.Palette.ADAPTIVE, colors=50)
    frames = [scene().rotate(angle) for angle in (0, 90, 180)]
    return {
        "JPEG": jpeg(),
        "JPEG 4:4:4": jpeg(subsampling=0),
        "JPEG 4:2:2": jpeg(subsampling=1),
        "JPEG 4:2:0": jpeg(subsampling=2),
        "JPEG of quality 1": jpeg(quality=1),
        "JPEG of quality 100": jpeg(quality=100, subsampling=0),
        "JPEG, optimised": jpeg(optimize=True),
        "JPEG, progressive": jpeg(progressive=True),
        "JPEG, restart markers": jpeg(restart_marker_blocks=1),
        "JPEG, progressive, restart markers": jpeg(progressive=True, restart_marker_rows=1),
        "JPEG, grey": encoded(grey, "JPEG"),
        "JPEG, grey, progressive": encoded(grey, "JPEG", progressive=True),
        "JPEG, RGB inside": jpeg(keep_rgb=True),
        "JPEG, CMYK": ycck(),
        "JPEG, CMYK, progressive": encoded(scene().convert("CMYK"), "JPEG", progressive=True),
        "JPEG with an ICC profile": jpeg(icc_profile=b"profile" * 20_000),
        "JPEG with a comment": jpeg(comment=b"said"),
        "JPEG, arithmetic": stored("arithmetic.jpg"),
        "JPEG, arithmetic, progressive": stored("arithmetic-progressive.jpg"),
        "JPEG, arithmetic, restart markers": stored("arithmetic-restart.jpg"),
        "JPEG, arithmetic, CMYK": stored("arithmetic-cmyk.jpg"),
        "JPEG, one scan for each component": stored("non-interleaved.jpg"),
        "PNG": encoded(scene(), "PNG"),
        "PNG, alpha": encoded(alpha, "PNG"),
        "PNG, grey": encoded(grey, "PNG"),
        "PNG, grey and alpha": encoded(alpha.convert("LA"), "PNG"),
        "PNG, one bit": encoded(scene().convert("1"), "PNG"),
        "PNG, palette": encoded(palette, "PNG"),
        "PNG, palette, transparent": encoded(palette, "PNG", transparency=3),
        "PNG, transparent colour": encoded(scene(), "PNG", transparency=(255, 20, 20)),
        "PNG, 16 bit": png16(),
        "PNG, grey, 16 bit": encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
        "PNG, interlaced": interlaced_png(),
        "PNG, animated": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "WebP": encoded(scene(), "WEBP"),
        "WebP, lossless": encoded(scene(), "WEBP", lossless=True),
        "WebP, alpha": encoded(alpha, "WEBP"),
        "WebP, lossless, alpha": encoded(alpha, "WEBP", lossless=True),
        "WebP, animated": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        **{f"JPEG, orientation {turn}": rotated(turn) for turn in range(10)},
        **{f"JPEG, orientation {turn}, big-endian": rotated(turn, ">") for turn in range(1, 9)},
        **{f"PNG, orientation {turn}": encoded(scene(), "PNG", exif=EXIF + tiff(turn)) for turn in range(1, 9)},
        **{f"WebP, orientation {turn}": exif_webp(turn) for turn in range(1, 9)},
        **_other_photos(),
        **{f"1x1 {kind}": encoded(Image.new("RGB", (1, 1), (10, 200, 30)), kind) for kind in ("JPEG", "PNG", "WEBP")},
    }
