"""A small HTTP server for metrics and the page: GET and HEAD only, and no request changes anything."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from runner.errors import UsageError, place
from runner.logs import logger

# Slower clients are disconnected, and so are clients beyond this number.
REQUEST_SECONDS = 10.0
MOST_REQUESTS = 16
TEXT = "text/plain; charset=utf-8"
_LOCAL = frozenset({"localhost"})
# Responses load nothing, cannot be embedded or cached, and send no referrer.
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Response:
    """The response of a route; `headers` override those that every response has."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] | None = None


# A route takes the query and the header Accept.
Route = Callable[[str, str], Response]


class Server(ThreadingHTTPServer):
    """Serves `routes` (path → function). `allowed_hosts` are names besides localhost and addresses."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, routes: Mapping[str, Route], allowed_hosts: Collection[str] = ()) -> None:
        """Raise `UsageError` where the address cannot be used."""
        self.routes = routes
        self.allowed_hosts = _LOCAL | {name.lower() for name in allowed_hosts}
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0][0]
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from None

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind, without looking up the name of the host, which may take seconds."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection in a thread, or close it if too many are open."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""

    def allows(self, host: str) -> bool:
        """Return whether the header Host is allowed, which protects against DNS rebinding."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.allowed_hosts or "*" in self.allowed_hosts or _is_address(name)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout: ClassVar[float] = REQUEST_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "spottmee-worker"
    sys_version = ""

    def handle_one_request(self) -> None:
        """Answer the next request, or disconnect a client that takes too long in all, however steadily it sends."""
        timer = threading.Timer(2 * REQUEST_SECONDS, self._disconnect)  # as long idle, and as long for the request
        timer.daemon = True
        timer.start()
        try:
            super().handle_one_request()
        finally:
            timer.cancel()

    def _disconnect(self) -> None:
        with suppress(OSError):  # it has left
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def __getattr__(self, name: str) -> Any:
        """Answer every other method: `http.server` looks for do_METHOD."""
        if name.startswith("do_"):
            return lambda: self._send(
                Response(b"only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"}),
                with_body=True,
            )
        raise AttributeError(name)

    def _answer(self, *, with_body: bool) -> None:
        self._send(self._refusal() or self._routed(), with_body=with_body)

    def _refusal(self) -> Response | None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.allows(hosts[0]):
            return Response(
                b"this server does not answer to that name: pass it with --allowed-host\n",
                status=HTTPStatus.MISDIRECTED_REQUEST,
            )
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        fetched = (self.headers.get("Sec-Fetch-Mode"), self.headers.get("Sec-Fetch-Dest"))
        foreign = site not in ("none", "same-origin") and fetched != ("navigate", "document")
        if foreign or (origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower()):
            return Response(b"requests of other origins are refused\n", status=HTTPStatus.FORBIDDEN)
        return None

    def _routed(self) -> Response:
        path, _, query = self.path.partition("?")
        route = self.server.routes.get(path)
        if route is None:
            known = ", ".join(self.server.routes)
            return Response(f"not found; there are {known}\n".encode(), status=HTTPStatus.NOT_FOUND)
        try:
            return route(query, self.headers.get("Accept", ""))
        except Exception as error:  # noqa: BLE001 - one request must not end the server; its message is not shown
            logger().error("request failed", extra={"path": path, "type": type(error).__name__, "at": place(error)})
            return Response(b"internal error; the log has its place\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _send(self, response: Response, *, with_body: bool) -> None:
        self.send_response(response.status)
        headers = {**_HEADERS, "Content-Type": response.content_type, **(response.headers or {})}
        headers["Content-Length"] = str(len(response.body))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command not in ("GET", "HEAD"):
            self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)

    def log_message(self, *_: object) -> None:
        pass  # requests are not logged


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
