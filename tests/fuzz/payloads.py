"""Payloads: the API's JSON with values, keys and text changed."""

from __future__ import annotations

import base64
import json
from functools import cache
from random import Random
from typing import Any

from tests.fuzz.bytes import scramble

# What must never be seen in an error or a repr: every value of a payload can be private.
SECRET = "U0VDUkVUIHNlbGZpZQ"  # "SECRET selfie" in base64
_WORDS = (
    "", " ", "photo-1", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "x" * 256, "x" * 257, "\0", "a\0b", "\ud800",
    "\udfff\ud800",
    "写真", "é", "\u202e", "NaN", "null", "0.5", "data:image/jpeg;base64," + SECRET, SECRET, SECRET + "==",
    "data:", "====", "=",
    "A", "AA", "AAA", "AAAA", "AAAA\n", "-_-_", "https://storage.example/a b#1?.jpg", "file:///etc/passwd",
)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, 10**400, -(10**400), 2**63, float("inf"), float("nan"))
_KEYS = ("id", "imageUrl", "jobId", "storedIds", "selfie", "threshold", "ID", "", "__proto__", "\ud800")
_TEXTS = (
    b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b"\xff", b"\xef\xbb\xbf", b"\0",
    b"\xed\xa0\x80",
    b'"\\ud800"', b"\\u0000", b"//", b"'", b",", b"}", b"]", b"null", b"true", b"1E5", b"0x1", b"01", b"-", b".5",
)  # fmt: skip


@cache
def corpus() -> list[bytes]:
    """Return payloads as the API sends them."""
    documents: list[dict[str, Any]] = [
        {"id": "p1", "imageUrl": "https://storage.example/albums/a/b c#1?.jpg"},
        {"jobId": "j1", "storedIds": ["p1", "p2", "p1"], "selfie": SECRET + "==", "threshold": 0.5},
        {"jobId": "j1", "storedIds": [], "selfie": base64.b64encode(bytes(range(256))).decode(), "threshold": None},
        {"jobId": "j1", "storedIds": [f"photo-{n}" for n in range(50)], "selfie": SECRET},
    ]
    return [json.dumps(document).encode() for document in documents]


def generate(random: Random) -> bytes:
    """Return a payload that may be anything from right to nothing."""
    data = random.choice(corpus())
    if random.random() < 0.8:
        data = mutate(random, data)
    if random.random() < 0.3:
        at = random.randint(0, len(data))
        data = data[:at] + random.choice(_TEXTS) + data[at + random.choice((0, 0, 1, 5)) :]
    return scramble(random, data, corpus()) if random.random() < 0.3 else data


def mutate(random: Random, data: bytes) -> bytes:
    """Return `data` with values or keys exchanged, where it is JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(document, dict):
        return data
    for _ in range(random.choice((1, 1, 2, 3))):
        key = random.choice([*document, *_KEYS])
        match random.randrange(4):
            case 0:
                document.pop(key, None)
            case 1 if isinstance(document.get(key), list):
                document[key][random.randint(0, len(document[key])) :] = [_value(random) for _ in range(3)]
            case _:
                document[key] = _value(random)
    text = json.dumps(document, ensure_ascii=random.random() < 0.7)
    encoding = random.choices(("utf-8", "utf-16", "utf-16-be", "utf-32", "utf-8-sig"), (20, 1, 1, 1, 1))[0]
    return text.encode(encoding, "surrogatepass")


def _value(random: Random, depth: int = 0) -> Any:
    match random.randrange(8):
        case 0:
            return random.choice((None, True, False))
        case 1 | 2:
            return random.choice(_NUMBERS)
        case 3 if depth < 3:
            return [_value(random, depth + 1) for _ in range(random.choice((0, 1, 2, 30)))]
        case 4 if depth < 3:
            return {random.choice(_KEYS): _value(random, depth + 1)}
        case 5:
            return "".join(random.choice(_WORDS) for _ in range(random.choice((1, 2, 3))))
        case _:
            return random.choice(_WORDS)
