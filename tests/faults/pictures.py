"""Small real photos, and an image server that can return errors, be slow, or be down."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from demo.album import PEOPLE, jpeg, landscape, png, portrait, side_by_side
from demo.images import Serving
from runner.bake.samples import sample_images

HEIGHT = 180
SELFIE = "selfie "


@dataclass(frozen=True, slots=True)
class Kind:
    """A picture that many photos of a campaign share: its bytes, the people it shows, and the expected status."""

    name: str
    data: bytes
    people: frozenset[str]
    status: str = "READY"


def kinds() -> dict[str, Kind]:
    """Return the pictures by name; those named `selfie PERSON` are selfies for comparisons."""
    originals = sample_images()
    faces = {name: portrait(originals[source], box, height=HEIGHT) for name, (source, box) in PEOPLE.items()}
    made = [
        *(Kind(name, jpeg(face), frozenset({name})) for name, face in faces.items()),
        Kind("Ada and Hal", jpeg(side_by_side(faces["Ada"], faces["Hal"])), frozenset({"Ada", "Hal"})),
        Kind("nobody", jpeg(landscape(200, HEIGHT)), frozenset(), "NO_FACES_FOUND"),
        Kind("broken", jpeg(faces["Ben"])[:900], frozenset(), "FAILED"),
        # 60 megapixels in 60 kB: 180 MB when decoded.
        Kind("huge", png(np.full((6000, 10_000), 90, np.uint8)), frozenset(), "NO_FACES_FOUND"),
        *(Kind(f"{SELFIE}{name}", jpeg(face, quality=80), frozenset({name})) for name, face in faces.items()),
    ]
    return {kind.name: kind for kind in made}


class Behaviour(Enum):
    """How the image server behaves."""

    NORMAL = "normal"
    ERRORS = "errors"  # a third of the responses are a 500, or the connection is closed
    SLOW = "slow"  # a third of the responses are sent more slowly than the runner waits
    DOWN = "down"  # connections are closed at once


class PictureServer(Serving):
    """Serves /KIND/anything for the duration of a `with` block."""

    def __init__(self, served: dict[str, Kind]) -> None:
        self.behaviour = Behaviour.NORMAL
        self.delay = 0.0  # seconds before every response
        self.answers: Counter[str] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                data = served[self.path.split("/")[1].replace("%20", " ")].data
                with suppress(OSError):
                    server._answer(self, data)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # the runner closed the connection

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._random = random.Random(5)

    def url(self, kind: str, number: int) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{kind}/{number}.jpg"

    def _answer(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        time.sleep(self.delay)
        bad = self._random.random() < 1 / 3
        if self.behaviour is Behaviour.DOWN or (
            self.behaviour is Behaviour.ERRORS and bad and self._random.random() < 0.5
        ):
            self.answers["closed"] += 1
            handler.close_connection = True
            return
        failing = self.behaviour is Behaviour.ERRORS and bad
        self.answers["500" if failing else "slow" if self.behaviour is Behaviour.SLOW and bad else "200"] += 1
        handler.send_response(500 if failing else 200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if self.behaviour is Behaviour.SLOW and bad:
            for start in range(0, len(data), 200):
                handler.wfile.write(data[start : start + 200])
                time.sleep(0.2)
        else:
            handler.wfile.write(data)
