"""A selfie against albums of 100, 1,000 and 10,000 photos, compared with one query per photo on text vectors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from benchmarks import reference
from benchmarks.figures import Row, Spread, ratios
from benchmarks.world import World
from runner.faces.pack import read_manifest
from runner.settings import default_model_dir
from runner.store.database import connect
from runner.store.embeddings import EmbeddingStore

PART = "comparison"
ALBUMS = (100, 1_000, 10_000)
FACES_A_PHOTO = 3
THRESHOLD = 0.5
# InsightFace's embeddings are not normalised; the replaced worker stored them with about this norm.
LENGTH = 20.0
BOX, LANDMARKS = "{0,0,100,100}", "{{30,40},{70,40},{50,60},{35,80},{65,80}}"
_DISTINCT = 500  # vectors, each used for many photos: the amount of data to read is the same


def measure(world: World, rounds: int, albums: tuple[int, ...] = ALBUMS) -> list[Row]:
    """Return the rows of this part. The replaced worker takes a minute for the largest album, so that runs once."""
    world.empty()
    ids = fill(world.connection, max(albums))
    selfie = vectors(1)
    rows = []
    with connect(world.environment["DATABASE_URL"], seconds=5, application_name="bench") as connection:
        store = EmbeddingStore(connection, model())
        for size in albums:
            album = ids[:size]
            again = 1 if size >= 10_000 else min(rounds, 3) if size >= 1_000 else rounds
            ours, theirs = [], []
            store.match(selfie, album, THRESHOLD)
            for _ in range(again):
                ours.append(_milliseconds(partial(store.match, selfie, album, THRESHOLD)))
                theirs.append(_milliseconds(partial(_reference, connection, selfie, album)))
            mine, baseline = Spread.of(ours), Spread.of(theirs)
            about = f"a selfie against {size:,} photos of {max(albums):,}, {FACES_A_PHOTO} faces each"
            rows.append(Row(PART, about, "ms", mine, baseline, "a query per photo", ratios(baseline, mine)))
    return rows


def fill(connection: Connection, photos: int) -> list[str]:
    """Store `photos` photos of `FACES_A_PHOTO` faces each in both workers' tables; return their ids."""
    ids = [str(uuid.uuid4()) for _ in range(photos)]
    distinct = vectors(min(_DISTINCT, photos * FACES_A_PHOTO))
    ours = cycle("[" + ",".join(f"{value:.4g}" for value in vector) + "]" for vector in distinct)
    theirs = cycle(str((vector * LENGTH).tolist()) for vector in distinct)
    faces = [(photo_id, index) for photo_id in ids for index in range(FACES_A_PHOTO)]
    name = model()
    with connection.cursor() as cursor:
        with cursor.copy(
            "COPY faces (photo_id, model, face_index, embedding, box, score, landmarks) FROM STDIN"
        ) as rows:
            for (photo_id, index), embedding in zip(faces, ours, strict=False):
                rows.write_row((photo_id, name, index, embedding, BOX, 0.9, LANDMARKS))
        with cursor.copy("COPY face_embeddings (name, embedding) FROM STDIN") as rows:
            for (photo_id, index), embedding in zip(faces, theirs, strict=False):
                rows.write_row((f"{photo_id}_{index}", embedding))
    connection.execute("ANALYZE faces")
    connection.execute("ANALYZE face_embeddings")
    return ids


def _reference(connection: Connection, selfie: NDArray[np.float32], album: list[str]) -> list[str]:
    return reference.matches(connection, list(selfie), album, THRESHOLD)


def _milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def vectors(count: int) -> NDArray[np.float32]:
    """Return `count` random unit vectors, (count, 512), the same ones every time."""
    found = np.random.default_rng(count).standard_normal((count, 512)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def model() -> str:
    """Return the name of the baked model."""
    return read_manifest(default_model_dir()).model
