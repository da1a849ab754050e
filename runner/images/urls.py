"""From an `imageUrl` of a payload to the request for it.

The API does not encode file names (docs/reference/contract.md): spaces, tabs, `#`, `?`, `%` and non-Latin letters are
in the path as they are. A signed or already encoded URL looks the same, so an ambiguous one has two interpretations,
tried in turn: first with every such character as part of the file name, then as an ordinary URL.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import quote

from runner.errors import ForbiddenUrlError

# Compiled with the first URL, while the model loads.
_SHAPE = r"(?is)(?P<scheme>https?)://(?P<authority>[^/?#\\]+)(?P<rest>.*)"
_ESCAPE = r"%[0-9A-Fa-f]{2}"
# Control characters except the tab, which the API keeps in a file name's extension, and lone surrogates.
_UNSENDABLE = r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]"
_LARGEST_PORT = 65_535
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s%]+)(?::([0-9]{0,5}))?"
_HOST = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"
MOST_CHARACTERS = 8192
MOST_HOST_CHARACTERS = 253  # RFC 1035
# RFC 3986: characters allowed in a path and in a query.
_PATH = "/:@!$&'()*+,;=~"
_QUERY = _PATH + "?%"


class Target(NamedTuple):
    """Scheme, host, port, and the path with its query, encoded for a request line."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"


def server_of(url: str) -> str:
    """Return host:port of the server that `url` names. Raises `ForbiddenUrlError`."""
    target = readings(url)[-1]
    return f"{target.host}:{target.port}"


def readings(url: str) -> list[Target]:
    """Return the one or two interpretations of `url`, that of the API first. Raises `ForbiddenUrlError`."""
    url = url.lstrip(" ")
    if len(url) > MOST_CHARACTERS:
        raise ForbiddenUrlError(f"it is longer than {MOST_CHARACTERS} characters")
    if not url.isprintable() and re.search(_UNSENDABLE, url):
        raise ForbiddenUrlError("it contains a control character")
    shape = re.fullmatch(_SHAPE, url)
    if shape is None:
        raise ForbiddenUrlError("it is not an http:// or https:// URL with a host")
    scheme = shape["scheme"].lower()
    host, port = _authority(shape["authority"], scheme)
    rest = shape["rest"] if shape["rest"].startswith("/") else f"/{shape['rest']}"
    raw = _path(quote(rest, safe=_PATH))
    if not (re.search(_ESCAPE, rest) or "?" in rest or "#" in rest):
        return [Target(scheme, host, port, raw)]
    path, mark, query = rest.partition("#")[0].partition("?")
    encoded = _path(quote(path, safe=_PATH + "%")) + (mark and "?" + quote(query, safe=_QUERY))
    return [Target(scheme, host, port, raw), Target(scheme, host, port, encoded)]


def _authority(text: str, scheme: str) -> tuple[str, int]:
    if "@" in text:
        raise ForbiddenUrlError("it contains a user name or a password")
    shape = re.fullmatch(_AUTHORITY, text)
    if shape is None:
        raise ForbiddenUrlError("its host is malformed")
    port = int(shape[2]) if shape[2] else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= _LARGEST_PORT:
        raise ForbiddenUrlError("its port is not between 1 and 65535")
    return host_name(shape[1]), port


def host_name(text: str) -> str:
    """Return a host in the form in which it is resolved and compared: ASCII (IDNA), lower case, no trailing dot.

    An IPv6 address may be in brackets. Raises `ForbiddenUrlError`.
    """
    if ":" in text:
        try:
            return str(IPv6Address(text.removeprefix("[").removesuffix("]")))
        except ValueError:
            raise ForbiddenUrlError("its host is malformed") from None
    if len(text) > MOST_HOST_CHARACTERS:  # checked first: Python's encoder is slow on long names
        raise ForbiddenUrlError("its host is too long")
    try:
        host = text.encode("idna").decode("ascii").lower().rstrip(".")
    except UnicodeError:
        raise ForbiddenUrlError("its host is not a valid name") from None
    if not re.fullmatch(_HOST, host):  # the compatibility forms of some characters are "/", "@" or "?"
        raise ForbiddenUrlError("its host is not a valid name")
    return host


def _path(path: str) -> str:
    """Encode dot segments: an object may be called `..`, which a proxy must not resolve."""
    return re.sub(r"(?<=/)(\.{1,2})(?=/|$)", lambda dots: "%2E" * len(dots[1]), path)
