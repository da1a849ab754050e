"""A connection to one checked address, with the host name that resolved to it, optionally through a proxy."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from runner.errors import FetchError, SettingsError
from runner.images.urls import Target

if TYPE_CHECKING:  # `fetch` imports it for the first https URL: 10 ms
    import ssl

_OK = 200


class Proxy(NamedTuple):
    """An HTTP proxy, and the headers that it requires (they may contain a password)."""

    host: str
    port: int
    headers: dict[str, str]

    def __repr__(self) -> str:
        return f"Proxy({self.host!r}, {self.port})"

    @classmethod
    def from_url(cls, url: str) -> Proxy:
        """Parse RUNNER_FETCH_PROXY_URL. Raises `SettingsError`, without the URL: it may contain a password."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if not host or parts.scheme != "http":
            raise SettingsError("RUNNER_FETCH_PROXY_URL must be http://host:port, with a user and password if needed")
        headers = {}
        if parts.username:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        return cls(host, port, headers)


class Connection(http.client.HTTPConnection):
    """Connects only to `address`: it never resolves a name, and never reconnects."""

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
        # http.client drops its reference when a response ends with the connection, and reads on from the socket.
        self._connected: socket.socket | None = None

    def serves(self, target: Target) -> bool:
        """Return whether a request for `target` may go over this connection.

        It may not if the server has closed it, or has sent anything beyond its response.
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
        """Connect, open the tunnel if there is a proxy, and do the TLS handshake for the host name of the URL."""
        self.sock = socket.socket(socket.AF_INET6 if ":" in self._peer[0] else socket.AF_INET, socket.SOCK_STREAM)
        self._connected = self.sock
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._peer)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._proxy:
            # Also for http: given a URL with the address, a proxy would have to replace the Host header with it.
            self._open_tunnel(self._proxy)
        if self._tls is None:
            return
        # The handshake follows the assignment: `until` must find the socket that it waits for.
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name, do_handshake_on_connect=False)
        self._connected = self.sock
        self.sock.do_handshake()

    def _open_tunnel(self, proxy: Proxy) -> None:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        response = http.client.HTTPResponse(self.sock, method="CONNECT")
        try:
            response.begin()
        finally:
            response.close()
        if response.status != _OK:
            raise FetchError(f"the proxy responds {response.status} to CONNECT for {self._name} ({self._address})")

    def limit(self, seconds: float) -> None:
        """Set the time limit of each further operation, in seconds."""
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Shut the connection down at `deadline` (of `time.monotonic`): single bytes restart every other timeout.

        Any failure in the block that this causes is raised as `TimeoutError`.
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
        if self._timed_out:  # a body without a length seems complete when it is cut off
            raise TimeoutError

    def _cut(self) -> None:
        self._timed_out = True
        if self._connected is not None:
            with suppress(OSError):  # not a TLS socket's own method, which removes the state that the reader uses
                socket.socket.shutdown(self._connected, socket.SHUT_RDWR)
