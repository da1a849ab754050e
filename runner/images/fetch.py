"""Fetching an image over HTTP, with SSRF protection and limits on bytes and time.

http.client is used directly, with our own connections and bodies. Libraries on top of it resolve the name when they
connect, after any check, which allows DNS rebinding; and they take 60 (urllib3) to 190 ms (requests) to import, instead
of 25 ms.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote, urljoin

from runner.errors import (
    FetchError,
    FetchTimeoutError,
    ForbiddenUrlError,
    ImageMissingError,
    JobError,
    SettingsError,
)
from runner.images import http_body, ssrf, urls
from runner.images.connection import Connection, Proxy
from runner.images.urls import Target
from runner.output import repeated
from runner.settings import Settings

if TYPE_CHECKING:  # imported with the first https URL: 10 ms
    import ssl

MOST_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 421, 423, 425, 429}  # and every 5xx
_OK = 200
_WEB_PORTS = ((80, 80), (443, 443))
_HEADERS = {"User-Agent": "spottmee-worker", "Accept": "image/*", "Accept-Encoding": "identity"}
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


class FetchLimits(NamedTuple):
    """Seconds for connecting, for the first byte and every pause after it, and in total; bytes of a body."""

    connect_seconds: float
    first_byte_seconds: float
    total_seconds: float
    max_bytes: int


class Fetcher:
    """Fetches images in any number of threads; each thread keeps its last connection open."""

    def __init__(
        self,
        limits: FetchLimits,
        *,
        allow_private: bool,
        allowed_hosts: tuple[str, ...] = (),
        allowed_ports: tuple[tuple[int, int], ...] = (),
        proxy_url: str = "",
        authorities: Path | None = None,
    ) -> None:
        """Raise `SettingsError` if `authorities`, trusted in addition to the system's, is not a valid file."""
        self._limits = limits
        self._allow_private = allow_private
        self._allowed_hosts = {_allowed(host) for host in allowed_hosts}
        self._allowed_ports = (*_WEB_PORTS, *allowed_ports)
        self._proxy = Proxy.from_url(proxy_url) if proxy_url else None
        self._local = threading.local()
        self._tls = _tls_context(authorities) if authorities else None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return a fetcher with the limits and permissions of `settings`."""
        limits = FetchLimits(
            settings.fetch_connect_timeout_seconds,
            settings.fetch_read_timeout_seconds,
            settings.fetch_timeout_seconds,
            settings.max_image_bytes,
        )
        return cls(
            limits,
            allow_private=settings.allow_private_addresses,
            allowed_hosts=settings.allowed_private_hosts,
            allowed_ports=settings.allowed_ports,
            proxy_url=settings.fetch_proxy_url,
            authorities=settings.image_ca,
        )

    def fetch(self, url: str) -> bytes:
        """Return the bytes at `url`.

        Raises `ForbiddenUrlError`, `ImageMissingError` and `ImageTooManyBytesError`, which are permanent, and
        `FetchError` and `FetchTimeoutError`, which are transient. Messages name only the host.
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
        # http.client decodes headers as Latin-1, but most contain UTF-8: the original bytes are sent back.
        try:
            joined = urljoin(base, quote(location.encode("latin-1"), safe=_PRINTABLE))
        except ValueError:
            raise ForbiddenUrlError(f"{target.host} redirects to an invalid URL") from None
        try:
            following = urls.readings(joined)[-1]
        except ForbiddenUrlError as error:
            raise ForbiddenUrlError(f"{target.host} redirects to a URL that is refused: {error.detail}") from None
        if target.scheme == "https" and following.scheme == "http":
            raise ForbiddenUrlError(f"{target.host} redirects from https to http")
        return following

    def _request(self, target: Target, deadline: float) -> bytes | str:
        """Return the body of the image, or the location of a redirect."""
        self._check_port(target)
        reused = self._kept_open(target)
        try:
            return self._exchange(reused or self._connect(target, deadline), target, deadline)
        except _StaleError:
            if reused is None:
                raise FetchError(f"{target.host} closed the connection without a response") from None
        try:
            return self._exchange(self._connect(target, deadline), target, deadline)
        except _StaleError:
            raise FetchError(f"{target.host} closed the connection without a response") from None

    def _exchange(self, connection: Connection, target: Target, deadline: float) -> bytes | str:
        with self._errors(target.host), connection.until(deadline):
            connection.limit(self._limits.first_byte_seconds)
            try:
                connection.request("GET", target.path, headers={"Host": target.host_header} | _HEADERS)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                raise _StaleError from error
            with closing(response):
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    self._drop()
                    return str(location)
                _check_status(response, target.host)
                data = http_body.read(response, target.host, self._limits.max_bytes)
        if response.will_close:
            self._drop()
        return data

    def _check_port(self, target: Target) -> None:
        if self._allow_private or any(low <= target.port <= high for low, high in self._allowed_ports):
            return
        raise ForbiddenUrlError(
            f"{target.host} at port {target.port}: image servers may use 80, 443 and RUNNER_ALLOWED_PORTS"
        )

    # Connections

    def _kept_open(self, target: Target) -> Connection | None:
        kept: Connection | None = getattr(self._local, "connection", None)
        if kept is not None and kept.serves(target):
            return kept
        self._drop()
        return None

    def _drop(self) -> None:
        kept: Connection | None = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None

    def _connect(self, target: Target, deadline: float) -> Connection:
        addresses = ssrf.resolve(
            target.host,
            target.port,
            allow_private=self._allow_private or target.host in self._allowed_hosts,
            seconds=self._connect_seconds(deadline),
        )
        for address in addresses[:-1]:
            with suppress(FetchError):
                return self._open(target, address, deadline)
        return self._open(target, addresses[-1], deadline)

    def _open(self, target: Target, address: str, deadline: float) -> Connection:
        connection = Connection(
            target,
            address,
            context=self._context(target),
            proxy=self._proxy,
            proxy_address=self._proxy_address(deadline),
        )
        self._local.connection = connection  # closed by any error from here on
        seconds = self._connect_seconds(deadline)
        with self._errors(target.host), connection.until(time.monotonic() + seconds):
            connection.limit(seconds)
            connection.connect()
        return connection

    def _connect_seconds(self, deadline: float) -> float:
        return min(self._limits.connect_seconds, deadline - time.monotonic())

    def _proxy_address(self, deadline: float) -> str:
        if self._proxy is None:
            return ""
        seconds = self._connect_seconds(deadline)
        return ssrf.resolve(self._proxy.host, self._proxy.port, allow_private=True, seconds=seconds)[0]

    def _context(self, target: Target) -> ssl.SSLContext | None:
        if target.scheme != "https":
            return None
        if self._tls is None:
            self._tls = _tls_context(None)
        return self._tls

    @contextmanager
    def _errors(self, host: str) -> Iterator[None]:
        """Turn errors of the network into `FetchError`, and close the connection: its state is unknown."""
        try:
            yield
        except (JobError, _StaleError):
            self._drop()
            raise
        except TimeoutError:
            self._drop()
            raise FetchTimeoutError(host) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._drop()
            raise FetchError(f"{host}: {_reason(error)}") from None


