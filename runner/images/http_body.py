"""The body of an HTTP response, bounded in bytes.

http.client accepts a chunk of length `-1` and then reads until the connection ends, whatever the requested amount, so
chunked bodies are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.client import HTTPResponse
from io import BufferedReader

from runner.errors import FetchError, ImageTooManyBytesError

PIECE = 65_536
_MOST_LINE = 4096
_MOST_TRAILERS = 100
_CHUNK_SIZE = rb"([0-9A-Fa-f]{1,15})[ \t]*(;[^\n]*)?\r?\n"  # RFC 9112, section 7.1


def read(response: HTTPResponse, host: str, limit: int) -> bytes:
    """Return the body of `response`, at most `limit` bytes.

    Raises `ImageTooManyBytesError`, `FetchError` for a body that is cut off or malformed, and the errors of sockets.
    """
    if (response.length or 0) > limit:
        raise ImageTooManyBytesError(f"{host} announces {response.length} bytes, {limit} allowed")
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):  # the request accepts only identity
        raise FetchError(f"{host} responds with a content encoding that was not requested")
    parts: list[bytes] = []
    received = 0
    for piece in _pieces(response, host):
        received += len(piece)
        if received > limit:
            raise ImageTooManyBytesError(f"{host} sends more than the {limit} bytes allowed")
        parts.append(piece)
    return b"".join(parts)


def _pieces(response: HTTPResponse, host: str) -> Iterator[bytes]:
    if response.chunked:
        yield from _chunks(response.fp, host)
        return
    while piece := response.read(PIECE):
        yield piece
    if response.length:
        raise FetchError(f"{host} closed the connection {response.length} bytes too early")


def _chunks(stream: BufferedReader, host: str) -> Iterator[bytes]:
    while True:
        shape = re.fullmatch(_CHUNK_SIZE, stream.readline(_MOST_LINE))
        if shape is None:
            raise FetchError(f"{host} sends a malformed chunked encoding")
        left = int(shape[1], 16)
        if left == 0:
            break
        while left:
            piece = stream.read(min(left, PIECE))
            if not piece:
                raise FetchError(f"{host} closed the connection within a chunk")
            left -= len(piece)
            yield piece
        if stream.readline(2) not in (b"\r\n", b"\n"):
            raise FetchError(f"{host} sends a chunk longer than it announced")
    for _ in range(_MOST_TRAILERS):
        line = stream.readline(_MOST_LINE)
        if line in (b"\r\n", b"\n"):
            return
        if not line.endswith(b"\n"):
            break
    raise FetchError(f"{host} does not end its chunked encoding")
