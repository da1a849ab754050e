"""The album over HTTP on loopback, as the photo-sharing API's storage would serve it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote


class Serving:
    """An HTTP server in a thread of its own for the time of a `with` block; whoever is one sets `_server`."""

    _server: ThreadingHTTPServer

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, name=type(self).__name__, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class ImageServer(Serving):
    """Serves name → bytes for the time of a `with` block, on loopback or another address of this machine.

    `seconds` is how long it takes its time before each answer.
    """

    def __init__(self, images: Mapping[str, bytes], *, host: str = "127.0.0.1", seconds: float = 0.0) -> None:
        self._host = host
        files = {f"/albums/sample/{name}": data for name, data in images.items()}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                time.sleep(seconds)
                data = files.get(unquote(self.path))
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                """Say nothing: the runners log every photo."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True

    def url(self, name: str) -> str:
        """Return the URL of an image as the API sends it: the file name is not encoded."""
        return f"http://{self._host}:{self._server.server_port}/albums/sample/{name}"
