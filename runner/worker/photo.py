"""The handler of photos: from an image to its embeddings and its status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from runner.errors import InvalidJobError, PhotoGoneError, PoisonJobError
from runner.queue.leases import Lease
from runner.queue.parking import Parking
from runner.worker.messages import ProcessJob
from runner.worker.outage import OutageGate
from runner.worker.task import Outcome, Task
from runner.worker.visibility import VisibilityGuard

if TYPE_CHECKING:  # `settings` imports this module: ssl and psycopg must not come with it
    from runner.images.fetch import Fetcher
    from runner.store.repository import Repository

# Raised before the photo was looked up, so a missing row does not explain them: the job is dead-lettered anyway.
_FAULTS_OF_PAYLOAD = (InvalidJobError, PoisonJobError)


class PhotoHandler:
    """Moves a photo from UPLOADED to PROCESSING to READY, NO_FACES_FOUND or FAILED."""

    def __init__(
        self,
        repository: Callable[[], Repository],
        fetcher: Fetcher,
        owns: Callable[[Lease], bool],
        owned_until: Callable[[Lease], float],
        guard: VisibilityGuard,
        *,
        parking: Parking | None,
        outages: OutageGate | None,
    ) -> None:
        self._parking = parking
        self._outages = outages
        self._repository = repository
        self._fetcher = fetcher
        self._owns = owns
        self._owned_until = owned_until
        self._guard = guard

    def resume(self, task: Task[ProcessJob]) -> None:
        """Do nothing: the state is about the photo's server, and is used by the `OutageGate`."""

    def begin(self, tasks: Sequence[Task[ProcessJob]]) -> None:
        """Set the photos to PROCESSING in one statement; a task whose photo is deleted gets its `error`.

        Raises `PhotosInvisibleError` if photos are missing and deletion is not the likely reason.
        """
        photo_ids = [task.job.photo_id for task in tasks if task.job]
        existing = self._repository().begin(photo_ids, lambda: min(self._owned_until(task.lease) for task in tasks))
        self._guard.check(photo_ids, existing)
        for task in tasks:
            if task.job and task.job.photo_id not in existing:
                task.error = PhotoGoneError()

    def read(self, task: Task[ProcessJob]) -> bytes:
        """Fetch the photo."""
        assert task.job is not None  # noqa: S101 - only accepted tasks are read
        with self._outages.asking(task) if self._outages is not None else nullcontext():
            return self._fetcher.fetch(task.job.image_url)

    def conclude(self, tasks: Sequence[Task[ProcessJob]]) -> None:
        """Write embeddings and statuses, and wake the comparisons that wait for these photos."""
        try:
            self._store_all(tasks)
        finally:  # also after a failure: a comparison that is woken early only checks its album again
            self._wake_comparisons(tasks)

    def _wake_comparisons(self, tasks: Sequence[Task[ProcessJob]]) -> None:
        """Report the photos before their leases end: after a crash in between, the next delivery does so again."""
        photo_ids = [photo_id for task in tasks if (photo_id := _photo_id(task)) is not None]
        if self._parking is not None and photo_ids:
            self._parking.photos_done(photo_ids)

    def _store_all(self, tasks: Sequence[Task[ProcessJob]]) -> None:
        """Store the results; two jobs for one photo are stored one after the other."""
        remaining = list(tasks)
        while remaining:
            batch: dict[str, Task[ProcessJob]] = {}
            later: list[Task[ProcessJob]] = []
            for task in remaining:
                photo_id = _photo_id(task)
                if photo_id is None:
                    continue  # without a photo id there is no row to update
                if photo_id in batch:
                    later.append(task)
                else:
                    batch[photo_id] = task
            self._store(batch)
            remaining = later

    def _store(self, batch: dict[str, Task[ProcessJob]]) -> None:
        results = {photo_id: task.faces if task.error is None else None for photo_id, task in batch.items()}
        not_stored = self._repository().store(results, lambda photo_id: self._owns(batch[photo_id].lease))
        for photo_id, seconds in not_stored.ready_seconds.items():
            batch[photo_id].ready_seconds = seconds
        for photo_id in not_stored.lost:
            batch[photo_id].outcome = Outcome.LOST
        for photo_id in not_stored.gone:
            if not isinstance(batch[photo_id].error, _FAULTS_OF_PAYLOAD):
                batch[photo_id].error = PhotoGoneError()

    def confirmed(self, tasks: Sequence[Task[ProcessJob]]) -> list[Task[ProcessJob]]:
        """Return all: nothing overwrites a stored photo."""
        return list(tasks)

    def stop_watching(self, tasks: Sequence[Task[ProcessJob]]) -> None:
        """Do nothing: nothing is watched."""


def _photo_id(task: Task[ProcessJob]) -> str | None:
    if task.job is not None:
        return task.job.photo_id
    return task.error.subject if task.error is not None else None
