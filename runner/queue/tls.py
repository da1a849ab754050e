"""TLS connections, with a limit on the handshake.

redis-py waits for a handshake as long as for a reply: 20 s if a server without TLS waits for more data.
"""

from __future__ import annotations

import socket
from typing import Any

from redis import ConnectionPool, SSLConnection
from redis import exceptions as redis_errors
from redis.sentinel import SentinelManagedSSLConnection

HANDSHAKE_SECONDS = 5.0


class _Connection(SSLConnection):
    def _wrap_socket_with_ssl(self, sock: socket.socket) -> Any:
        sock.settimeout(HANDSHAKE_SECONDS)
        try:
            wrapped = super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]  # of redis-py
        except TimeoutError:
            if self._speaks_plainly():
                raise redis_errors.ConnectionError("SSL: WRONG_VERSION_NUMBER (it answers without TLS)") from None
            raise
        wrapped.settimeout(self.socket_timeout)
        return wrapped

    def _speaks_plainly(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), HANDSHAKE_SECONDS) as plain:
                plain.sendall(b"PING\r\n")
                return plain.recv(1) in (b"+", b"-")
        except OSError:
            return False


class ManagedConnection(SentinelManagedSSLConnection, _Connection):
    """A connection to the server that the sentinels report."""


class Pool(ConnectionPool):
    """TLS connections to one server; `options` are those of redis-py."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "connection_class": _Connection})
