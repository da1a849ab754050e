"""The API's table "Photo": reads and writes statuses, and stores the outcome of a batch in both databases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum

import psycopg
from psycopg import sql

from runner.errors import MissingGrantError, PhotosInvisibleError, SettingsError, UnstorableError
from runner.store import visibility
from runner.store.embeddings import EmbeddingStore, FaceLike
from runner.store.session import Session

# Every statement takes its row locks in the order of the ids, so that two runners cannot deadlock.
_LOCK = 'SELECT id, status::text FROM {photos}."Photo" WHERE id = ANY(%b) ORDER BY id FOR NO KEY UPDATE'
_PENDING = """
SELECT id FROM {photos}."Photo" WHERE id = ANY(%b) AND status IN ('UPLOADED', 'PROCESSING')
"""
_BEGIN = """
WITH present AS MATERIALIZED (
    SELECT id FROM {photos}."Photo" WHERE id = ANY(%b) ORDER BY id FOR NO KEY UPDATE
), begun AS (
    UPDATE {photos}."Photo" AS photo SET status = 'PROCESSING' FROM present
     WHERE photo.id = present.id AND photo.status NOT IN ('PROCESSING', 'READY', 'NO_FACES_FOUND')
       AND clock_timestamp() < to_timestamp(%s)
)
SELECT id FROM present
"""
_FINISH = """
WITH wanted AS MATERIALIZED (
    SELECT photo.id, new.status
      FROM unnest(%b::text[], %b::text[]) AS new (id, status) JOIN {photos}."Photo" AS photo USING (id)
     ORDER BY photo.id FOR NO KEY UPDATE OF photo
)
UPDATE {photos}."Photo" AS photo SET status = wanted.status::{status}."PhotoStatus" FROM wanted
 WHERE photo.id = wanted.id AND NOT (wanted.status = 'FAILED' AND photo.status IN ('READY', 'NO_FACES_FOUND'))
RETURNING photo.id, {age}
"""
# Prisma writes timestamps without a time zone, in UTC. A role may lack the right to read the column.
_AGE = sql.SQL("extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - photo.created_at)::float8")
_UNKNOWN_AGE = sql.SQL("NULL::float8")
_SCHEMAS_WITH_TABLE = """
SELECT n.nspname, has_schema_privilege(n.oid, 'USAGE')
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'status'
  JOIN pg_type AS t ON t.oid = a.atttypid AND t.typname = 'PhotoStatus'
 WHERE c.relname = 'Photo' AND c.relkind IN ('r', 'p', 'f', 'v') ORDER BY 1 LIMIT 10
"""


class PhotoStatus(StrEnum):
    """The API's enum of the same name."""

    UPLOADED = "UPLOADED"
    PROCESSING = "PROCESSING"
    READY = "READY"
    FAILED = "FAILED"
    NO_FACES_FOUND = "NO_FACES_FOUND"


_REPLACED = (
    f"{visibility.TABLE} is not the table that the photos were found in: it was replaced during the run, or "
    "DATABASE_URL points to another database now"
)
# A failure never replaces these.
SUCCEEDED = frozenset({PhotoStatus.READY, PhotoStatus.NO_FACES_FOUND})


class PhotoTable:
    """Statuses in the API's table, over a connection that may be shared. One statement per batch."""

    def __init__(self, connection: Session) -> None:
        self.connection = connection

    def check(self) -> None:
        """Raise `SettingsError` unless the schema that the URL names, or the role's own, has the API's table."""
        schemas = self.connection.schemas if self.connection.schemas.has_photos else self.connection.locate()
        if schemas.has_photos:
            return
        found = self.connection.query(_SCHEMAS_WITH_TABLE).fetchall()
        if found and not any(usable for _, usable in found):
            schema, user = sql.Identifier(found[0][0]), sql.Identifier(self.connection.info.user)
            grant = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, user)
            raise MissingGrantError("DATABASE_URL", grant.as_string(self.connection))
        others = ", ".join(f'"{name}"' for name, _ in found)
        place = (
            f'names the schema "{schemas.named}" (?schema=), which lacks'
            if schemas.named is not None
            else f"leads to a database without, in the schemas of the role's search path ({', '.join(schemas.path)}),"
        )
        advice = f"schemas that have them: {others}" if others else "no schema of this database has them"
        raise SettingsError(
            f'DATABASE_URL {place} the API\'s table "Photo" and its type "PhotoStatus" ({advice}): '
            "is it the API's database, and is ?schema= the API's schema?"
        )

    def pending(self, photo_ids: Iterable[str]) -> set[str]:
        """Return those of the photos that are UPLOADED or PROCESSING. A deleted photo is not pending."""
        return {row[0] for row in self.connection.query(_PENDING, (list(photo_ids),)).fetchall()}

    def begin(self, photo_ids: Iterable[str], *, until: float = math.inf) -> set[str]:
        """Set the photos to PROCESSING and return those that exist.

        A photo that is READY or NO_FACES_FOUND keeps its status: its job was delivered more than once. So does every
        photo if the statement takes effect after `until` (`time.monotonic`), when another run may own the leases: a run
        that was frozen does not replace the FAILED of that run, which nothing else tells from an earlier one.
        """
        values = (sorted(set(photo_ids)), self.connection.clock_at(until))
        rows = self.connection.query(_BEGIN, values).fetchall()
        return {row[0] for row in rows}

    def lock(self, photo_ids: Iterable[str]) -> dict[str, PhotoStatus]:
        """Lock the rows until the end of the caller's transaction and return the status of those that exist.

        Until then no row can be deleted, and another runner's `lock` of the same photo waits. Raises `SettingsError`
        for a status that is not one of `PhotoStatus`.
        """
        rows = self.connection.query(_LOCK, (sorted(set(photo_ids)),)).fetchall()
        try:
            return {photo_id: PhotoStatus(status) for photo_id, status in rows}
        except ValueError:
            raise SettingsError(
                'DATABASE_URL: a photo has a status that this version does not know; "Photo".status must be of the '
                'API\'s type "PhotoStatus"'
            ) from None

    def finish(self, statuses: Mapping[str, PhotoStatus]) -> dict[str, float | None]:
        """Write final statuses; return the photos that have them now, with the seconds since their upload if known.

        FAILED never replaces READY or NO_FACES_FOUND; photos that do not exist are left out.
        """
        age = _AGE if self.connection.schemas.has_created_at else _UNKNOWN_AGE
        values = (list(statuses), [str(status) for status in statuses.values()])
        return dict(self.connection.query(_FINISH, values, age=age).fetchall())


