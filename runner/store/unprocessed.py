"""Finds photos that are not processed, or not with the current model, page by page in the API's table."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from runner.errors import SettingsError
from runner.store.photos import SUCCEEDED, PhotoStatus
from runner.store.session import Session, identifier

PAGE = 1000
_COUNT_PAGE = 10_000

# Prisma writes timestamps in UTC, into a column without a time zone.
_MOMENT = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::timestamp - make_interval(secs => %s)"
_COLUMNS = """
SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
 WHERE attrelid = format('%%I."Photo"', %s::text)::regclass AND attnum > 0 AND NOT attisdropped
"""
_PHOTOS = """
SELECT {columns} FROM {photos}."Photo"
 WHERE id > %s AND status::text = ANY(%b::text[]) AND (created_at IS NULL OR created_at < %s)
   AND (%s::text IS NULL OR album_id = %s) ORDER BY id LIMIT %s
"""
_READY = """SELECT id FROM {photos}."Photo" WHERE id > %s AND status::text = 'READY' ORDER BY id LIMIT %s"""
_EMBEDDED = "SELECT DISTINCT photo_id FROM {faces}.faces WHERE photo_id = ANY(%b) AND model = %s"
_HAS_MODEL = "SELECT EXISTS (SELECT FROM {faces}.faces WHERE model = %s)"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which photos: their statuses, uploaded before `before` (UTC, by PostgreSQL's clock), and of one album or all.

    READY and NO_FACES_FOUND photos are skipped if they have embeddings of `model`.
    """

    statuses: frozenset[PhotoStatus]
    before: datetime
    album: str | None
    model: str


@dataclass(frozen=True, slots=True)
class UnprocessedPhoto:
    """A photo, and the requested `columns`, as text."""

    id: str
    status: PhotoStatus
    columns: dict[str, str | None]


def moment_before(photos: Session, seconds: float) -> datetime:
    """Return the time in UTC at which PostgreSQL's clock was `seconds` ago."""
    moment: datetime = photos.one_row(_MOMENT, (seconds,))[0]
    return moment


def check_columns(photos: Session, wanted: Collection[str]) -> None:
    """Raise `SettingsError` unless the API's table has the columns."""
    row = photos.query(_COLUMNS, (photos.schemas.photos,)).fetchone()
    known: list[str] = row[0] if row else []
    if unknown := sorted(set(wanted) - set(known)):
        raise SettingsError(
            f'the URL of photos names {", ".join(unknown)}, which the API\'s table "Photo" does not have: its columns '
            f"are {', '.join(known)}"
        )


def has_model(embeddings: Session, model: str) -> bool:
    """Return whether any photo has embeddings of the model."""
    return embeddings.query(_HAS_MODEL, (model,)).fetchone() == (True,)


def page(
    photos: Session, embeddings: Session, selection: Selection, columns: Sequence[str], last: str, *, size: int = PAGE
) -> tuple[list[UnprocessedPhoto], str | None]:
    """Return the selected photos among the next `size` rows behind the id `last`, and the last id of these rows.

    The last id is None if there are no further rows.
    """
    names = ["id", "status", *columns]
    shown = sql.SQL(", ").join(sql.SQL("{}::text").format(identifier(name)) for name in names)
    parameters = (last, sorted(selection.statuses), selection.before, selection.album, selection.album, size)
    rows = photos.query(_PHOTOS, parameters, columns=shown).fetchall()
    done = [row[0] for row in rows if row[1] in SUCCEEDED]
    embedded = _embedded(embeddings, done, selection.model) if done else set()
    found = [
        UnprocessedPhoto(row[0], PhotoStatus(row[1]), dict(zip(columns, row[2:], strict=True)))
        for row in rows
        if row[0] not in embedded
    ]
    return found, rows[-1][0] if len(rows) == size else None


def _embedded(embeddings: Session, photo_ids: Sequence[str], model: str) -> set[str]:
    return {row[0] for row in embeddings.query(_EMBEDDED, (list(photo_ids), model))}


@dataclass(frozen=True, slots=True)
class Missing:
    """How many photos are READY without embeddings of a model; a lower bound if the count is not `complete`."""

    count: int
    complete: bool


def count_missing(
    photos: Session,
    embeddings: Session,
    model: str,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Missing:
    """Count the photos that are READY without embeddings of `model`, for about `seconds`."""
    end, count = clock() + seconds, 0
    for ids in _ready(photos):
        count += len(ids) - len(_embedded(embeddings, ids, model))
        if clock() > end:
            return Missing(count, complete=False)
    return Missing(count, complete=True)


def _ready(photos: Session) -> Iterator[list[str]]:
    last = ""
    while ids := [row[0] for row in photos.query(_READY, (last, _COUNT_PAGE))]:
        yield ids
        last = ids[-1]
