"""Import of the embeddings of the worker that this one replaces (docs/reference/contract.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg.sql import Identifier

from runner.errors import SettingsError
from runner.store.embeddings import EMBEDDING_SIZE, register
from runner.store.session import Session, identifier

Row = tuple[Any, ...]  # id, name and embedding of the old table, each of which may be None

TABLE = "face_embeddings"
BATCH = 1000
_MAX_INDEX = 2**15 - 1
_INDEX = re.compile(r"[0-9]{1,9}")  # Python refuses to parse more than 4,300 digits
_NAMED = 20  # unreadable rows whose names are shown; the others are only counted
_LONGEST_NAME = 200  # of an unreadable row, as it is shown
# The estimate: measured on a busy core with PostgreSQL on the same machine.
ROWS_PER_SECOND = 1000

# With ties: where the primary key was dropped, ids may repeat. A table may have lost NOT NULL too.
_NEXT_ROWS = """
SELECT id, name::text, embedding::text FROM {table} WHERE id > %s ORDER BY id FETCH FIRST (%s) ROWS WITH TIES
"""
_ROWS_WITHOUT_ID = "SELECT id, name::text, embedding::text FROM {table} WHERE id IS NULL"
_COUNT = "SELECT count(*) FROM {table}"
_COLUMNS = """
SELECT a.attname::text, t.typname::text
  FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
  JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
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
_STORED = "SELECT photo_id, face_index, box IS NULL FROM {faces}.faces WHERE photo_id = ANY(%b) AND model = %s"
_INSERT = """
INSERT INTO {faces}.faces (photo_id, model, face_index, embedding) VALUES (%s, %s, %s, %s)
ON CONFLICT (photo_id, model, face_index) DO NOTHING
"""


@dataclass(slots=True)
class Imported:
    """Counts of the rows of the old table by outcome. `unreadable` maps the first 20 names to the reason.

    `duplicates` have the name of an earlier row, which is kept.
    """

    rows: int = 0
    imported: int = 0
    already_imported: int = 0
    duplicates: int = 0
    already_processed: int = 0
    deleted_photos: int = 0
    unreadable_rows: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """The old table, its schema and name, and the number of its rows."""

    schema: str
    name: str
    rows: int

    @property
    def identifier(self) -> Identifier:
        """The table, for a statement."""
        return identifier(self.schema, self.name)

    @property
    def seconds(self) -> float:
        """About how long the import takes."""
        return self.rows / ROWS_PER_SECOND


class UnreadableRowError(ValueError):
    """A row of the old table does not have the format of the replaced worker."""


def parse_name(name: str | None) -> tuple[str, int]:
    """Split `{photoId}_{faceIndex}`; the photo id may contain `_` itself. Raises `UnreadableRowError`."""
    if name is None:
        raise UnreadableRowError("the name is NULL")
    photo_id, _, index = name.rpartition("_")
    if not photo_id or not _INDEX.fullmatch(index) or int(index) > _MAX_INDEX:
        raise UnreadableRowError("the name is not PHOTO_INDEX")
    return photo_id, int(index)


def parse_embedding(text: str | None) -> NDArray[np.float64]:
    """Return the embedding in a list literal, shape (512,), L2-normalised. Raises `UnreadableRowError`."""
    if text is None:
        raise UnreadableRowError("the embedding is NULL")
    try:
        # A Python list literal of finite floats is JSON, which is parsed ten times faster.
        values = json.loads(text)
        embedding = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise UnreadableRowError("the embedding is not a list of numbers") from None
    if embedding.shape != (EMBEDDING_SIZE,):
        raise UnreadableRowError(f"the embedding does not have {EMBEDDING_SIZE} numbers")
    largest = float(np.abs(embedding).max())
    if not np.isfinite(largest) or largest == 0:
        raise UnreadableRowError("the embedding is zero or not finite")
    embedding = embedding / largest  # the squares of very large or small numbers are not finite, or zero
    return np.asarray(embedding / np.linalg.norm(embedding))


def find_source(embeddings: Session, table: str = TABLE) -> Source:
    """Return the old table: in the schema of the embeddings, or `SCHEMA.TABLE`.

    Raises `SettingsError` if there is no such table, or if it is not the replaced worker's.
    """
    schema, name = _find(embeddings, table)
    columns: dict[str, str] = dict(embeddings.query(_COLUMNS, (schema, name)).fetchall())
    missing = [column for column in ("id", "name", "embedding") if column not in columns]
    if missing or columns["id"] not in ("int2", "int4", "int8"):
        what = f"has no column {missing[0]}" if missing else "has ids that are no integers"
        raise SettingsError(f'table "{schema}"."{name}" {what}: it is not the table of the replaced worker (--table)')
    return Source(schema, name, embeddings.one_row(_COUNT, table=identifier(schema, name))[0])


