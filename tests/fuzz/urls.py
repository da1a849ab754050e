"""URLs made of parts that have fooled other parsers."""

from __future__ import annotations

from functools import cache
from random import Random

_SCHEMES = (
    "http",
    "https",
    "HTTP",
    "hTtPs",
    "file",
    "ftp",
    "gopher",
    "data",
    "javascript",
    "",
    "http ",
    "\u017fttp",
    "https:http",
)
_SEPARATORS = ("://", "://", "://", "://", ":/", ":", ":///", ":\\\\", "//", "", ":/\\", ":\t//")
_USERS = ("", "", "", "", "", "user@", "user:SECRET@", "@", "a@b@", "%40", "user%40", ":@", "\uff20")
_HOSTS = (
    "storage.googleapis.com", "localhost", "127.0.0.1", "127.1", "2130706433",
    "0177.0.0.1", "0x7f.1", "0x7f000001", "0", "[::1]",
    "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25eth0]", "[::127.0.0.1]",
    "169.254.169.254", "[fd00:ec2::254]", "100.100.100.200",
    "10.0.0.1", "8.8.8.8", "[2606:4700:4700::1111]", "0300.0250.1.1",
    "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021",
    "b\xfccher.example", "a\u2100b.example", "xn--bcher-kva.example",
    "a..b", ".", "-", "a_b", "*", "a" * 64, "\u0131localhost", "\xad127.0.0.1", "127.0.0.1\u200b", "%31%32%37.0.0.1",
    "[", "]", "[]", "[::1", "::1", "[0:0:0:0:0:0:0:1]", "[::1]x", "134744072", "255.255.255.255", "224.0.0.1",
)  # fmt: skip
_PORTS = (
    "",
    "",
    "",
    "",
    ":80",
    ":443",
    ":0",
    ":65535",
    ":65536",
    ":",
    ":-1",
    ":x",
    ":\u0668\u0660",
    ":80:80",
    ":00080",
)
_PATHS = (
    "", "/", "/a.jpg", "/a b.jpg", "/a#b", "/a?b",
    "/100%.jpg", "/%2e%2e/x", "/../../x", "/..", "/./a", "//x//y", "/\u0444\u043e.jpg",
    "/\U0001f389", "\\@127.0.0.1/", "/\r\nHost: x", "/\0", "/\ud800",
    "/%00", "/%zz", "/a?X-Goog-Signature=SECRET&e=%2F", "?x", "#x",
    "/" + "x" * 9000, "/e\u0301", "/;p=1", "/a\tb", "/\x7f", "/\x85", "/\u2028",
)  # fmt: skip
_LETTERS = "az09./:@#?%[]\\ \t\r\n\0\x7f\xad\u3002\uff0e\uff20\u2100\u202e\ud800-_~;,=&+$!*'(){}|<>\"^`"


@cache
def corpus() -> list[bytes]:
    """Return URLs as the API sends them."""
    return [
        b"https://storage.googleapis.com/bucket/albums/a/b c#1?.jpg",
        b"http://user:SECRET@127.0.0.1:80/a?b#c",
        "http://[::ffff:127.0.0.1]:8080/\u0444%2e".encode(),
    ]


def generate(random: Random) -> bytes:
    """Return a URL that may be anything from valid to empty, in UTF-8 with lone surrogates passed."""
    parts = (_SCHEMES, _SEPARATORS, _USERS, _HOSTS, _PORTS, _PATHS)
    usual = ("https", "://", "", random.choice(_HOSTS), "", "/albums/a.jpg")
    share = random.choice((0.1, 0.2, 0.6))
    chosen = (
        random.choice(part) if random.random() < share else right for part, right in zip(parts, usual, strict=True)
    )
    data = "".join(chosen).encode("utf-8", "surrogatepass")
    return mutate(random, data) if random.random() < 0.3 else data


def mutate(random: Random, data: bytes) -> bytes:
    """Return `data` with a few characters inserted, deleted or exchanged."""
    text = list(data.decode("utf-8", "surrogateescape"))
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randint(0, min(len(text), 60))
        text[at : at + random.choice((0, 1, 1, 3))] = random.choice(_LETTERS) * random.choice((0, 1, 1, 2))
    return "".join(text).encode("utf-8", "surrogatepass")
