"""Import of the embeddings of the worker that this one replaces (docs/reference/contract.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg.sql import Identifier

from runner.errors import SettingsError
from runner.store.embeddings import EMBEDDING_SIZE, register
from runner.store.session import Session, identifier

TABLE = "face_embeddings"
BATCH = 1000
_MAX_INDEX = 2**15 - 1
_NAMED = 20  # unreadable rows whose names are shown; the others are only counted

_NEXT_ROWS = "SELECT id, name, embedding FROM {table} WHERE id > %s ORDER BY id LIMIT %s"
_HAS_TABLE = """
SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'f', 'v', 'm'))
"""
_SCHEMAS_WITH_TABLE = """
SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relname = %s AND c.relkind IN ('r', 'p', 'f', 'v', 'm') ORDER BY 1 LIMIT 10
"""
_EXISTING = 'SELECT id FROM {photos}."Photo" WHERE id = ANY(%b)'
# A photo that a runner has processed with this model keeps those faces: the two must not be mixed. Only imported
# faces have no box.
_DONE = "SELECT DISTINCT photo_id FROM {faces}.faces WHERE photo_id = ANY(%b) AND model = %s AND box IS NOT NULL"
_INSERT = """
INSERT INTO {faces}.faces (photo_id, model, face_index, embedding) VALUES (%s, %s, %s, %s)
ON CONFLICT (photo_id, model, face_index) DO NOTHING
"""


@dataclass(slots=True)
class Imported:
    """Counts of the rows of the old table by outcome. `unreadable` maps the first 20 names to the reason."""

    rows: int = 0
    imported: int = 0
    already_there: int = 0
    done_by_a_runner: int = 0
    of_deleted_photos: int = 0
    unreadable_rows: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


class UnreadableRowError(ValueError):
    """A row of the old table does not have the format of the replaced worker."""


def parse_name(name: str) -> tuple[str, int]:
    """Split `{photoId}_{faceIndex}`; the photo id may contain `_` itself. Raises `UnreadableRowError`."""
    photo_id, _, index = name.rpartition("_")
    if not photo_id or not (index.isascii() and index.isdigit()) or int(index) > _MAX_INDEX:
        raise UnreadableRowError("the name is not PHOTO_INDEX")
    return photo_id, int(index)


def parse_embedding(text: str) -> NDArray[np.float64]:
    """Return the embedding that a list literal holds, shape (512,), L2-normalised. Raises `UnreadableRowError`."""
    try:
        # A Python list literal of finite floats is JSON, which is parsed ten times faster.
        values = json.loads(text)
        embedding = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise UnreadableRowError("the embedding is not a list of numbers") from None
    if embedding.shape != (EMBEDDING_SIZE,):
        raise UnreadableRowError(f"the embedding does not have {EMBEDDING_SIZE} numbers")
    norm = float(np.linalg.norm(embedding))
    if not np.isfinite(norm) or norm == 0:
        raise UnreadableRowError("the embedding is zero or not finite")
    return np.asarray(embedding / norm)


def import_legacy(
    photos: Session, embeddings: Session, *, model: str, table: str = TABLE, batch: int = BATCH
) -> Imported:
    """Copy the faces of `table` into `faces` under the name `model`, and return the counts.

    Rows of photos that are no longer in the API's table are left out. The old table is only read. May be repeated
    at any time: existing faces are kept. `table` is in the schema of the embeddings, or `SCHEMA.TABLE`. Raises
    `SettingsError` where there is no such table.
    """
    register(embeddings)
    old = _find(embeddings, table)
    counts = Imported()
    last = -(2**63)
    while rows := embeddings.query(_NEXT_ROWS, (last, batch), table=old).fetchall():
        last = rows[-1][0]
        counts.rows += len(rows)
        _import_batch(photos, embeddings, model, _readable(rows, counts), counts)
    return counts


def _find(embeddings: Session, table: str) -> Identifier:
    """Return the old table: in the schema of the embeddings, or in the schema that `table` names before a dot."""
    own = embeddings.schemas.faces
    schema, _, plain = table.partition(".")
    for candidate in ((own, table), (schema, plain)):
        if embeddings.query(_HAS_TABLE, candidate).fetchone() == (True,):
            return identifier(*candidate)
    others = [f"{row[0]}.{table}" for row in embeddings.query(_SCHEMAS_WITH_TABLE, (table,)).fetchall()]
    there = f"; --table can name {' or '.join(others)}" if others else ""
    raise SettingsError(
        f'schema "{own}" of the embeddings database (EMBEDDINGS_DATABASE_URL) has no table {table} to import{there}'
    )


def _readable(rows: Iterable[tuple[Any, ...]], counts: Imported) -> list[tuple[str, int, HalfVector]]:
    faces = []
    for _, name, text in rows:
        try:
            photo_id, index = parse_name(name)
            faces.append((photo_id, index, HalfVector(parse_embedding(text))))
        except UnreadableRowError as error:
            counts.unreadable_rows += 1
            if len(counts.unreadable) < _NAMED:
                counts.unreadable[name] = str(error)
    return faces


def _import_batch(
    photos: Session,
    embeddings: Session,
    model: str,
    faces: list[tuple[str, int, HalfVector]],
    counts: Imported,
) -> None:
    ids = sorted({photo_id for photo_id, _, _ in faces})
    existing = {row[0] for row in photos.query(_EXISTING, (ids,))}
    done = {row[0] for row in embeddings.query(_DONE, (ids, model))}
    kept = [face for face in faces if face[0] in existing]
    counts.of_deleted_photos += len(faces) - len(kept)
    new = [(photo_id, model, index, vector) for photo_id, index, vector in kept if photo_id not in done]
    counts.done_by_a_runner += len(kept) - len(new)
    if not new:
        return
    with embeddings.bounded():
        insert = embeddings.schemas.statement(_INSERT).as_bytes(embeddings)
        inserted = [embeddings.execute(insert, row) for row in new]
    imported = sum(cursor.rowcount for cursor in inserted)
    counts.imported += imported
    counts.already_there += len(new) - imported