def import_legacy(
    photos: Session,
    embeddings: Session,
    source: Source,
    *,
    model: str,
    batch: int = BATCH,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Copy the faces of `source` into `faces` under the name `model`, and return the counts.

    Rows of photos that are no longer in the API's table are skipped. The old table is only read. Idempotent:
    existing faces are kept. With `dry_run`, nothing is written. `progress` receives the number of rows done.
    """
    register(embeddings)
    work = _Import(photos, embeddings, model, dry_run=dry_run)
    for rows in _batches(embeddings, source.identifier, batch):
        work.add(rows)
        progress(work.counts.rows)
    return work.counts


def _batches(embeddings: Session, table: Identifier, batch: int) -> Iterator[list[Row]]:
    if rows := embeddings.query(_ROWS_WITHOUT_ID, table=table).fetchall():
        yield rows
    last = -(2**63)
    while rows := embeddings.query(_NEXT_ROWS, (last, batch), table=table).fetchall():
        last = rows[-1][0]
        yield rows


def _find(embeddings: Session, table: str) -> tuple[str, str]:
    own = embeddings.schemas.faces
    schema, _, plain = table.partition(".")
    for candidate in ((own, table), (schema, plain)):
        if embeddings.query(_HAS_TABLE, candidate).fetchone() == (True,):
            return candidate
    others = [f"{row[0]}.{table}" for row in embeddings.query(_SCHEMAS_WITH_TABLE, (table,)).fetchall()]
    there = f"; --table can name {' or '.join(others)}" if others else ""
    raise SettingsError(
        f'schema "{own}" of the embeddings database (EMBEDDINGS_DATABASE_URL) has no table {table} to import{there}'
    )


class _Import:
    """An import in progress."""

    def __init__(self, photos: Session, embeddings: Session, model: str, *, dry_run: bool) -> None:
        self.counts = Imported()
        self._photos = photos
        self._embeddings = embeddings
        self._model = model
        self._dry_run = dry_run
        self._seen: set[tuple[str, int]] = set()

    def add(self, rows: Iterable[Row]) -> None:
        """Import a batch of rows."""
        faces = list(self._readable(rows))
        ids = sorted({photo_id for photo_id, _, _ in faces})
        existing = {row[0] for row in self._photos.query(_EXISTING, (ids,))}
        stored = self._embeddings.query(_STORED, (ids, self._model)).fetchall()
        done = {photo_id for photo_id, _, is_imported in stored if not is_imported}
        there = {(photo_id, index) for photo_id, index, _ in stored}
        new = []
        for photo_id, index, vector in faces:
            if photo_id not in existing:
                self.counts.deleted_photos += 1
            elif photo_id in done:
                self.counts.already_processed += 1
            elif (photo_id, index) in there:
                self.counts.already_imported += 1
            else:
                new.append((photo_id, self._model, index, vector))
        self._insert(new)

    def _readable(self, rows: Iterable[Row]) -> Iterator[tuple[str, int, HalfVector]]:
        for number, name, text in rows:
            self.counts.rows += 1
            try:
                face = parse_name(name)
                vector = HalfVector(parse_embedding(text))
            except UnreadableRowError as error:
                self.counts.unreadable_rows += 1
                if len(self.counts.unreadable) < _NAMED:
                    shown = f"id {number}" if name is None else name[:_LONGEST_NAME]
                    self.counts.unreadable[shown] = str(error)
                continue
            if face in self._seen:
                self.counts.duplicates += 1
                continue
            self._seen.add(face)
            yield *face, vector

    def _insert(self, rows: list[tuple[str, str, int, HalfVector]]) -> None:
        if self._dry_run or not rows:
            self.counts.imported += len(rows)
            return
        with self._embeddings.bounded():
            insert = self._embeddings.schemas.statement(_INSERT).as_bytes(self._embeddings)
            inserted = [self._embeddings.execute(insert, row) for row in rows]
        imported = sum(cursor.rowcount for cursor in inserted)
        self.counts.imported += imported
        self.counts.already_imported += len(rows) - imported  # another import was faster
