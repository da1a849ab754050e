"""An image server whose paths select its behaviour: missing, broken, slow, too large, or not an image."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from demo.images import Serving

HANG_SECONDS = 30.0


class OddServer(Serving):
    """Serves `files` by name, and `/status/N`, `/redirect/NAME`, `/loop`, `/hang`, `/nothing`, `/endless`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.requests: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.files = files
        self._server.requests = self.requests

    def url(self, path: str) -> str:
        """Return the URL of a file or a behaviour, not URL-encoded."""
        return f"http://127.0.0.1:{self._server.server_port}/{path}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    files: Mapping[str, bytes]
    requests: list[str]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.server.requests.append(path)
        kind, _, rest = path.lstrip("/").partition("/")
        behaviours = {
            "status": lambda: self._answer(int(rest), b"no"),
            "redirect": lambda: self._redirect(f"/{rest}"),
            "loop": lambda: self._redirect("/loop"),
            "hang": lambda: time.sleep(HANG_SECONDS),
            "nothing": lambda: self._answer(200, b""),
            "endless": self._endless,
        }
        behaviours.get(kind, lambda: self._file(path.lstrip("/")))()

    def _file(self, name: str) -> None:
        data = self.server.files.get(name)
        self._answer(404 if data is None else 200, data or b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"\xff" * 65536)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""
