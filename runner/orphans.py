"""Photos without a job: counted by the sweep, because the metrics exporter reads only Redis."""

from __future__ import annotations

from contextlib import closing

from runner.queue import keys
from runner.queue.client import opened
from runner.reprocess import TRANSIENT_REASONS, Cause, Choice, Reprocessing
from runner.settings import Settings
from runner.store.database import embeddings_database, photos_database
from runner.store.photos import PhotoStatus
from runner.worker.kinds import PHOTO

AGE_SECONDS = 900.0
# An old count means nothing: a sweep runs at least once a day.
KEPT_SECONDS = 86_400
APPLICATION_NAME = "spottmee-worker sweep"


def count_orphans(settings: Settings) -> int:
    """Count the photos that have been UPLOADED or PROCESSING for 15 minutes without a job; store the number in Redis.

    Raises `RunnerError`.
    """
    choice = Choice(
        statuses=frozenset({PhotoStatus.UPLOADED, PhotoStatus.PROCESSING}),
        reasons=TRANSIENT_REASONS,
        age_seconds=AGE_SECONDS,
        album=None,
        model="",
        max_waiting=0,
    )
    with (
        closing(photos_database(settings, APPLICATION_NAME)) as photos,
        closing(embeddings_database(settings, APPLICATION_NAME)) as embeddings,
        opened(settings) as redis,
    ):
        work = Reprocessing(
            redis,
            photos,
            embeddings,
            choice,
            template=None,
            connect_seconds=settings.connect_timeout_seconds,
            lock_seconds=settings.lease_seconds,
        )
        work.count()
        number = work.report.chosen[Cause.ORPHANED]
        redis.set(keys.orphans(PHOTO.queue), number, ex=KEPT_SECONDS)
    return number
