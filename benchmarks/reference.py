"""The baseline: the worker that this project replaces, rebuilt from docs/reference/contract.md, including its faults.

It is for `make bench` only: `FaceAnalysis` photo by photo (with the same two models and the same OpenCV), `BLPOP`, two
new database connections and a `CREATE TABLE` per job, embeddings as text, one `LIKE` query per photo in a comparison.
Where the contract leaves a choice, this uses the faster one: the text is parsed by `json`, not by `ast` (5 times
slower), and similarities are computed by numpy.

    python benchmarks/reference.py FOLDER JOBS

processes JOBS jobs from the lists of REDIS_URL with the models in FOLDER, and exits.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
from contextlib import closing
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import psycopg
from insightface.app import FaceAnalysis
from redis import Redis

PROCESS_LIST = "face_embeddings:process"
COMPARE_LIST = "face_embeddings:compare"
RESULT_SECONDS = 3600
CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS face_embeddings (
    id serial PRIMARY KEY,
    name varchar(255) UNIQUE NOT NULL,
    embedding text NOT NULL
)
"""


def face_analysis(folder: str) -> Any:
    """Return InsightFace's pipeline with the two models in `folder`."""
    analysis = FaceAnalysis(
        name=folder, allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
    )
    analysis.prepare(ctx_id=-1, det_size=(640, 640))
    return analysis


def faces_of(analysis: Any, data: bytes) -> list[Any]:
    """Return the faces that InsightFace finds in an encoded image. Raises `ValueError` if it cannot be decoded."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("not an image")
    faces: list[Any] = analysis.get(image)
    return faces


def work(folder: str, jobs: int) -> None:
    """Process `jobs` jobs one after the other, or fewer if the lists are empty for a second."""
    analysis = face_analysis(folder)
    redis = Redis.from_url(os.environ["REDIS_URL"])
    for _ in range(jobs):
        popped: Any = redis.blpop([PROCESS_LIST, COMPARE_LIST], timeout=1)
        if popped is None:
            return
        name, payload = popped
        job = json.loads(payload)
        if name.decode() == PROCESS_LIST:
            process(analysis, job)
        else:
            redis.set(f"match-result:{job['jobId']}", "PROCESSING", ex=RESULT_SECONDS)
            matched = compare(analysis, job)
            redis.set(f"match-result:{job['jobId']}", json.dumps(matched), ex=RESULT_SECONDS)


def process(analysis: Any, job: dict[str, Any]) -> None:
    """Embed one photo and store its faces."""
    with closing(_connect("DATABASE_URL")) as photos, closing(_connect("EMBEDDINGS_DATABASE_URL")) as embeddings:
        embeddings.execute(CREATE_TABLE)
        embeddings.commit()
        _set_status(photos, job["id"], "PROCESSING")
        try:
            with urllib.request.urlopen(quote(job["imageUrl"], safe=":/")) as answer:
                data = answer.read()
            faces = faces_of(analysis, data)
            for index, face in enumerate(faces):
                embeddings.execute(
                    "INSERT INTO face_embeddings (name, embedding) VALUES (%s, %s)",
                    (f"{job['id']}_{index}", str(face.embedding.tolist())),
                )
            embeddings.commit()
        except Exception:  # noqa: BLE001 - as the replaced worker does
            _set_status(photos, job["id"], "FAILED")
        else:
            _set_status(photos, job["id"], "READY" if faces else "NO_FACES_FOUND")


def compare(analysis: Any, job: dict[str, Any]) -> list[str]:
    """Return the ids of the photos that show the person of the selfie."""
    selfie = [face.embedding for face in faces_of(analysis, base64.b64decode(job["selfie"]))]
    with closing(_connect("EMBEDDINGS_DATABASE_URL")) as embeddings:
        embeddings.execute(CREATE_TABLE)
        return matches(embeddings, selfie, job["storedIds"], job["threshold"])


def matches(connection: psycopg.Connection, selfie: list[Any], stored_ids: list[str], threshold: float) -> list[str]:
    """Return the ids of the matching photos, with one query per photo."""
    matched = []
    for photo_id in stored_ids:
        rows = connection.execute(
            "SELECT embedding FROM face_embeddings WHERE name LIKE %s", (f"{photo_id}_%",)
        ).fetchall()
        stored = [np.array(json.loads(text), np.float32) for (text,) in rows]
        if any(_similarity(one, other) > threshold for one in selfie for other in stored):
            matched.append(photo_id)
    return matched


def _similarity(one: Any, other: Any) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def _connect(variable: str) -> psycopg.Connection:
    return psycopg.connect(os.environ[variable])


def _set_status(connection: psycopg.Connection, photo_id: str, status: str) -> None:
    connection.execute('UPDATE "Photo" SET status = %s::"PhotoStatus" WHERE id = %s', (status, photo_id))
    connection.commit()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
