"""Plays back the responses of a real Kubernetes API server (recordings/*.json, made by tests/e2e/record.py).

Each recording contains the requests of one command. A request is identified by its method and path. Responses to equal
requests are played in the recorded order, and the last one repeatedly. The recorded name of a debug Job is replaced by
its current name.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.answering import AnsweringServer

FOLDER = Path(__file__).parent / "recordings"
_JOB_NAME = re.compile(r"party-debug-[0-9a-f]{5}\b")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response."""

    method: str
    path: str
    status: int
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        """What identifies a request: its method and path, independent of the Job's name."""
        return self.method, _JOB_NAME.sub("JOB", self.path)

    def document(self) -> dict[str, object]:
        """Return the exchange as the recording contains it."""
        return asdict(self)


class RecordedApi(AnsweringServer):
    """An HTTP server on loopback that plays back one recording; `requests` lists the received requests with bodies."""

    def __init__(self, scene: str) -> None:
        document = json.loads((FOLDER / f"{scene}.json").read_text(encoding="utf-8"))
        self._answers: dict[tuple[str, str], list[Exchange]] = {}
        for item in document["exchanges"]:
            exchange = Exchange(**item)
            self._answers.setdefault(exchange.key, []).append(exchange)
        self.requests: list[tuple[str, str, Any]] = []
        self.unknown: list[str] = []
        self._name = "JOB"
        self._lock = threading.Lock()
        super().__init__(self._respond)

    def _respond(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        status, text = self.answer(method, path, json.loads(body) if body else None)
        return status, "application/json", text.encode()

    def forget(self, part: str) -> None:
        """Drop the recorded responses to requests whose path contains `part`."""
        self._answers = {key: found for key, found in self._answers.items() if part not in key[1]}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, str]:
        """Return status and body of the next recorded response; 500 if there is none."""
        with self._lock:
            self.requests.append((method, path, body))
            if method == "POST" and body and body.get("kind") == "Job":
                self._name = body["metadata"]["name"]
            recorded = self._answers.get((method, _JOB_NAME.sub("JOB", path)))
            if not recorded:
                self.unknown.append(f"{method} {path}")
                return 500, json.dumps({"message": "this request was not recorded"})
            exchange = recorded.pop(0) if len(recorded) > 1 else recorded[0]
            return exchange.status, _JOB_NAME.sub(self._name, exchange.answer)


@contextmanager
def kubeconfig(port: int) -> Iterator[Path]:
    """Yield a kubeconfig for an API server on loopback, without TLS."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "recorded",
        "clusters": [{"name": "recorded", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "somebody", "user": {}}],
        "contexts": [{"name": "recorded", "context": {"cluster": "recorded", "user": "somebody"}}],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kubeconfig"
        path.write_text(json.dumps(document))
        yield path
