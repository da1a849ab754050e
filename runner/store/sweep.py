"""Removes the embeddings of deleted photos: biometric data that the API itself never removes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runner.errors import CheckFailedError
from runner.store.session import Session

BATCH = 5000
# A sweep that would remove more than this share looks like the wrong database, but only above this number of photos:
# in a small installation one deleted album may be as much.
MAX_SHARE = 0.1
MANY_PHOTOS = 100

# A photo that is uploaded again under its old id may get new faces during the sweep, which must be kept.
_DELETE = "DELETE FROM {faces}.faces WHERE photo_id = ANY(%b) AND created_at < %b::timestamptz"
_COUNT = "SELECT count(*) FROM {faces}.faces WHERE photo_id = ANY(%b)"
_NEXT_PHOTOS = "SELECT DISTINCT photo_id FROM {faces}.faces WHERE photo_id > %s ORDER BY photo_id LIMIT %s"
_EXISTING = 'SELECT id FROM {photos}."Photo" WHERE id = ANY(%b)'


@dataclass(slots=True)
class Swept:
    """The counts of a sweep: photos with embeddings, how many of them are deleted, and removed faces."""

    photos: int = 0
    deleted_photos: int = 0
    removed_faces: int = 0


def sweep(
    photos: Session,
    embeddings: Session,
    *,
    dry_run: bool = False,
    allow_all: bool = False,
    max_share: float = MAX_SHARE,
    batch: int = BATCH,
) -> Swept:
    """Remove the faces, of every model, of photos that are not in the API's table, and return the counts.

    `photos` leads to the API's table and `embeddings` to the faces. Safe while runners are active, which
    write faces only while they lock the photo's row. With `dry_run` everything is counted and nothing removed. Raises
    `CheckFailedError` if no photo is left, or more than `max_share` (0 to 1) of many are gone, which looks like the
    wrong DATABASE_URL, unless `allow_all` is set. Idempotent.
    """
    started = embeddings.one_row("SELECT clock_timestamp()")
    swept = Swept()
    orphans: list[str] = []
    for ids in _photo_ids(embeddings, batch):
        existing = {row[0] for row in photos.query(_EXISTING, (ids,))}
        swept.photos += len(ids)
        orphans += [photo_id for photo_id in ids if photo_id not in existing]
    swept.deleted_photos = len(orphans)
    if orphans and len(orphans) == swept.photos and not (allow_all or dry_run):
        raise CheckFailedError(
            f"none of the {swept.photos} photos with embeddings is in the API's table, which looks like the wrong "
            "DATABASE_URL or ?schema=; if all of them really were deleted, add --force. Nothing was removed"
        )
    if len(orphans) > max(MANY_PHOTOS, max_share * swept.photos) and not (allow_all or dry_run):
        raise CheckFailedError(
            f"{len(orphans)} of {swept.photos} photos with embeddings are not in the API's table, more than "
            f"{max_share:.0%} (--max-share), which looks like the wrong DATABASE_URL or ?schema=; if they really were "
            "deleted, raise --max-share for one sweep, or add --force. Nothing was removed"
        )
    for start in range(0, len(orphans), batch):
        part = orphans[start : start + batch]
        if dry_run:
            found = embeddings.query(_COUNT, (part,)).fetchone()
            swept.removed_faces += found[0] if found else 0
        else:
            swept.removed_faces += embeddings.query(_DELETE, (part, started[0])).rowcount
    return swept


def _photo_ids(embeddings: Session, batch: int) -> Iterator[list[str]]:
    last = ""
    while ids := [row[0] for row in embeddings.query(_NEXT_PHOTOS, (last, batch))]:
        yield ids
        last = ids[-1]
