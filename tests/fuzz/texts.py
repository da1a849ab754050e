"""Texts from outside, as in a log, a table or an error, with characters that control terminals or mislead readers."""

from __future__ import annotations

from functools import cache
from random import Random

_HARMLESS = ("photo-1", "a b", "IMG_0001.jpg", "Zoë", "写真", "🎉", "  outcome=succeeded", '"', "\\", "=", "%s", "{}")
_HOSTILE = (
    "\x1b[2J", "\x1b]0;x\x07", "\r", "\n", "\r\n", "\0", "\x08", "\x0b", "\x0c", "\x1c", "\x7f", "\x85", "\x9b31m",
    "\u2028", "\u2029", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069", "\u061c", "\u200b", "\ufeff",
    "\ud800", "\udfff", "\ud83d", "\udc80", "\U000e0041",
)  # fmt: skip


@cache
def corpus() -> list[bytes]:
    """Return each piece."""
    return [piece.encode("utf-8", "surrogatepass") for piece in (*_HARMLESS, *_HOSTILE)]


def generate(random: Random) -> bytes:
    """Return pieces, and characters of the whole of Unicode, in UTF-8 with lone surrogates passed."""
    pieces = random.choice((_HARMLESS, _HARMLESS + _HOSTILE))
    if pieces is _HARMLESS:
        return "".join(random.choices(pieces, k=4)).encode()
    parts = [
        random.choice(pieces) if random.random() < 0.8 else chr(random.randrange(0x110000))
        for _ in range(random.choice((1, 2, 5, 20)))
    ]
    return "".join(parts).encode("utf-8", "surrogatepass")


def mutate(random: Random, data: bytes) -> bytes:
    """Return `data` with more in the middle of it."""
    at = random.randint(0, len(data))
    return data[:at] + generate(random) + data[at:]
