"""Helpers for tests of the store: connections, photos, and random faces."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from runner.store.database import connect
from runner.store.embeddings import EmbeddingStore
from runner.store.photos import NotStored, PhotoTable, store_photos
from runner.store.session import Session

Command = Callable[[Sequence[str], str | None], tuple[int, str, str]]

Result = TypeVar("Result")

MODEL = "buffalo_sc"

LEGACY_TABLE = """
CREATE TABLE face_embeddings (
    id serial PRIMARY KEY, name varchar(255) UNIQUE NOT NULL, embedding text NOT NULL
);
"""


def opened(url: str) -> Session:
    """Return a connection like the runner's own."""
    return connect(url, seconds=5, application_name="test")


@dataclass
class Face:
    """A random face with the attributes of `runner.faces.engine.Face`."""

    embedding: NDArray[np.float32]
    score: float = 0.875
    box: NDArray[np.float32] = field(default_factory=lambda: np.array([1, 2, 30.5, 40], np.float32))
    landmarks: NDArray[np.float32] = field(default_factory=lambda: np.arange(10, dtype=np.float32).reshape(5, 2))


def unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), dtype=np.float32)


def faces(count: int, seed: int = 0) -> list[Face]:
    """Return `count` random faces, dissimilar to each other."""
    return [Face(row) for row in unit(np.random.default_rng(seed).standard_normal((count, 512)))]


# What an embedding is multiplied by, so that the database refuses it: not finite, or not of length 1.
UNSTORABLE_FACTORS = (float("nan"), float("inf"), 0.0, 3.0)


def unstorable_face(factor: float) -> Face:
    """Return a face that the database refuses; `factor` is one of `UNSTORABLE_FACTORS`."""
    with np.errstate(invalid="ignore"):
        return Face(faces(1)[0].embedding * np.float32(factor))


def resembling(face: Face, similarity: float, seed: int = 1) -> Face:
    """Return a face whose cosine similarity with `face` is `similarity`."""
    base = face.embedding.astype(np.float64)
    other = np.random.default_rng(seed).standard_normal(512)
    other -= base * (other @ base)
    other /= np.linalg.norm(other)
    return Face(unit(similarity * base + np.sqrt(1 - similarity**2) * other))


def add_photos(connection: Session, ids: Iterable[str], status: str = "UPLOADED") -> None:
    connection.query(
        'INSERT INTO {photos}."Photo" (id, status) SELECT id, %s::{status}."PhotoStatus" FROM unnest(%s::text[]) AS id',
        (status, list(ids)),
    )


def statuses(connection: Session) -> dict[str, str]:
    return dict(connection.query('SELECT id, status::text FROM {photos}."Photo"').fetchall())


def stored_faces(connection: Session, model: str = MODEL) -> list[tuple[str, int]]:
    """Return the photo id and the index of every stored face of `model`."""
    rows = connection.query(
        "SELECT photo_id, face_index FROM {faces}.faces WHERE model = %s ORDER BY 1, 2", (model,)
    ).fetchall()
    return [(photo_id, index) for photo_id, index in rows]


def round_trips(connection: Session, trace: Path, work: Callable[[], Result]) -> tuple[int, Result]:
    """Return the number of round trips of `work` to the server, and its result."""
    with trace.open("w") as file:
        connection.pgconn.trace(file.fileno())
        result = work()
        connection.pgconn.untrace()
    # Each line has a timestamp, then F for a message sent or B for one received: F followed by B is a round trip.
    directions = "".join(re.findall(r"^[0-9-]+ [0-9:.]+\t([FB])\t", trace.read_text(), re.MULTILINE))
    return directions.count("FB"), result


class Runner:
    """A runner's connections to the API's database and the embeddings database; a single one if the URLs are equal."""

    def __init__(self, api_url: str, faces_url: str) -> None:
        self.api_url, self.faces_url = api_url, faces_url
        self.api = opened(api_url)
        self.faces = self.api if api_url == faces_url else opened(faces_url)
        self.photos = PhotoTable(self.api)
        self.embeddings = EmbeddingStore(self.faces, MODEL)

    def another(self) -> Runner:
        """Return another runner on the same databases."""
        return Runner(self.api_url, self.faces_url)

    def store(
        self, outcomes: Mapping[str, Sequence[Face] | None], still_owned: Callable[[str], bool] = lambda _: True
    ) -> NotStored:
        return store_photos(self.photos, self.embeddings, outcomes, still_owned)

    def close(self) -> None:
        self.api.close()
        self.faces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