def _tls_context(authorities: Path | None) -> ssl.SSLContext:
    import ssl  # 10 ms, which only https URLs cost

    context = ssl.create_default_context()
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except OSError as error:  # an SSLError is one too
            why = "it holds no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise SettingsError(
                f"RUNNER_IMAGE_CA names {repeated(str(authorities))}, which cannot be used: {why}"
            ) from None
    return context


class _StaleError(Exception):
    """The server had closed a connection that was kept open."""


def _check_status(response: http.client.HTTPResponse, host: str) -> None:
    status = response.status
    if status == _OK:
        return
    if status in _TRANSIENT or status // 100 not in (2, 3, 4):
        raise FetchError(f"{host} responds {status}", pause_seconds=_retry_after(response))
    raise ImageMissingError(f"{host} responds {status}")


def _retry_after(response: http.client.HTTPResponse) -> float:
    """Return the seconds that the header Retry-After gives, as a number or as a date; 0 without a valid one."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _allowed(host: str) -> str:
    try:
        return urls.host_name(host)
    except ForbiddenUrlError:
        # Before an @ there may be a password.
        shown = "" if "@" in host else f": {repeated(host, quoted=True)} is not one"
        raise SettingsError(f"RUNNER_ALLOWED_PRIVATE_HOSTS must name hosts, without scheme and port{shown}") from None


def _reason(error: Exception) -> str:
    """Return the reason of an error, without anything that the server has sent."""
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed too early"
    if isinstance(error, http.client.LineTooLong):
        return "its headers are too long"
    if isinstance(error, http.client.HTTPException):
        return f"malformed HTTP ({type(error).__name__})"
    return getattr(error, "strerror", None) or type(error).__name__
