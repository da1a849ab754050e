"""Process jobs: a photo in, its embeddings and its status out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.errors import PhotoGoneError, UnstorableError
from runner.store.stored import Stored
from runner.worker.messages import ProcessJob, decode_process
from runner.worker.task import Conclusion, Task

if TYPE_CHECKING:
    from runner.images.fetch import Fetcher
    from runner.queue.leases import Lease
    from runner.store.stores import Stores

_CONCLUSIONS = {
    Stored.STORED: Conclusion.DONE,
    Stored.NO_FACES: Conclusion.DONE,
    Stored.FAILED: Conclusion.DONE,
    Stored.REFUSED: Conclusion.DONE,
    Stored.GONE: Conclusion.GONE,
    Stored.LOST: Conclusion.LOST,
}


class ProcessHandler:
    """UPLOADED → PROCESSING → READY, NO_FACES_FOUND or FAILED."""

    def __init__(self, stores: Callable[[], Stores], fetcher: Fetcher, owns: Callable[[Lease], bool]) -> None:
        self._stores = stores
        self._fetcher = fetcher
        self._owns = owns

    def decode(self, payload: bytes) -> ProcessJob:
        """Return the job that a payload holds, or raise `InvalidJobError`."""
        return decode_process(payload)

    def begin(self, tasks: Sequence[Task[ProcessJob]]) -> None:
        """Set the photos to PROCESSING in one statement; where a photo is deleted, its task gets its `error`."""
        existing = self._stores().begin([task.job.photo_id for task in tasks if task.job])
        for task in tasks:
            if task.job and task.job.photo_id not in existing:
                task.error = PhotoGoneError()

    def read(self, task: Task[ProcessJob]) -> bytes:
        """Fetch the photo."""
        assert task.job is not None  # noqa: S101 - only accepted tasks are read
        return self._fetcher.fetch(task.job.image_url)

    def conclude(self, tasks: Sequence[Task[ProcessJob]]) -> dict[Task[ProcessJob], Conclusion]:
        """Write embeddings and statuses. Two jobs for one photo are stored one after the other."""
        conclusions: dict[Task[ProcessJob], Conclusion] = {}
        remaining = list(tasks)
        while remaining:
            batch: dict[str, Task[ProcessJob]] = {}
            later: list[Task[ProcessJob]] = []
            for task in remaining:
                photo_id = _photo_id(task)
                if photo_id is None:
                    conclusions[task] = Conclusion.DONE  # nobody knows which photo: there is no status to write
                elif photo_id in batch:
                    later.append(task)
                else:
                    batch[photo_id] = task
            conclusions |= self._store_batch(batch)
            remaining = later
        return conclusions

    def _store_batch(self, batch: dict[str, Task[ProcessJob]]) -> dict[Task[ProcessJob], Conclusion]:
        outcomes = {photo_id: task.faces if task.error is None else None for photo_id, task in batch.items()}
        stored = self._stores().store(outcomes, lambda photo_id: self._owns(batch[photo_id].lease))
        for photo_id, task in batch.items():
            if stored[photo_id] is Stored.REFUSED:
                task.error = UnstorableError()
        return {task: _CONCLUSIONS[stored[photo_id]] for photo_id, task in batch.items()}

    def confirmed(self) -> list[Task[ProcessJob]]:
        """Return nothing: what is stored here nobody overwrites."""
        return []

    def stop_watching(self) -> list[Task[ProcessJob]]:
        """Return nothing, as `confirmed`."""
        return []


def _photo_id(task: Task[ProcessJob]) -> str | None:
    if task.job is not None:
        return task.job.photo_id
    return task.error.subject if task.error is not None else None
