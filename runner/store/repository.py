"""What a run reads and writes in PostgreSQL, over connections that are reopened after they were lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from runner.settings import Settings
from runner.store import schema, visibility
from runner.store.database import Database, retrying
from runner.store.embeddings import EmbeddingStore, FaceLike, Matches
from runner.store.photos import NotStored, PhotoTable, store_photos
from runner.store.visibility import Visibility

T = TypeVar("T")


class Repository:
    """The API's table "Photo" and the embeddings of one model, in one database or in two.

    Every method retries after transient errors of PostgreSQL for `connect_seconds`, then raises
    `DatabaseUnreachableError`. A method for jobs raises `LockTimeoutError` or `StatementTimeoutError` at once: the
    jobs are then retried one by one. All methods are idempotent.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        application_name: str,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Raise `SettingsError` if libpq cannot parse a URL. Does not connect.

        `progress` is called before each access.
        """
        self.model = model
        self._progress = progress
        self._identity: str | None = None
        self._seconds = settings.connect_timeout_seconds
        database = partial(
            Database,
            application_name=application_name,
            statement_seconds=settings.statement_timeout_seconds,
            lock_seconds=settings.lock_timeout_seconds,
        )
        self._photos = database(settings.database_url, variable="DATABASE_URL")
        same = settings.embeddings_database_url == settings.database_url
        self._embeddings = (
            self._photos if same else database(settings.embeddings_database_url, variable="EMBEDDINGS_DATABASE_URL")
        )

    def check(self) -> None:
        """Connect both; raise `SchemaError` or `SettingsError` if one is not what this version needs."""
        self._retrying(lambda: PhotoTable(self._photos.connection).check())
        self._retrying(lambda: schema.check(self._embeddings.connection))

    def begin(self, photo_ids: Sequence[str], until: Callable[[], float] = lambda: math.inf) -> set[str]:
        """Set the photos to PROCESSING and return those that exist (see `PhotoTable.begin`).

        `until` is called before each attempt.
        """
        if not photo_ids:
            return set()
        return self._for_jobs(lambda: PhotoTable(self._photos.connection).begin(photo_ids, until=until()))

    def visibility(self) -> Visibility:
        """Return what the role of DATABASE_URL sees of the API's table."""
        return self._retrying(lambda: visibility.read(self._photos.connection))

    def identity(self) -> str:
        """Return an identity of the API's table (see `visibility.identity`), which `store` then expects."""
        self._identity = self._retrying(self._identity_now)
        return self._identity

    def _identity_now(self) -> str:
        return visibility.identity(self._photos.connection, self._photos.address)

    def _is_same_table(self) -> bool:
        return self._identity in (None, self._identity_now())

    def pending(self, photo_ids: Collection[str]) -> set[str]:
        """Return those of the photos that are UPLOADED or PROCESSING."""
        return self._for_jobs(lambda: PhotoTable(self._photos.connection).pending(photo_ids)) if photo_ids else set()

    def store(self, outcomes: Mapping[str, Sequence[FaceLike] | None], still_owned: Callable[[str], bool]) -> NotStored:
        """Store the outcome of every photo (see `store_photos`)."""
        if not outcomes:
            return NotStored()
        return self._for_jobs(
            lambda: store_photos(
                PhotoTable(self._photos.connection), self._faces(), outcomes, still_owned, self._is_same_table
            )
        )

    def match(
        self, selfie: NDArray[np.float32] | Sequence[NDArray[np.float32]], stored_ids: Collection[str], threshold: float
    ) -> Matches:
        """Compare a selfie with an album (see `EmbeddingStore.match`)."""
        return self._for_jobs(lambda: self._faces().match(selfie, stored_ids, threshold))

    def close(self) -> None:
        """Close the connections."""
        self._photos.close()
        self._embeddings.close()

    def _faces(self) -> EmbeddingStore:
        return EmbeddingStore(self._embeddings.connection, self.model)

    def _retrying(self, work: Callable[[], T]) -> T:
        self._progress()
        return retrying(work, [self._photos, self._embeddings], seconds=self._seconds)

    def _for_jobs(self, work: Callable[[], T]) -> T:
        self._progress()
        return retrying(work, [self._photos, self._embeddings], seconds=self._seconds, of_jobs=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
