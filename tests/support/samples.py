"""Generated images of every format in the contract: small, and without symmetry."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 61, 43  # odd, and not a multiple of a codec's block size
EXIF = b"Exif\0\0"


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


def photos() -> dict[str, bytes]:
    """Return an image of every kind that must be decodable, by name."""
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
        **{f"1x1 {kind}": encoded(Image.new("RGB", (1, 1), (10, 200, 30)), kind) for kind in ("JPEG", "PNG", "WEBP")},
    }
