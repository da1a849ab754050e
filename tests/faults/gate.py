"""A gate in front of a server: open, shut (connections are refused and broken) or dark (nothing gets through)."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from enum import Enum

from tests.support.listening import Listener, close, connect_upstream


class State(Enum):
    """What the gate does with a connection."""

    OPEN = "open"
    SHUT = "shut"  # as a server that is down: broken off, and refused
    DARK = "dark"  # as a network that swallows everything: connected, and never answered


class Gate(Listener):
    """Listens on loopback and forwards to `port`, which may change; connections go where it then leads."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.upstream = port
        self._state = State.OPEN
        self._lit = threading.Event()
        self._lit.set()
        self._sockets: list[socket.socket] = []

    def set(self, state: State) -> None:
        """Change the state, also for what is connected."""
        self._state = state
        if state is State.DARK:
            self._lit.clear()
        else:
            self._lit.set()
        if state is State.SHUT:
            self.break_off()

    def break_off(self) -> None:
        """Break every connection."""
        for end in self._sockets:
            close(end)
        self._sockets.clear()

    def _take(self, client: socket.socket) -> None:
        if self._state is State.SHUT:
            client.close()
            return
        server = connect_upstream(client, self.upstream)
        if server is None:
            return
        self._sockets += [client, server]
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 18):
                self._lit.wait()
                target.sendall(data)
        close(source)
        close(target)

    def _end(self) -> None:
        self.set(State.SHUT)
