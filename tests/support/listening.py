"""The common base of test servers that listen on a socket."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Listener:
    """Listens for the duration of a `with` block, and passes each connection to `_take`; `_end` closes what is left."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def _take(self, client: socket.socket) -> None:
        """Handle a connection without blocking: the next one is accepted only after this returns."""
        raise NotImplementedError

    def _end(self) -> None:
        """Close the remaining connections."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._take(client)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close(self._listener)
        self._end()


def connect_upstream(client: socket.socket, port: int) -> socket.socket | None:
    """Return a connection to `port` on loopback; if nothing listens there, close the client's and return None."""
    try:
        return socket.create_connection(("127.0.0.1", port))
    except OSError:
        close(client)
        return None


def close(end: socket.socket) -> None:
    """Shut the socket down, which wakes threads blocked on it, and close it."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
