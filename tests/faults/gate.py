"""A TCP proxy in front of a server that can refuse connections, or let nothing through."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from enum import Enum

from tests.support.listening import Listener, close, connect_upstream


class State(Enum):
    """How the gate treats connections."""

    OPEN = "open"
    REFUSED = "refused"  # like a server that is down: connections are closed, and new ones refused
    UNRESPONSIVE = "unresponsive"  # like a network that drops everything: connected, without any response


class Gate(Listener):
    """Listens on loopback and forwards to `port`; `upstream` may be changed for later connections.

    Once a client has sent `mute_at`, no reply is forwarded any more, and `is_mute` is set.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self.upstream = port
        self.mute_at = b""
        self.is_mute = threading.Event()
        self._state = State.OPEN
        self._responsive = threading.Event()
        self._responsive.set()
        self._sockets: list[socket.socket] = []

    def set(self, state: State) -> None:
        """Change the state, also for existing connections."""
        self._state = state
        if state is State.UNRESPONSIVE:
            self._responsive.clear()
        else:
            self._responsive.set()
        if state is State.REFUSED:
            self.break_off()

    def break_off(self) -> None:
        """Close every connection."""
        for end in self._sockets:
            close(end)
        self._sockets.clear()

    def _take(self, client: socket.socket) -> None:
        if self._state is State.REFUSED:
            client.close()
            return
        server = connect_upstream(client, self.upstream)
        if server is None:
            return
        self._sockets += [client, server]
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, target, source is client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        seen = b""
        with suppress(OSError):
            while data := source.recv(1 << 18):
                self._responsive.wait()
                if is_client and self.mute_at:
                    seen = seen[-len(self.mute_at) :] + data
                    if self.mute_at in seen:
                        self.is_mute.set()
                if is_client or not self.is_mute.is_set():
                    target.sendall(data)
        close(source)
        close(target)

    def _end(self) -> None:
        self.set(State.REFUSED)
