"""Removes what Redis stores of a photo or a comparison, even while a run is processing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import urlsplit

from redis import Redis

from runner.queue import keys
from runner.queue.heartbeat import ASK_AGAIN_SECONDS, ASK_SECONDS, FRESH_SECONDS
from runner.queue.scripts import refusals
from runner.queue.search import Claimed, Dead, Job, JobSearch, Waiting
from runner.worker.kinds import COMPARISON, PHOTO, Kind
from runner.worker.messages import fields, subject

# A run may have checked its lease just before it was removed, and then stores once more. After a slow reply of Redis it
# does not check again for `ASK_AGAIN_SECONDS`. After this delay it has stored, or checks again and stores nothing.
SETTLE_SECONDS = ASK_SECONDS + ASK_AGAIN_SECONDS + 2 * FRESH_SECONDS
# A job that moves during the search is found by the next pass. The number of passes is limited, in case an operator
# keeps requeuing it.
_PASSES = 10


@dataclass(slots=True)
class ForgottenJobs:
    """Jobs removed, by where they were; `interrupted` counts the leases that a run owned."""

    waiting: int = 0
    leases: int = 0
    interrupted: int = 0
    dead_letters: int = 0

    def count(self, job: Job, removed: int, *, interrupted: bool) -> None:
        """Count one job."""
        match job:
            case Waiting():
                self.waiting += removed
            case Claimed():
                self.leases += removed
                self.interrupted += interrupted
            case Dead():
                self.dead_letters += removed


def forget_jobs(
    redis: Redis,
    kind: Kind,
    is_wanted: Callable[[Job], bool],
    *,
    dry_run: bool = False,
    before_wait: Callable[[float], None] = lambda _: None,
) -> ForgottenJobs:
    """Remove every job of `kind` that `is_wanted`, and return the counts; with `dry_run` only count.

    If a run owned a job, this waits until that run can no longer store anything for it; `before_wait` gets the seconds.
    Idempotent.
    """
    search, counts = JobSearch(redis, kind.queue), ForgottenJobs()
    for _ in range(_PASSES):
        found = [job for job in (*search.waiting(), *search.claimed(), *search.dead()) if is_wanted(job)]
        if dry_run:
            for job in found:
                counts.count(job, 1, interrupted=False)
            return counts
        # From the head of the list to its end: a removal does not change the indexes of jobs behind it, counted from
        # the end.
        for job in reversed(found):
            removed, interrupted = search.erase(job)
            counts.count(job, removed, interrupted=interrupted)
        if not found:
            break
    if counts.interrupted:
        before_wait(SETTLE_SECONDS)
        time.sleep(SETTLE_SECONDS)
    return counts


def has_id(redis: Redis, kind: Kind, wanted: Collection[str]) -> Callable[[Job], bool]:
    """Return a predicate for jobs of `kind` with one of the ids `wanted`."""
    search = JobSearch(redis, kind.queue)
    return lambda job: identifier(search, kind, job) in wanted


def identifier(search: JobSearch, kind: Kind, job: Job) -> str | None:
    """Return the id of a job, None if its payload has none."""
    if job.truncated:
        found = subject(kind.id_field, job.beginning)  # the API writes it first
        if found is not None:
            return found
    found = fields(search.payload(job) or b"").get(kind.id_field)
    return found if isinstance(found, str) else None


def photos_of_urls(redis: Redis, album_id: str) -> set[str]:
    """Return the ids of the photos whose jobs have a URL of the album: `…/albums/ALBUM/…`."""
    search = JobSearch(redis, PHOTO.queue)
    found = set()
    for job in search.all():
        payload = fields(search.payload(job) or b"")
        photo_id, url = payload.get(PHOTO.id_field), payload.get("imageUrl")
        if isinstance(photo_id, str) and isinstance(url, str) and _is_of_album(url, album_id):
            found.add(photo_id)
    return found


def _is_of_album(url: str, album_id: str) -> bool:
    try:
        parts = urlsplit(url).path.split("/")
    except ValueError:
        return False
    return any(pair == ("albums", album_id) for pair in pairwise(parts))


def forget_result(redis: Redis, job_id: str, *, dry_run: bool = False) -> int:
    """Remove the answer of a comparison and its detail, and return how many of the two there were."""
    names = [keys.match_result(job_id), keys.match_result_detail(job_id)]
    with refusals(f"removing {names[0]}"):
        if dry_run:
            return sum(redis.pttl(name) != _NO_KEY for name in names)
        redis.zrem(keys.unconfirmed(COMPARISON.queue), job_id)  # first: a run that restores answers needs the detail
        return sum(int(redis.delete(name)) for name in names)


_NO_KEY = -2  # what PTTL answers for a key that does not exist
