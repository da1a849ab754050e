"""Pushes jobs for photos that have none. It keeps no state: the photos are determined at each start.

So it can be stopped at any time and started again: a photo that was pushed has a job, and a finished one has its
status and its embeddings. The order keeps a photo from getting a second job. First the lock keeps every other
`reprocess` out; then the jobs that exist are read; only then the API's table. A photo that has a job at that moment is
skipped, even if the job ends in the meantime, and photos that the API has added since are too young to be selected.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol, TypeVar

from redis import Redis

from runner.error_codes import job_error_codes
from runner.errors import CheckFailedError, InvalidJobError, LeaseLostError
from runner.photo_url import UrlTemplate
from runner.queue import keys
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.pusher import Pusher
from runner.queue.search import Dead, JobSearch
from runner.store.database import Database, retrying
from runner.store.photos import PhotoStatus
from runner.store.unprocessed import Selection, UnprocessedPhoto, check_columns, moment_before, page
from runner.worker.kinds import PHOTO
from runner.worker.messages import decode_process, fields

T = TypeVar("T")

UNKNOWN_REASON = "unknown"
# The jobs of one push; how many jobs wait is read before each.
BATCH = 100
_POLL_SECONDS = 0.5
_RENEWALS = 3  # of the lock, before it expires


TRANSIENT_REASONS = frozenset(code for code, transient in job_error_codes().items() if transient) - {
    LeaseLostError.code
}


class Cause(StrEnum):
    """Why a photo is pushed."""

    ORPHANED = "orphaned"  # UPLOADED or PROCESSING, and no job
    FAILED = "failed"  # with an error code that was selected
    NO_EMBEDDINGS = "no_embeddings"  # processed, but without embeddings of the model


class Skipped(StrEnum):
    """Why a selected photo is skipped."""

    HAS_JOB = "has_job"
    OTHER_CODE = "other_code"  # its dead letter has an error code that was not selected
    UNKNOWN_CODE = "unknown_code"  # FAILED, and no dead letter says why
    NO_URL = "no_url"  # a column of the URL is empty, or the id is not valid
    MOVED = "moved"  # its dead letter was requeued or purged in the meantime


@dataclass(frozen=True, slots=True)
class Choice:
    """What to push: by status, age in seconds, album, error code, and model; a `limit` of 0 is no limit."""

    statuses: frozenset[PhotoStatus]
    reasons: frozenset[str]
    age_seconds: float
    album: str | None
    model: str
    max_waiting: int
    limit: int = 0


@dataclass(slots=True)
class Report:
    """The result. `chosen` and `skipped` are photos by cause; `pushed` and `requeued` count what was done."""

    chosen: Counter[Cause] = field(default_factory=Counter)
    skipped: Counter[Skipped] = field(default_factory=Counter)
    pushed: int = 0
    requeued: int = 0

    @property
    def done(self) -> int:
        """How many jobs this has added to the list."""
        return self.pushed + self.requeued


class Progress(Protocol):
    """Shows the progress."""

    def start(self, total: int) -> None:
        """Begin, with the number of photos."""

    def update(self, done: int, waiting: int) -> None:
        """Show that `done` photos were pushed, and `waiting` jobs are in the list."""

    def close(self) -> None:
        """End."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One photo to push: by its dead letter, or by a payload."""

    cause: Cause
    dead_letter_id: str | None
    payload: bytes = field(default=b"", repr=False)


