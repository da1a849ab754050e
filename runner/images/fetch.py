"""Fetching an image over HTTP, guarded: which address, how many bytes, how long.

http.client is used directly, with connections of our own (40 lines). The libraries above it resolve the name
themselves when they connect, after any check that could be made, so the address that was checked would not be the
one connected to; and they take 60 (urllib3) to 190 ms (requests) to import, against 25 ms.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urljoin, urlsplit

from runner.errors import (
    FetchError,
    FetchTimeoutError,
    ForbiddenUrlError,
    ImageMissingError,
    ImageTooManyBytesError,
    JobError,
    SettingsError,
)
from runner.images import guard, urls

if TYPE_CHECKING:
    import ssl

    from runner.images.urls import Target
    from runner.settings import Settings

MOST_REDIRECTS = 3
CHUNK = 65_536
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 421, 423, 425, 429}  # and every 5xx
_OK = 200


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Seconds for connecting, for the first byte and every pause after it, and for everything; bytes of a body."""

    connect_seconds: float
    first_byte_seconds: float
    total_seconds: float
    max_bytes: int


class Fetcher:
    """Fetches images from any number of threads; each thread keeps its last connection to a server open."""

    def __init__(
        self, limits: FetchLimits, *, allow_private: bool, allowed_hosts: tuple[str, ...] = (), proxy_url: str = ""
    ) -> None:
        self._limits = limits
        self._allow_private = allow_private
        self._allowed_hosts = {host.lower() for host in allowed_hosts}
        self._proxy = _proxy(proxy_url) if proxy_url else None
        self._local = threading.local()
        self._tls: ssl.SSLContext | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return a fetcher with the limits and permissions of `settings`."""
        limits = FetchLimits(
            settings.fetch_connect_seconds,
            settings.fetch_first_byte_seconds,
            settings.fetch_seconds,
            settings.max_image_bytes,
        )
        return cls(
            limits,
            allow_private=settings.allow_private_urls,
            allowed_hosts=settings.allowed_hosts,
            proxy_url=settings.proxy_url,
        )

    def fetch(self, url: str) -> bytes:
        """Return the bytes that `url` leads to.

        Raises `ForbiddenUrlError`, `ImageMissingError` and `ImageTooManyBytesError`, which no retry heals, and
        `FetchError` or `FetchTimeoutError`, which one may. Messages name the host alone.
        """
        deadline = time.monotonic() + self._limits.total_seconds
        *first, last = urls.readings(url)
        for target in first:
            with suppress(ImageMissingError):
                return self._follow(target, deadline)
        return self._follow(last, deadline)

    def close(self) -> None:
        """Close this thread's connections."""
        self._drop()

    def _follow(self, target: Target, deadline: float) -> bytes:
        for _ in range(MOST_REDIRECTS + 1):
            found = self._request(target, deadline)
            if isinstance(found, bytes):
                return found
            target = self._redirected(target, found)
        raise ForbiddenUrlError(f"{target.host} redirects more than {MOST_REDIRECTS} times")

    def _redirected(self, target: Target, location: str) -> Target:
        base = f"{target.scheme}://{target.host_header}{target.path}"
        following = urls.readings(urljoin(base, location))[-1]
        if target.scheme == "https" and following.scheme == "http":
            raise ForbiddenUrlError(f"{target.host} redirects from https to http")
        return following

    def _request(self, target: Target, deadline: float) -> bytes | str:
        """Return the body of a success, or where a redirect leads."""
        reused = self._kept(target)
        try:
            return self._exchange(reused or self._connect(target, deadline), target, deadline)
        except _StaleError:
            if reused is None:
                raise FetchError(f"{target.host} closed the connection without an answer") from None
        return self._exchange(self._connect(target, deadline), target, deadline)

    def _exchange(self, connection: _Connection, target: Target, deadline: float) -> bytes | str:
        with self._errors(target.host), connection.until(deadline):
            try:
                connection.limit(self._limits.first_byte_seconds)
                connection.request("GET", connection.request_target(target), headers=self._headers(target))
                answer = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                self._drop()
                if connection.timed_out:
                    raise
                raise _StaleError from error
            if answer.status in _REDIRECTS and answer.headers.get("Location"):
                self._drop()
                return str(answer.headers["Location"])
            _check_status(answer.status, target.host)
            body = self._body(answer, target.host)
        if answer.will_close:
            self._drop()
        return body

    def _headers(self, target: Target) -> dict[str, str]:
        headers = {
            "Host": target.host_header,
            "User-Agent": "spottmee-worker",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }
        if self._proxy is not None and target.scheme == "http":
            headers |= self._proxy.headers
        return headers

    def _body(self, answer: http.client.HTTPResponse, host: str) -> bytes:
        """Read the body, bounded before and after its content encoding."""
        limit = self._limits.max_bytes
        if (answer.length or 0) > limit:
            raise ImageTooManyBytesError(f"{host} announces {answer.length}, {limit} allowed")
        expand = _expander(answer.headers.get("Content-Encoding", ""), host)
        parts: list[bytes] = []
        size = 0
        while chunk := answer.read(CHUNK):
            chunk = expand(chunk, limit - size + 1)
            size += len(chunk)
            if size > limit:
                raise ImageTooManyBytesError(f"{host} sends more than the {limit} allowed")
            parts.append(chunk)
        if answer.length:
            raise FetchError(f"{host} closed the connection {answer.length} bytes too early")
        return b"".join(parts)

    # Connections

    def _kept(self, target: Target) -> _Connection | None:
        kept: _Connection | None = getattr(self._local, "connection", None)
        if kept is not None and kept.serves(target):
            return kept
        self._drop()
        return None

    def _drop(self) -> None:
        kept: _Connection | None = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None

    def _connect(self, target: Target, deadline: float) -> _Connection:
        allowed = self._allow_private or target.host in self._allowed_hosts
        with self._errors(target.host):
            addresses = guard.resolve(target.host, target.port, allow_private=allowed)
        for index, address in enumerate(addresses):
            connection = _Connection(target, address, self._proxy, self._context(target))
            try:
                with self._errors(target.host), connection.until(deadline):
                    connection.limit(self._limits.connect_seconds)
                    connection.connect()
            except FetchError:
                connection.close()
                if index == len(addresses) - 1 or time.monotonic() >= deadline:
                    raise
            else:
                self._local.connection = connection
                return connection
        raise FetchError(f"{target.host} has no address")

    def _context(self, target: Target) -> ssl.SSLContext | None:
        if target.scheme != "https":
            return None
        if self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls

    @contextmanager
    def _errors(self, host: str) -> Iterator[None]:
        """Turn what the network does into our errors, and close the connection whose state is unknown."""
        try:
            yield
        except (JobError, _StaleError):
            self._drop()
            raise
        except TimeoutError:
            self._drop()
            raise FetchTimeoutError(host) from None
        except (OSError, http.client.HTTPException, zlib.error) as error:
            self._drop()
            raise FetchError(f"{host}: {_reason(error)}") from None