@dataclass(frozen=True, slots=True)
class NotStored:
    """The photos whose outcome was not stored: `gone` were deleted, and another runner owns the leases of `lost`.

    Nothing is stored for deleted photos, and nothing was changed for lost ones. `ready_seconds` has the photos that
    have just become READY, with the seconds since their upload.
    """

    gone: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    ready_seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


def store_photos(
    photos: PhotoTable,
    embeddings: EmbeddingStore,
    outcomes: Mapping[str, Sequence[FaceLike] | None],
    still_owned: Callable[[str], bool],
    is_same_table: Callable[[], bool] = lambda: True,
) -> NotStored:
    """Store the outcome of every photo: its faces, or None if it failed.

    The rows of the API's table are locked first: two runners with the same photo take turns, and no row
    is deleted while its embeddings are written. `still_owned` is called after that, and `is_same_table` if rows are
    missing. Embeddings are committed before statuses: after a crash in between, the lease expires, and the
    redelivery is harmless. If both tables use the same connection, there is one transaction.

    Raises `UnstorableError` if the database rejects the data of any photo, `PhotosInvisibleError` if row-level
    security may hide photos or the table was replaced, and psycopg's errors unchanged. Nothing is stored then, except
    embeddings that the redelivery replaces.
    """
    try:
        return _store(photos, embeddings, outcomes, still_owned, is_same_table)
    except psycopg.errors.InvalidTextRepresentation:  # of a literal: the column has another type than it should
        raise
    except (psycopg.DataError, psycopg.IntegrityError):
        raise UnstorableError from None  # the message of the server may repeat the data


def _store(
    photos: PhotoTable,
    embeddings: EmbeddingStore,
    outcomes: Mapping[str, Sequence[FaceLike] | None],
    still_owned: Callable[[str], bool],
    is_same_table: Callable[[], bool],
) -> NotStored:
    # Over one connection, the embeddings are part of the transaction that holds the locks.
    together = photos.connection is embeddings.connection
    with photos.connection.bounded():
        present = photos.lock(outcomes)
        owned = [photo_id for photo_id in outcomes if still_owned(photo_id)]
        gone = frozenset(owned) - present.keys()
        if gone:  # before anything is deleted
            if not is_same_table():
                raise PhotosInvisibleError(_REPLACED)
            visibility.check_missing(photos.connection, gone, present)
        final = {photo_id: _final_status(outcomes[photo_id]) for photo_id in owned if photo_id in present}
        # An attempt that crashed between the databases leaves faces; those of a FAILED photo must not match.
        written = {
            photo_id: outcomes[photo_id] or ()
            for photo_id, status in final.items()
            if status in SUCCEEDED or present[photo_id] not in SUCCEEDED
        }
        with nullcontext() if together else embeddings.connection.bounded():
            if written:
                embeddings.replace(written)
            if gone:
                embeddings.delete(gone)
        ages = photos.finish(final)
    ready = {photo_id for photo_id, status in final.items() if status is PhotoStatus.READY}
    # A photo that was READY before was processed again: its age is not the time that its uploader has waited.
    fresh = {photo_id for photo_id in ready if present[photo_id] is not PhotoStatus.READY}
    seconds = {photo_id: age for photo_id, age in ages.items() if photo_id in fresh and age is not None}
    return NotStored(gone, frozenset(outcomes).difference(owned), seconds)


def _final_status(faces: Sequence[FaceLike] | None) -> PhotoStatus:
    if faces is None:
        return PhotoStatus.FAILED
    return PhotoStatus.READY if faces else PhotoStatus.NO_FACES_FOUND