class Reprocessing:
    """One `reprocess`. Raises `RunnerError`; after any failure, starting it again completes the work."""

    def __init__(
        self,
        redis: Redis,
        photos: Database,
        embeddings: Database,
        choice: Choice,
        *,
        template: UrlTemplate | None,
        connect_seconds: float,
        lock_seconds: float,
    ) -> None:
        self.report = Report()
        self._redis = redis
        self._photos = photos
        self._embeddings = embeddings
        self._choice = choice
        self._template = template
        self._connect_seconds = connect_seconds
        self._lock_seconds = lock_seconds
        self._pusher = Pusher(redis, PHOTO.queue, seconds=lock_seconds)
        self._dead_letters = DeadLetters(redis, PHOTO.queue)
        self._renewed = 0.0
        self._busy: set[str] = set()
        self._dead: dict[str, tuple[str, str]] = {}
        self._selection: Selection | None = None

    def count(self) -> int:
        """Count the work in `report`, and change nothing."""
        self._find_jobs(keep=lambda: None)
        return self._count()

    def run(self, progress: Progress, say: Callable[[str], None]) -> None:
        """Push every selected photo, and return when all of them are in the list."""
        self._acquire(say)
        try:
            self._find_jobs(keep=self._keep)
            total = self._count()
            progress.start(total)
            self._push_all(total, progress)
        finally:
            self._pusher.release()

    # The lock

    def _acquire(self, say: Callable[[str], None]) -> None:
        """Take the lock. If another process has it, wait until it expires: that process may have been killed."""
        lowest: float | None = None
        while not self._pusher.acquire():
            remaining = self._pusher.remaining()
            if lowest is None:
                say("waiting for the lock of another reprocess")
            elif remaining > lowest:
                raise CheckFailedError(
                    "another reprocess is running: wait until it ends, or stop it and start this one again"
                )
            lowest = remaining
            time.sleep(_POLL_SECONDS)
        self._renewed = time.monotonic()

    def _keep(self) -> None:
        if time.monotonic() - self._renewed > self._lock_seconds / _RENEWALS:
            self._pusher.keep()
            self._renewed = time.monotonic()

    # Selecting

    def _find_jobs(self, keep: Callable[[], None]) -> None:
        """Read which photos have jobs; photos selected later must be older than this."""
        columns = self._template.columns if self._template else ()
        before = self._query(lambda: moment_before(self._photos.connection, self._choice.age_seconds))
        self._query(lambda: check_columns(self._photos.connection, columns))
        self._selection = Selection(self._choice.statuses, before, self._choice.album, self._choice.model)
        for job in JobSearch(self._redis, PHOTO.queue).all():
            keep()
            photo_id = fields(job.beginning).get(PHOTO.id_field)
            if not isinstance(photo_id, str):
                continue
            if isinstance(job, Dead):
                self._dead[photo_id] = job.dead_letter.id, job.dead_letter.code  # the newest comes last
            else:
                self._busy.add(photo_id)

    def _pages(self, keep: Callable[[], None]) -> Iterator[list[UnprocessedPhoto]]:
        selection, last = self._selection, ""
        assert selection is not None  # noqa: S101 - `_find_jobs` comes first
        columns = self._template.columns if self._template else ()
        while True:
            keep()
            found, following = self._query(partial(self._page, selection, columns, last))
            yield found
            if following is None:
                return
            last = following

    def _page(
        self, selection: Selection, columns: Sequence[str], last: str
    ) -> tuple[list[UnprocessedPhoto], str | None]:
        return page(self._photos.connection, self._embeddings.connection, selection, columns, last)

    def _query(self, work: Callable[[], T]) -> T:
        return retrying(work, [self._photos, self._embeddings], seconds=self._connect_seconds)

    def _count(self) -> int:
        keep = self._keep if self._renewed else lambda: None
        for photos in self._pages(keep):
            for photo in photos:
                step = self._step(photo)
                if isinstance(step, Skipped):
                    self.report.skipped[step] += 1
                else:
                    self.report.chosen[step.cause] += 1
        total = self.report.chosen.total()
        return min(total, self._choice.limit) if self._choice.limit else total

    def _step(self, photo: UnprocessedPhoto) -> _Step | Skipped:
        """Return what to do with a photo."""
        if photo.id in self._busy:
            return Skipped.HAS_JOB
        cause = _CAUSES[photo.status]
        if photo.id in self._dead:
            dead_letter_id, reason = self._dead[photo.id]
            return _Step(cause, dead_letter_id) if reason in self._choice.reasons else Skipped.OTHER_CODE
        if cause is Cause.FAILED and UNKNOWN_REASON not in self._choice.reasons:
            return Skipped.UNKNOWN_CODE
        if self._template is None:  # a dry run can count without it
            return _Step(cause, None)
        payload = _payload(photo, self._template)
        return Skipped.NO_URL if payload is None else _Step(cause, None, payload)

    # Pushing

    def _push_all(self, total: int, progress: Progress) -> None:
        steps = (
            step for photos in self._pages(self._keep) for step in map(self._step, photos) if isinstance(step, _Step)
        )
        batch: list[bytes] = []
        left = total
        for step in steps:
            if left == 0:
                break
            left -= 1
            if step.dead_letter_id is not None:
                self._requeue(step.dead_letter_id, progress)
            else:
                batch.append(step.payload)
            if len(batch) == BATCH:
                self._push(batch, progress)
                batch = []
        self._push(batch, progress)

    def _push(self, payloads: Sequence[bytes], progress: Progress) -> None:
        while payloads:
            done = self._pusher.push(payloads, self._choice.max_waiting)
            self._renewed = time.monotonic()
            self.report.pushed += done
            payloads = payloads[done:]
            progress.update(self.report.done, self._waiting())
            if payloads:
                time.sleep(self._pause())

    def _requeue(self, dead_letter_id: str, progress: Progress) -> None:
        """Requeue a dead letter, in one atomic step, so that no other process can do the same."""
        while self._waiting() >= self._choice.max_waiting:
            self._pusher.keep()
            self._renewed = time.monotonic()
            progress.update(self.report.done, self._waiting())
            time.sleep(self._pause())
        self._keep()
        if self._dead_letters.requeue(dead_letter_id) is Requeued.DONE:
            self.report.requeued += 1
        else:
            self.report.skipped[Skipped.MOVED] += 1
        progress.update(self.report.done, self._waiting())

    def _pause(self) -> float:
        return min(_POLL_SECONDS, self._lock_seconds / _RENEWALS)

    def _waiting(self) -> int:
        client: Any = self._redis
        return int(client.llen(keys.list_key(PHOTO.queue)))


_CAUSES = {
    PhotoStatus.UPLOADED: Cause.ORPHANED,
    PhotoStatus.PROCESSING: Cause.ORPHANED,
    PhotoStatus.FAILED: Cause.FAILED,
    PhotoStatus.READY: Cause.NO_EMBEDDINGS,
    PhotoStatus.NO_FACES_FOUND: Cause.NO_EMBEDDINGS,
}


def _payload(photo: UnprocessedPhoto, template: UrlTemplate) -> bytes | None:
    """Return the job as the API writes it, None if it would not be valid."""
    url = template.url(photo.columns)
    if url is None:
        return None
    payload = json.dumps({"imageUrl": url, "id": photo.id}, ensure_ascii=False, separators=(",", ":")).encode()
    try:
        decode_process(payload)
    except InvalidJobError:
        return None
    return payload
