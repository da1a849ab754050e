"""Bringing the table of the worker that this one replaces into `faces` (docs/reference/contract.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg import sql

from runner.errors import SettingsError
from runner.store.embeddings import EMBEDDING_SIZE, HalfVector, register

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from psycopg import Connection

TABLE = "face_embeddings"
BATCH = 1000
_MAX_INDEX = 2**15 - 1
_NAMED = 20  # unreadable rows that are named; the others are counted

_NEXT_ROWS = "SELECT id, name, embedding FROM {} WHERE id > %s ORDER BY id LIMIT %s"
_EXISTING = 'SELECT id FROM "Photo" WHERE id = ANY(%b)'
# Where a runner has done the photo with this model already, its faces stand: the two must not be mixed. Only
# imported faces have no box.
_DONE = "SELECT DISTINCT photo_id FROM faces WHERE photo_id = ANY(%b) AND model = %s AND box IS NOT NULL"
_INSERT = """
INSERT INTO faces (photo_id, model, face_index, embedding) VALUES (%s, %s, %s, %s)
ON CONFLICT (photo_id, model, face_index) DO NOTHING
"""


@dataclass(slots=True)
class Imported:
    """The rows of the old table, by what became of them. `unreadable` maps the first names to the reason."""

    rows: int = 0
    imported: int = 0
    already_there: int = 0
    done_by_a_runner: int = 0
    of_deleted_photos: int = 0
    unreadable_rows: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


class UnreadableRowError(ValueError):
    """A row of the old table is not what the replaced worker wrote."""


def parse_name(name: str) -> tuple[str, int]:
    """Split `{photoId}_{faceIndex}`; the photo id may contain `_` itself. Raises `UnreadableRowError`."""
    photo_id, _, index = name.rpartition("_")
    if not photo_id or not (index.isascii() and index.isdigit()) or int(index) > _MAX_INDEX:
        raise UnreadableRowError("the name is not PHOTO_INDEX")
    return photo_id, int(index)


def parse_embedding(text: str) -> NDArray[np.float64]:
    """Return the embedding that a list literal holds, shape (512,), L2-normalised. Raises `UnreadableRowError`."""
    try:
        # A Python list literal of finite floats is JSON, and JSON is read ten times faster than Python.
        values = json.loads(text)
        embedding = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise UnreadableRowError("the embedding is no list of numbers") from None
    if embedding.shape != (EMBEDDING_SIZE,):
        raise UnreadableRowError(f"the embedding has not {EMBEDDING_SIZE} numbers")
    norm = float(np.linalg.norm(embedding))
    if not np.isfinite(norm) or norm == 0:
        raise UnreadableRowError("the embedding is zero or not finite")
    return np.asarray(embedding / norm)


def import_legacy(
    photos: Connection, embeddings: Connection, *, model: str, table: str = TABLE, batch: int = BATCH
) -> Imported:
    """Copy the faces of `table` into `faces` under the name `model`, and return the counts.

    Rows of photos that are no longer in the API's table are left out. The old table is only read. May be repeated
    at any time; what is there stays. Raises `SettingsError` where there is no such table.
    """
    register(embeddings)
    if embeddings.execute("SELECT to_regclass(quote_ident(%s))", (table,)).fetchone() == (None,):
        raise SettingsError(f"the embeddings database (EMBEDDINGS_DATABASE_URL) has no table {table} to import")
    select = sql.SQL(_NEXT_ROWS).format(sql.Identifier(table))
    counts = Imported()
    last = -(2**63)
    while rows := embeddings.execute(select, (last, batch)).fetchall():
        last = rows[-1][0]
        counts.rows += len(rows)
        _import_batch(photos, embeddings, model, _readable(rows, counts), counts)
    return counts


def _readable(rows: Iterable[tuple[Any, ...]], counts: Imported) -> list[tuple[str, int, HalfVector]]:
    faces = []
    for _, name, text in rows:
        try:
            photo_id, index = parse_name(name)
            faces.append((photo_id, index, HalfVector.of(parse_embedding(text))))
        except UnreadableRowError as error:
            counts.unreadable_rows += 1
            if len(counts.unreadable) < _NAMED:
                counts.unreadable[name] = str(error)
    return faces


def _import_batch(
    photos: Connection,
    embeddings: Connection,
    model: str,
    faces: list[tuple[str, int, HalfVector]],
    counts: Imported,
) -> None:
    ids = sorted({photo_id for photo_id, _, _ in faces})
    existing = {row[0] for row in photos.execute(_EXISTING, (ids,))}
    done = {row[0] for row in embeddings.execute(_DONE, (ids, model))}
    kept = [face for face in faces if face[0] in existing]
    counts.of_deleted_photos += len(faces) - len(kept)
    new = [(photo_id, model, index, vector) for photo_id, index, vector in kept if photo_id not in done]
    counts.done_by_a_runner += len(kept) - len(new)
    if not new:
        return
    with embeddings.transaction(), embeddings.cursor() as cursor:
        cursor.executemany(_INSERT, new)
        counts.imported += cursor.rowcount
        counts.already_there += len(new) - cursor.rowcount
