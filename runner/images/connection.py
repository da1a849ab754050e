"""A connection to one checked address, under the name that it was found by, through a proxy where a setting says so."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from runner.errors import FetchError, SettingsError

if TYPE_CHECKING:
    import ssl

    from runner.images.urls import Target

_OK = 200


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and the headers that it wants (with a password in them)."""

    host: str
    port: int
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def from_url(cls, url: str) -> Proxy:
        """Read RUNNER_PROXY_URL. Raises `SettingsError`, without the URL: it may hold a password."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if not host or parts.scheme != "http":
            raise SettingsError("RUNNER_PROXY_URL must be http://host:port, with a user and password where needed")
        headers = {}
        if parts.username:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        return cls(host, port, headers)


class Connection(http.client.HTTPConnection):
    """Connects to `address` alone: neither a name is looked up again nor a lost connection opened anew."""

    auto_open = 0

    def __init__(
        self,
        target: Target,
        address: str,
        *,
        context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        proxy_address: str = "",
    ) -> None:
        super().__init__(address, target.port)
        self._served = (target.scheme, target.host, target.port)
        self._name = target.host
        self._address = address
        self._authority = f"[{address}]:{target.port}" if ":" in address else f"{address}:{target.port}"
        self._tls = context
        self._proxy = proxy
        self._peer = (proxy_address, proxy.port) if proxy else (address, target.port)
        self._timed_out = False
        # http.client forgets the socket when an answer will end with the connection, and reads on from it.
        self._connected: socket.socket | None = None

    def serves(self, target: Target) -> bool:
        """Return whether a request for `target` may go over this connection.

        A server that has closed it, or has said more than it was asked for, makes it unusable.
        """
        if self.sock is None or self._served != (target.scheme, target.host, target.port):
            return False
        pending = getattr(self.sock, "pending", None)  # TLS keeps what it has decrypted
        if pending is not None and pending():
            return False
        poll = select.poll()  # select itself takes no file descriptor above 1023
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def connect(self) -> None:
        """Connect, open the tunnel where there is a proxy, and greet by TLS under the name of the URL."""
        self.sock = socket.socket(socket.AF_INET6 if ":" in self._peer[0] else socket.AF_INET, socket.SOCK_STREAM)
        self._connected = self.sock
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._peer)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._proxy:
            # Also for http: a proxy that is asked for the address itself has to put it in place of the Host header.
            self._open_tunnel(self._proxy)
        if self._tls is None:
            return
        # The greeting comes after the assignment: `until` must find the socket that is waited for.
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name, do_handshake_on_connect=False)
        self._connected = self.sock
        self.sock.do_handshake()

    def _open_tunnel(self, proxy: Proxy) -> None:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        answer = http.client.HTTPResponse(self.sock, method="CONNECT")
        try:
            answer.begin()
        finally:
            answer.close()
        if answer.status != _OK:
            raise FetchError(f"the proxy answers {answer.status} to a tunnel to {self._name} ({self._address})")

    def limit(self, seconds: float) -> None:
        """Wait at most this long for each step from now on."""
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Cut the connection at `deadline` (of `time.monotonic`): a byte now and then restarts every other limit.

        Whatever that breaks in the block is raised as `TimeoutError`.
        """
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        timer = threading.Timer(remaining, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception:
            if self._timed_out:
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
        if self._timed_out:  # a body without a length seems complete when it is cut
            raise TimeoutError

    def _cut(self) -> None:
        self._timed_out = True
        if self._connected is not None:
            with suppress(OSError):  # the plain method: a TLS socket's own one takes its state from under the reader
                socket.socket.shutdown(self._connected, socket.SHUT_RDWR)
