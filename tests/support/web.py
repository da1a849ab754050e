"""Web servers on loopback that misbehave as a test requires, and host names that resolve as a test requires."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from runner.images.fetch import Fetcher, FetchLimits
from tests.support.listening import Listener, close

Exchange = Callable[[socket.socket, str], None]
PICTURE = b"\xff\xd8 the picture \xff\xd9"
LIMIT = 100_000


def ok(body: bytes = PICTURE, *headers: str, status: str = "200 OK") -> bytes:
    """Return a valid response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Web(Listener):
    """Serves on `address` for the duration of a `with` block.

    `answers` maps a path to its response: bytes are sent, a callable receives the connection and the request. `keep`
    keeps connections open for further requests. Every request line and head is recorded.
    """

    def __init__(
        self,
        answers: Mapping[str, bytes | Exchange] | None = None,
        *,
        address: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        keep: bool = False,
        greet: Callable[[socket.socket], None] | None = None,
    ) -> None:
        super().__init__(address)
        self.answers = dict(answers or {})
        self.address = address
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.connections = 0
        self._tls = tls
        self._keep = keep
        self._greet = greet
        self._open: list[socket.socket] = []

    def url(self, path: str = "/", host: str = "") -> str:
        """Return the URL of `path` with the server's address or another host name."""
        name = host or (f"[{self.address}]" if ":" in self.address else self.address)
        return f"{'https' if self._tls else 'http'}://{name}:{self.port}{path}"

    def _take(self, client: socket.socket) -> None:
        self.connections += 1
        self._open.append(client)
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _end(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError):
            if self._greet is not None:
                self._greet(connection)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            while request := _head(connection):
                self._answer(connection, request)
                if not self._keep:
                    break
        close(connection)

    def _answer(self, connection: socket.socket, request: str) -> None:
        line = request.partition("\r\n")[0]
        self.requests.append(line)
        self.heads.append(request)
        target = line.split(" ")[1] if line.count(" ") == 2 else ""
        answer = self.answers.get(target, self.answers.get("*", ok(b"nothing here", status="404 Not Found")))
        if isinstance(answer, bytes):
            connection.sendall(answer)
        else:
            answer(connection, request)


def _head(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece:
            return ""
        data += piece
    return data.decode("latin-1")


def drip(data: bytes, pause: float, *, first: bytes = b"") -> Exchange:
    """Send `first`, then `data` byte by byte with pauses, repeatedly, until the client disconnects."""

    def exchange(connection: socket.socket, _request: str) -> None:
        connection.sendall(first)
        while True:
            for position in range(len(data)):
                connection.sendall(data[position : position + 1])
                time.sleep(pause)

    return exchange


def flood(data: bytes, *, first: bytes = b"") -> Exchange:
    """Send `first`, then `data` repeatedly, until the client disconnects."""

    def exchange(connection: socket.socket, _request: str) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(data)

    return exchange


def hang(first: bytes = b"", seconds: float = 20.0) -> Exchange:
    """Send `first`, then nothing for `seconds`, without closing the connection."""

    def exchange(connection: socket.socket, _request: str) -> None:
        connection.sendall(first)
        time.sleep(seconds)

    return exchange


def reset(first: bytes = b"") -> Exchange:
    """Send `first`, then reset the connection, as a crashed server does."""

    def exchange(connection: socket.socket, _request: str) -> None:
        connection.sendall(first)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()

    return exchange


def tunnel(connection: socket.socket, request: str) -> None:
    """Act as an HTTP proxy: connect to the target and forward bytes both ways."""
    host, _, port = request.split(" ")[1].rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port))) as upstream:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=_carry, args=(upstream, connection), daemon=True)
        back.start()
        _carry(connection, upstream)
        back.join(5)


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def names(
    monkeypatch: pytest.MonkeyPatch, table: Mapping[str, Sequence[str] | Callable[[], Sequence[str]]]
) -> Iterator[list[str]]:
    """Make the names of `table` resolve to its addresses; yield the list of names looked up, in order.

    Only names use the table; the system still parses addresses, in any notation.
    """
    real = socket.getaddrinfo
    requested: list[str] = []

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not re.search("[a-z]", str(host)) or str(host).startswith("0x") or ":" in str(host):
            return real(host, port, *args, **kwargs)
        requested.append(host)
        addresses = table.get(host)
        if addresses is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = addresses() if callable(addresses) else addresses
        return [entry for address in found for entry in real(address, port, *args, **kwargs)]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield requested


def fetcher(
    *,
    connect: float = 1.0,
    first_byte: float = 1.0,
    total: float = 3.0,
    most: int = LIMIT,
    private: bool = True,
    hosts: tuple[str, ...] = (),
    ports: tuple[tuple[int, int], ...] = ((1, 65_535),),
    proxy: str = "",
    authorities: Path | None = None,
) -> Fetcher:
    """Return a fetcher with limits short enough for a test, for every port. `closed_fetchers` closes it."""
    made = Fetcher(
        FetchLimits(connect, first_byte, total, most),
        allow_private=private,
        allowed_hosts=hosts,
        allowed_ports=ports,
        proxy_url=proxy,
        authorities=authorities,
    )
    _made.append(made)
    return made


_made: list[Fetcher] = []


@pytest.fixture(autouse=True)
def closed_fetchers() -> Iterator[None]:
    """Close the fetchers that `fetcher` returned, in every module that imports this fixture."""
    yield
    while _made:
        _made.pop().close()
