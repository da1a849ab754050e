"""The API's table "Photo": the status of every photo, and storing the outcome of a batch in both databases."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING

import psycopg

from runner.errors import SettingsError
from runner.store.database import is_transient
from runner.store.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from runner.store.embeddings import EmbeddingStore, FaceLike
    from runner.store.session import Session

# Every statement takes its row locks in the order of the ids, so that two runners never wait for each other.
_LOCK = 'SELECT id, status::text FROM {photos}."Photo" WHERE id = ANY(%b) ORDER BY id FOR NO KEY UPDATE'
_BEGIN = """
WITH present AS MATERIALIZED (
    SELECT id FROM {photos}."Photo" WHERE id = ANY(%b) ORDER BY id FOR NO KEY UPDATE
), begun AS (
    UPDATE {photos}."Photo" AS photo SET status = 'PROCESSING' FROM present
     WHERE photo.id = present.id AND photo.status NOT IN ('PROCESSING', 'READY', 'NO_FACES_FOUND')
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
RETURNING photo.id
"""
_SCHEMAS_WITH_TABLE = """
SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
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


# What a success says; a failure never takes it back.
SUCCEEDED = frozenset({PhotoStatus.READY, PhotoStatus.NO_FACES_FOUND})


class PhotoTable:
    """Statuses in the API's table, over a connection that others may be using too. One statement a batch."""

    def __init__(self, connection: Session) -> None:
        self.connection = connection

    def check(self) -> None:
        """Raise `SettingsError` unless the schema that the URL names, or the role's own, has the API's table."""
        schemas = self.connection.schemas if self.connection.schemas.has_photos else self.connection.locate()
        if schemas.has_photos:
            return
        others = ", ".join(f'"{row[0]}"' for row in self.connection.query(_SCHEMAS_WITH_TABLE).fetchall())
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

    def begin(self, photo_ids: Iterable[str]) -> set[str]:
        """Set the photos to PROCESSING and return those that exist.

        A photo that is READY or NO_FACES_FOUND stays so: it is a job that was delivered again.
        """
        rows = self.connection.query(_BEGIN, (sorted(set(photo_ids)),)).fetchall()
        return {row[0] for row in rows}

    def lock(self, photo_ids: Iterable[str]) -> dict[str, PhotoStatus]:
        """Lock the rows until the end of the caller's transaction and return the status of those that exist.

        Until then no row vanishes, and no other runner gets past its own `lock` of the same photo.
        """
        rows = self.connection.query(_LOCK, (sorted(set(photo_ids)),)).fetchall()
        return {photo_id: PhotoStatus(status) for photo_id, status in rows}

    def finish(self, statuses: Mapping[str, PhotoStatus]) -> set[str]:
        """Write final statuses and return the photos that have them now.

        FAILED never replaces READY or NO_FACES_FOUND; photos that do not exist are left out.
        """
        rows = self.connection.query(
            _FINISH, (list(statuses), [str(status) for status in statuses.values()])
        ).fetchall()
        return {row[0] for row in rows}


def store_photos(
    photos: PhotoTable,
    embeddings: EmbeddingStore,
    outcomes: Mapping[str, Sequence[FaceLike] | None],
    still_owned: Callable[[str], bool],
) -> dict[str, Stored]:
    """Store the outcome of every photo (its faces, or None where it failed) and return what became of each.

    The rows of the API's table are locked first: two runners with the same photo come one after the other, and no
    row vanishes while its embeddings are written. `still_owned` is asked after that. Embeddings are committed
    before statuses, so a crash in between leaves a lease that falls due, and repeating is harmless; where both
    tables are reached over the same connection there is one transaction.

    A batch that the database refuses for its data is stored photo by photo. Transient errors of psycopg come out
    as they are, with nothing half-done but what a repetition overwrites.
    """
    try:
        return _store(photos, embeddings, outcomes, still_owned)
    except psycopg.Error as error:
        if is_transient(error) or not isinstance(error, psycopg.DataError | psycopg.IntegrityError):
            raise
    if len(outcomes) > 1:
        return {
            photo_id: store_photos(photos, embeddings, {photo_id: faces}, still_owned)[photo_id]
            for photo_id, faces in outcomes.items()
        }
    stored = _store(photos, embeddings, dict.fromkeys(outcomes), still_owned)
    return {photo_id: Stored.REFUSED if what is Stored.FAILED else what for photo_id, what in stored.items()}


def _store(
    photos: PhotoTable,
    embeddings: EmbeddingStore,
    outcomes: Mapping[str, Sequence[FaceLike] | None],
    still_owned: Callable[[str], bool],
) -> dict[str, Stored]:
    # Over one connection, the embeddings are part of the transaction that holds the locks.
    together = photos.connection is embeddings.connection
    with photos.connection.bounded():
        present = photos.lock(outcomes)
        owned = [photo_id for photo_id in outcomes if still_owned(photo_id)]
        stored = dict.fromkeys(outcomes, Stored.LOST)
        stored |= {photo_id: _what(photo_id in present, outcomes[photo_id]) for photo_id in owned}
        with nullcontext() if together else embeddings.connection.bounded():
            _write_embeddings(embeddings, outcomes, stored, present)
        photos.finish({photo_id: _STATUS[what] for photo_id, what in stored.items() if what in _STATUS})
    return stored


_STATUS = {
    Stored.STORED: PhotoStatus.READY,
    Stored.NO_FACES: PhotoStatus.NO_FACES_FOUND,
    Stored.FAILED: PhotoStatus.FAILED,
}


def _what(exists: bool, faces: Sequence[FaceLike] | None) -> Stored:  # noqa: FBT001 - private, named at the call
    if not exists:
        return Stored.GONE
    if faces is None:
        return Stored.FAILED
    return Stored.STORED if faces else Stored.NO_FACES


def _write_embeddings(
    embeddings: EmbeddingStore,
    outcomes: Mapping[str, Sequence[FaceLike] | None],
    stored: Mapping[str, Stored],
    present: Mapping[str, PhotoStatus],
) -> None:
    """Write the faces of what succeeded, and remove what an earlier attempt may have left of the rest."""
    written = {k: outcomes[k] or () for k, what in stored.items() if what in (Stored.STORED, Stored.NO_FACES)}
    # An attempt that crashed between the databases leaves faces; with the photo FAILED they must not match.
    written |= {k: () for k, what in stored.items() if what is Stored.FAILED and present[k] not in SUCCEEDED}
    gone = [photo_id for photo_id, what in stored.items() if what is Stored.GONE]
    if written:
        embeddings.replace(written)
    if gone:
        embeddings.delete(gone)
