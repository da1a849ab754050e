"""The photo-sharing API over HTTP, as docs/reference/contract.md describes it, on real Redis and PostgreSQL.

It serves clients and, in the place of Google's storage, the uploaded files. Order and timing of its calls are those of
the API: a row is added before its job is pushed, and a comparison is pushed before `INITIATED` is written, which may
take a configurable time. Its clients get the job's id only after that.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import psycopg
from redis import Redis

from demo.api import COMPARE_LIST, PROCESS_LIST
from tests.support.answering import AnsweringServer

BUCKET = "bucket"
THRESHOLD = 0.5
RESULT = "match-result:{}"
_SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"BM": "image/bmp"}


def cleaned(name: str) -> str:
    """Return a file name as the API stores it: cleaned before the last dot; the extension is kept as it is."""
    stem, dot, extension = name.rpartition(".")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem if dot else name) + dot + (extension if dot else "")


class ApiServer(AnsweringServer):
    """The API. `initiated_delay` is how long writing `INITIATED` takes after the push, in seconds.

    Where `initiated_when` is set, it takes until that is true of the job's id, too.
    """

    def __init__(self, redis_url: str, database_url: str) -> None:
        self.initiated_delay = 0.0
        self.initiated_when: Callable[[str], bool] = lambda _: True
        self.files: dict[str, bytes] = {}
        self._redis_url = redis_url
        self._database_url = database_url
        super().__init__(self._respond, keep_alive=True)

    def _respond(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        status, answer = self.handle(method, [unquote(part) for part in path.split("/")[1:]], body)
        if isinstance(answer, bytes):
            return status, "application/octet-stream", answer
        return status, "application/json", json.dumps(answer).encode()

    def handle(self, method: str, path: list[str], body: bytes) -> tuple[int, Any]:
        """Answer a request: its status, and its JSON or bytes."""
        answer: tuple[int, Any] = 404, {"message": "not found"}
        match [method, *path]:
            case ["POST", "albums", album, "photos", name]:
                answer = self._upload(album, name, body)
            case ["POST", "albums", album, "comparisons"]:
                answer = self._compare(album, body)
            case ["GET", "comparisons", job]:
                answer = self._result(job)
            case ["DELETE", "photos", photo]:
                answer = self._delete("id", photo)
            case ["DELETE", "albums", album]:
                answer = self._delete("album_id", album)
            case ["GET", bucket, "albums", album, name] if bucket == BUCKET:
                data = self.files.get(f"{album}/{name}")
                answer = (200, data) if data is not None else (403, b"AccessDenied")  # as Google's storage does
        return answer

    def _upload(self, album: str, name: str, data: bytes) -> tuple[int, Any]:
        kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
        if kind is None or (kind == "image/jpeg" and not data.rstrip(b"\0").endswith(b"\xff\xd9")):
            return 500, {"message": "Internal server error"}
        photo, stored = str(uuid.uuid4()), cleaned(name)
        self.files[f"{album}/{stored}"] = data
        with self._database() as database:
            database.execute(
                'INSERT INTO "Photo" (id, album_id, original_name, normalized_name, size, type)'
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (photo, album, name, stored, len(data), kind),
            )
        url = f"http://127.0.0.1:{self.port}/{BUCKET}/albums/{album}/{stored}"
        self._push(PROCESS_LIST, {"imageUrl": url, "id": photo})
        return 201, {"id": photo}

    def _compare(self, album: str, selfie: bytes) -> tuple[int, Any]:
        with self._database() as database:
            rows = database.execute('SELECT id FROM "Photo" WHERE album_id = %s ORDER BY created_at, id', (album,))
            ids = [row[0] for row in rows.fetchall()]
        job, delay, when = str(uuid.uuid4()), self.initiated_delay, self.initiated_when
        encoded = base64.b64encode(selfie).decode()
        self._push(COMPARE_LIST, {"jobId": job, "storedIds": ids, "selfie": encoded, "threshold": THRESHOLD})
        time.sleep(delay)
        while not when(job):
            time.sleep(0.05)
        with self._redis() as redis:
            redis.set(RESULT.format(job), "INITIATED")
        return 201, {"jobId": job, "storedIds": ids}

    def _result(self, job: str) -> tuple[int, Any]:
        with self._redis() as redis:
            value = redis.get(RESULT.format(job))
        if value is None:
            return 404, {"message": "Job not found"}
        if value in (b"INITIATED", b"PROCESSING"):
            return 200, {"status": "processing"}
        return 200, {"status": "done", "photos": json.loads(value)}

    def _delete(self, column: str, value: str) -> tuple[int, Any]:
        statement = f'DELETE FROM "Photo" WHERE {column} = %s RETURNING album_id, normalized_name'
        with self._database() as database:
            rows = database.execute(statement.encode(), (value,)).fetchall()
        for album, name in rows:
            self.files.pop(f"{album}/{name}", None)
        return 200, {"deleted": len(rows)}

    def _push(self, name: str, payload: dict[str, Any]) -> None:
        with self._redis() as redis:  # as JSON.stringify writes it
            redis.rpush(name, json.dumps(payload, ensure_ascii=False, separators=(",", ":")))

    @contextmanager
    def _redis(self) -> Iterator[Redis]:
        with Redis.from_url(self._redis_url) as client:
            yield client

    @contextmanager
    def _database(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            yield connection


class Client:
    """A browser: every call is one HTTP request."""

    def __init__(self, port: int) -> None:
        self._port = port

    def call(self, method: str, *path: str, body: bytes = b"") -> tuple[int, Any]:
        """Return status and JSON of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request(method, "/" + "/".join(quote(part, safe="") for part in path), body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()
