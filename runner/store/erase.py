"""Removes the faces of photos at a user's request, even while runs store them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass

from runner.store.photos import PhotoTable
from runner.store.session import Session

_OF_ALBUM = 'SELECT id FROM {photos}."Photo" WHERE album_id = %s'
_COUNT = "SELECT count(*) FROM {faces}.faces WHERE photo_id = ANY(%b)"
_DELETE = """
WITH removed AS (DELETE FROM {faces}.faces WHERE photo_id = ANY(%b) RETURNING photo_id) SELECT count(*) FROM removed
"""
# It may be in any schema of the role: the replaced worker need not have used the one that the URL names.
_LEGACY = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'face_embeddings' AND relkind IN ('r', 'p'))"


@dataclass(frozen=True, slots=True)
class ErasedFaces:
    """How many `faces` were removed, and which of the photos still have a row in the API's table."""

    faces: int
    rows: frozenset[str]


def photos_of_album(photos: Session, album_id: str) -> set[str]:
    """Return the ids of the photos that the API's table has for an album."""
    return {row[0] for row in photos.query(_OF_ALBUM, (album_id,))}


def erase_faces(
    photos: Session, embeddings: Session, photo_ids: Collection[str], *, dry_run: bool = False
) -> ErasedFaces:
    """Remove the faces of the photos, of every model; with `dry_run` only count them.

    The rows of the photos are locked first, as a run does before it stores: what a run has begun to store is removed
    too, and a run that has lost its lease stores nothing afterwards. Idempotent.
    """
    together = photos is embeddings
    with photos.bounded():
        rows = frozenset(PhotoTable(photos).lock(photo_ids))
        with nullcontext() if together else embeddings.bounded():
            found = embeddings.query(_COUNT if dry_run else _DELETE, (sorted(photo_ids),)).fetchone()
    return ErasedFaces(found[0] if found else 0, rows)


def has_legacy_table(embeddings: Session) -> bool:
    """Return whether the table of the replaced worker exists, which contains embeddings too."""
    return embeddings.query(_LEGACY).fetchone() == (True,)
