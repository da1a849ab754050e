"""The visibility guard, which distinguishes deleted photos from photos that this run cannot see.

Neither has a visible row. A run that mistook invisible photos for deleted ones would acknowledge every job of the list
and leave the photos UPLOADED permanently. docs/explanation/queue-protocol.md has the rule, its reasons and its limits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from runner.errors import NO_VISIBLE_ROW, ROW_SECURITY_ADVICE, PhotosInvisibleError

if TYPE_CHECKING:  # `settings` imports this module: redis and psycopg must not come with it
    from runner.queue.databases import KnownDatabases
    from runner.store.repository import Repository

_SAME_DEPLOYMENT = "check that DATABASE_URL and REDIS_URL belong to the same deployment"


class VisibilityGuard:
    """Stops a run if the photos of its jobs are missing for another reason than deletion.

    `known` is None for a job that comes from no list: then it is unknown to which database its photo belongs.
    """

    def __init__(self, repository: Callable[[], Repository], known: KnownDatabases | None) -> None:
        self._repository = repository
        self._known = known
        self._recorded = False
        self._missing: set[str] = set()  # since a photo was last found

    def check(self, photo_ids: Collection[str], found: Collection[str]) -> None:
        """Raise `PhotosInvisibleError` unless the `photo_ids` that are not in `found` were deleted."""
        if not photo_ids:
            return
        if found:
            self._missing.clear()
            self._record()
            return
        self._missing.update(photo_ids)
        if (reason := self._reason()) is not None:
            raise PhotosInvisibleError(reason)

    def _record(self) -> None:
        if self._known is not None and not self._recorded:
            self._known.add(self._repository().identity())
            self._recorded = True

    def _reason(self) -> str | None:
        """Return why the missing photos cannot be assumed to be deleted, or None if they can."""
        seen = self._repository().visibility()
        many = len(self._missing) > 1
        none = f"none of {len(self._missing)} photos is there" if many else "the photo is not there"
        if not seen.any_row and seen.filtered:
            return NO_VISIBLE_ROW
        if not seen.any_row:
            return (
                f'the table "Photo" is empty: {_SAME_DEPLOYMENT}. If all photos were deleted, the next upload ends this'
            )
        if many and seen.filtered:
            return f"{none}, and row-level security may hide them: {ROW_SECURITY_ADVICE}"
        return self._unknown(none, many=many)

    def _unknown(self, none: str, *, many: bool) -> str | None:
        if self._known is None or self._recorded:
            return None
        known = self._known.all()
        if self._repository().identity() in known:
            return None
        if known:
            return f"{none}, and photos of this list were found in another database: {_SAME_DEPLOYMENT}"
        if many:
            return (
                f"{none}, and no photo of this list was ever found in this database: {_SAME_DEPLOYMENT}. If they were "
                "deleted, the first photo that is found ends this"
            )
        return None