class _StaleError(Exception):
    """A connection that was kept open had been closed by the server."""


@dataclass(frozen=True, slots=True)
class _Proxy:
    host: str
    port: int
    headers: dict[str, str]


class _Connection(http.client.HTTPConnection):
    """A connection to one checked address, under the name that it was found by."""

    def __init__(self, target: Target, address: str, proxy: _Proxy | None, context: ssl.SSLContext | None) -> None:
        host, port = (proxy.host, proxy.port) if proxy else (address, target.port)
        super().__init__(host, port)
        self.timed_out = False
        self._served = (target.scheme, target.host, target.port)
        self._address = f"[{address}]" if ":" in address else address
        self._proxy = proxy
        self._tls = context
        if proxy and context:
            self.set_tunnel(address, target.port, proxy.headers)

    def serves(self, target: Target) -> bool:
        """Return whether a request for `target` may go over this connection."""
        return self.sock is not None and self._served == (target.scheme, target.host, target.port)

    def request_target(self, target: Target) -> str:
        """Return what the request line names: to a proxy without a tunnel, the checked address."""
        if self._proxy and not self._tls:
            return f"http://{self._address}:{target.port}{target.path}"
        return target.path

    def connect(self) -> None:
        """Connect, through the proxy where there is one, and greet by TLS under the name of the URL."""
        super().connect()
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._served[1])

    def limit(self, seconds: float) -> None:
        """Wait at most this long for each step from now on."""
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Cut the connection at `deadline`, whatever is waited for: a byte now and then restarts every time-out."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        timer = threading.Timer(remaining, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException):
            if self.timed_out:
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()

    def _cut(self) -> None:
        self.timed_out = True
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def _check_status(status: int, host: str) -> None:
    if status == _OK:
        return
    if status in _PASSING or status >= 500:  # noqa: PLR2004 - the server's own errors
        raise FetchError(f"{host} answers {status}")
    raise ImageMissingError(f"{host} answers {status}")


def _expander(encoding: str, host: str) -> Callable[[bytes, int], bytes]:
    """Return what undoes a content encoding that was sent although none was asked for, bounded in its output."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda chunk, _most: chunk
    if name not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(f"{host} sends the content encoding {name[:20]!r}, which was not asked for")
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its header
    return lambda chunk, most: decoder.decompress(decoder.unconsumed_tail + chunk, max(1, most))


def _proxy(url: str) -> _Proxy:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise SettingsError("RUNNER_PROXY_URL must be http://host:port, with a user and password where needed")
    headers = {}
    if parts.username:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
    return _Proxy(parts.hostname, parts.port or 80, headers)


def _reason(error: Exception) -> str:
    """Return what went wrong, without anything that the server has sent."""
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed too early"
    if isinstance(error, http.client.HTTPException):
        return f"no proper HTTP ({type(error).__name__})"
    if isinstance(error, zlib.error):
        return "its content encoding is damaged"
    return getattr(error, "strerror", None) or type(error).__name__
