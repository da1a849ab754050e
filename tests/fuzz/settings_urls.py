"""URLs of settings with a password that is not encoded, or in the wrong place."""

from __future__ import annotations

from functools import cache
from random import Random

# Each part is a secret of its own. The digits are what a parser could take for a port.
CANARIES = ("S3cretPrefix", "S3cretSuffix", "49271")
SPECIAL = (
    *"/#?@:%[]\\ \"'&=+,;<>|{}^`~!$()*", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\u202e", "\u2028",
    "\u2100", "\uff20", "\udc80", "%zz", "%00", "%0a", "://", "//", "@@", "?a=", "#@", "/?", "&password=", "",
)  # fmt: skip
_REDIS = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_POSTGRES = ("postgres", "postgresql")
VARIABLES = {
    "REDIS_URL": _REDIS,
    "DATABASE_URL": _POSTGRES,
    "EMBEDDINGS_DATABASE_URL": _POSTGRES,
    "RUNNER_FETCH_PROXY_URL": ("http",),
}
# Where the password stands: {p}. Nothing listens on port 1.
_SHAPES = (
    "{s}://user:{p}@127.0.0.1:1/0", "{s}://:{p}@127.0.0.1:1/0", "{s}://{p}@127.0.0.1:1/0", "{s}://{p}:x@127.0.0.1:1/0",
    "{s}://user:{p}@127.0.0.1:1/main/0", "{s}://user:{p}@127.0.0.1:1,127.0.0.1:1/main", "{s}://user:{p}@[::1]:1/0",
    "{s}://127.0.0.1:{p}/0", "{s}://u:x@127.0.0.1:1{p}/0", "{s}://127.0.0.1:1/0?password={p}",
    "{s}://127.0.0.1:1/0?{p}=1", "{s}://127.0.0.1:1/0?{p}", "{s}://127.0.0.1:1/0#{p}", "{s}:{p}@127.0.0.1:1/0",
    "{s}:/{p}", "{s}:///{p}@x", "{s}://user:{p}", "{p}://127.0.0.1:1/0", "{p}", "{s}{p}://127.0.0.1",
    "{s}://user:x@127.0.0.1:1/0?sentinel_password={p}", "{s}://127.0.0.1:1/0?socket_timeout={p}",
    "{s}://127.0.0.1:1/0?ssl_ca_certs={p}", "{s}://127.0.0.1:1/0?connect_timeout={p}",
    "{s}://127.0.0.1:1/0?sslmode={p}", "{s}://127.0.0.1:1/0?schema={p}", "{s}://127.0.0.1:1/0?options={p}",
    "{s}://127.0.0.1:1/0?port={p}", "{s}://127.0.0.1:1/0?hostaddr={p}", "{s}://127.0.0.1:1/0?service={p}",
    "{s}://127.0.0.1:1/0?keepalives={p}", "{s}://127.0.0.1:1/0?protocol={p}", "{s}://127.0.0.1:1/0?db={p}",
    "{s}://127.0.0.1:1/{p}x/y",
)  # fmt: skip


@cache
def corpus() -> list[bytes]:
    """Return settings as `NAME=URL`, one for every special character."""
    return [
        f"{name}={schemes[0]}://user:{_password(special)}@127.0.0.1:1/0".encode("utf-8", "surrogateescape")
        for name, schemes in VARIABLES.items()
        for special in SPECIAL
    ]


def generate(random: Random) -> bytes:
    """Return `NAME=URL`, with a password in some place of it."""
    name = random.choice(list(VARIABLES))
    special = "".join(random.choice(SPECIAL) for _ in range(random.choice((1, 1, 1, 2, 3))))
    url = random.choice(_SHAPES).format(s=random.choice(VARIABLES[name]), p=_password(special, random.choice("PD")))
    return f"{name}={url}".encode("utf-8", "surrogateescape")


def mutate(random: Random, data: bytes) -> bytes:
    """Return another input, assembled from pieces, which finds more than single characters do."""
    return generate(random) if random.random() < 0.9 else data


def _password(special: str, kind: str = "P") -> str:
    prefix, suffix, digits = CANARIES
    return f"{prefix}{special}{suffix}" if kind == "P" else f"{digits}{special}{suffix}"
