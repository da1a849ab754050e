"""A stand-in for the photo-sharing API that follows the contract exactly, for demonstration, tests and benchmarks."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence

from psycopg import Connection
from redis import Redis

PROCESS_LIST = "face_embeddings:process"
COMPARE_LIST = "face_embeddings:compare"

_CREATE = """
CREATE TYPE "PhotoStatus" AS ENUM ('UPLOADED', 'PROCESSING', 'READY', 'FAILED', 'NO_FACES_FOUND');
CREATE TABLE "Photo" (
    id text PRIMARY KEY,
    album_id text,
    original_name text,
    normalized_name text,
    size integer,
    type text,
    created_at timestamp(3) DEFAULT now(),
    status "PhotoStatus" NOT NULL DEFAULT 'UPLOADED'
)
"""


def create_table(connection: Connection) -> None:
    """Create the table that the API's own migrations create."""
    connection.execute(_CREATE)


class Api:
    """The API's side of the contract: uploads, comparisons, and the results that a guest's browser polls."""

    def __init__(self, redis: Redis, connection: Connection) -> None:
        self._redis = redis
        self._connection = connection

    def upload(self, images: Mapping[str, str], album_id: str = "album") -> dict[str, str]:
        """Add a photo and push its job for every name → URL of `images`; return name → photo id."""
        photos = {name: str(uuid.uuid4()) for name in images}
        with self._connection.cursor() as cursor:
            cursor.executemany(
                'INSERT INTO "Photo" (id, album_id, original_name, normalized_name, size, type)'
                " VALUES (%s, %s, %s, %s, 0, 'image/jpeg')",
                [(photo_id, album_id, name, name) for name, photo_id in photos.items()],
            )
        for name, photo_id in photos.items():
            self._redis.rpush(PROCESS_LIST, json.dumps({"imageUrl": images[name], "id": photo_id}))
        return photos

    def compare(self, selfie: bytes, photo_ids: Sequence[str], threshold: float | None = 0.5) -> str:
        """Push a comparison and then set INITIATED, in the API's own order; return the job's id."""
        job_id = str(uuid.uuid4())
        payload = {
            "jobId": job_id,
            "storedIds": list(photo_ids),
            "selfie": base64.b64encode(selfie).decode(),
            "threshold": threshold,
        }
        self._redis.rpush(COMPARE_LIST, json.dumps(payload))
        self._redis.set(f"match-result:{job_id}", "INITIATED")
        return job_id

    def result(self, job_id: str) -> list[str] | None:
        """Return the matched photo ids, or None while the comparison is in progress.

        Raises `KeyError` where the API would answer 404.
        """
        value = self._redis.get(f"match-result:{job_id}")
        if value is None:
            raise KeyError(job_id)
        if value in (b"INITIATED", b"PROCESSING"):
            return None
        matched: list[str] = json.loads(value)
        return matched

    def detail(self, job_id: str) -> dict[str, object]:
        """Return the detail stored with a result, empty if there is none."""
        value = self._redis.get(f"face_embeddings:detail:{job_id}")
        document: dict[str, object] = json.loads(value) if value else {}
        return document

    def statuses(self) -> dict[str, str]:
        """Return photo id → status."""
        return dict(self._connection.execute('SELECT id, status::text FROM "Photo"').fetchall())

    def delete(self, photo_id: str) -> None:
        """Delete a photo, as its owner would."""
        self._connection.execute('DELETE FROM "Photo" WHERE id = %s', (photo_id,))
