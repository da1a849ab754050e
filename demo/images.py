"""An HTTP server for the album's photos, in place of the storage of the photo-sharing API."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote


class Serving:
    """Runs an HTTP server in its own thread for the duration of a `with` block. Subclasses set `_server`."""

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
    """Serves name → bytes for the duration of a `with` block, on loopback or another address of this machine.

    Each response is delayed by `seconds`.
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
                """Log nothing: the runners log every photo."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True

    def url(self, name: str) -> str:
        """Return the URL of an image as the API sends it: with the file name not URL-encoded."""
        return f"http://{self._host}:{self._server.server_port}/albums/sample/{name}"
