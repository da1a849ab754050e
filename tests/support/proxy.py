"""A proxy that can break a connection to PostgreSQL at any step, before or after the server receives it.

A step is what the client sends up to the end of a statement (Query or Execute), or up to a Sync or Flush: the same
steps however the bytes are divided into packets.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum

from tests.support.listening import Listener, close, connect_upstream

# ReadyForQuery: the server has completed all requests (PostgreSQL protocol 3.0, message formats).
_READY = re.compile(rb"Z\x00\x00\x00\x05[ITE]\Z")
QUIET_SECONDS = 0.1
# The types of messages that end a step: Query, Execute, Sync, Flush, password, Terminate.
_LAST = frozenset(b"QESHpX")


class Verdict(Enum):
    """How the proxy treats a step of the client, and its connection."""

    PASS = "pass"
    LOSE_REQUEST = "lose request"  # the server never sees it
    LOSE_REPLY = "lose reply"  # the server executes it, but the client never receives the reply


class Proxy(Listener):
    """Listens on loopback and forwards to `port`. `judge` decides about each step, numbered from 1."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._upstream = port
        self.judge: Callable[[int], Verdict] = lambda _: Verdict.PASS
        self.steps = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def url(self, url: str) -> str:
        """Return `url` with this proxy in place of the server."""
        return re.sub(r":\d+/([^?]*)", rf":{self.port}/\1?sslmode=disable&gssencmode=disable", url, count=1)

    def watch(self, judge: Callable[[int], Verdict]) -> None:
        """Number the steps from 1 again, and use `judge` from now on."""
        with self._lock:
            self.steps = 0
            self.judge = judge

    def _take(self, client: socket.socket) -> None:
        server = connect_upstream(client, self._upstream)
        if server is None:
            return
        self._sockets += [client, server]
        link = _Link(client, server)
        threading.Thread(target=self._requests, args=(link,), daemon=True).start()
        threading.Thread(target=link.relay_replies, daemon=True).start()

    def _requests(self, link: _Link) -> None:
        with suppress(OSError):
            for data in _steps(link.client):
                with self._lock:
                    self.steps += 1
                    verdict = self.judge(self.steps)
                if verdict is Verdict.LOSE_REQUEST:
                    break
                if verdict is Verdict.LOSE_REPLY:
                    link.mute = True
                link.server.sendall(data)
                if verdict is Verdict.LOSE_REPLY:
                    # Inside a pipeline there is no ReadyForQuery: the server is done when it has been silent.
                    link.done.wait(QUIET_SECONDS)
                    break
        link.close()

    def _end(self) -> None:
        for end in self._sockets:
            close(end)


def _steps(client: socket.socket) -> Iterator[bytes]:
    """Yield what the client sends, one step after the other."""
    (buffer, end, first) = (b"", 0, True)
    while data := client.recv(1 << 20):
        buffer += data
        while True:
            head = 0 if first else 1  # only the startup message has no type
            length = end + head + int.from_bytes(buffer[end + head : end + head + 4])
            if len(buffer) < end + head + 4 or len(buffer) < length:
                break
            last = first or buffer[end] in _LAST
            (end, first) = (length, False)
            if last:
                yield buffer[:end]
                (buffer, end) = (buffer[end:], 0)


class _Link:
    """One connection through the proxy. While `mute`, no reply reaches the client; `done` is set at ReadyForQuery."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.mute = False
        self.done = threading.Event()

    def relay_replies(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(1 << 20):
                if not self.mute:
                    self.client.sendall(data)
                elif _READY.search(data):
                    self.done.set()
        self.close()

    def close(self) -> None:
        close(self.server)
        close(self.client)
