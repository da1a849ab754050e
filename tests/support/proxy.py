"""A proxy that can break a connection to PostgreSQL at any message, before or after the server has seen it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

from tests.support.listening import Listener, close, led_on

# ReadyForQuery: the server has done all that it was asked for (PostgreSQL protocol 3.0, message formats).
_READY = re.compile(rb"Z\x00\x00\x00\x05[ITE]\Z")
QUIET_SECONDS = 0.1


class Verdict(Enum):
    """What happens to a message of the client, and to its connection."""

    PASS = "pass"
    LOSE_REQUEST = "lose request"  # the server never sees it
    LOSE_REPLY = "lose reply"  # the server does it, the client never hears of it


class Proxy(Listener):
    """Listens on loopback and forwards to `port`. `judge` is asked about every message, counted from 1."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._upstream = port
        self.judge: Callable[[int], Verdict] = lambda _: Verdict.PASS
        self.messages = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def url(self, url: str) -> str:
        """Return `url` led through this proxy."""
        return re.sub(r":\d+/([^?]*)", rf":{self.port}/\1?sslmode=disable&gssencmode=disable", url, count=1)

    def watch(self, judge: Callable[[int], Verdict]) -> None:
        """Count from 1 again and ask `judge` from now on."""
        with self._lock:
            self.messages = 0
            self.judge = judge

    def _take(self, client: socket.socket) -> None:
        server = led_on(client, self._upstream)
        if server is None:
            return
        self._sockets += [client, server]
        link = _Link(client, server)
        threading.Thread(target=self._requests, args=(link,), daemon=True).start()
        threading.Thread(target=link.relay_replies, daemon=True).start()

    def _requests(self, link: _Link) -> None:
        with suppress(OSError):
            while data := link.client.recv(1 << 20):
                with self._lock:
                    self.messages += 1
                    verdict = self.judge(self.messages)
                if verdict is Verdict.LOSE_REQUEST:
                    break
                if verdict is Verdict.LOSE_REPLY:
                    link.mute = True
                link.server.sendall(data)
                if verdict is Verdict.LOSE_REPLY:
                    # A part of a pipeline has no end of its own: then the server is done when it says no more.
                    link.done.wait(QUIET_SECONDS)
                    break
        link.close()

    def _end(self) -> None:
        for end in self._sockets:
            close(end)


class _Link:
    """One connection through the proxy. While `mute`, the client hears nothing; `done` says that the server is."""

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
