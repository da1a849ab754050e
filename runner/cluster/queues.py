"""Read-only access to the lists in Redis: the state of each, and the payload of one job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from redis import Redis

from runner.errors import CheckFailedError, SettingsError
from runner.queue import client
from runner.queue.dead_letters import DeadLetters
from runner.queue.leases import Leased, LeaseQueue
from runner.queue.search import JobSearch
from runner.settings import Settings
from runner.worker.kinds import KINDS, PHOTO
from runner.worker.messages import fields

# An interactive command gives up sooner than a run, which retries for half a minute.
PATIENCE_SECONDS = 5.0
_MOST_LEASES = 100_000


@dataclass(frozen=True, slots=True)
class QueueState:
    """The state of one queue. Times are seconds on the clock of Redis. `leases_by_runner` has the highest number first.

    `parked` counts the comparisons that wait for their album, or the photos that wait for their image server.
    """

    name: str
    waiting: int
    in_flight: int
    expired: int
    dead_letters: int
    next_expiry_seconds: float | None
    oldest_lease_seconds: float | None
    leases_by_runner: dict[str, int]
    parked: int = 0


@contextmanager
def connection(settings: Settings) -> Iterator[Redis]:
    """Connect to Redis for the duration of the block."""
    if not settings.redis_url:
        raise SettingsError("REDIS_URL is missing: set it to the Redis that holds the lists")
    with client.opened(
        replace(settings, connect_timeout_seconds=min(settings.connect_timeout_seconds, PATIENCE_SECONDS))
    ) as redis:
        yield redis


def read_queues(settings: Settings) -> list[QueueState]:
    """Return the state of every queue. Raises `RedisUnreachableError` and `SettingsError`."""
    with connection(settings) as redis:
        return [_state(_queue(redis, name, settings)) for name in settings.queues]


def leases_of(redis: Redis, settings: Settings, owner: str) -> list[Leased]:
    """Return the leases of the owner's processes; `owner` is the result of `owner_name` without the process."""
    queues = [_queue(redis, name, settings) for name in settings.queues]
    return [lease for queue in queues for lease in queue.leased(_MOST_LEASES) if lease.owner.startswith(f"{owner}/")]


def payload_of_dead_letter(redis: Redis, dead_letter_id: str) -> bytes:
    """Return the payload of a dead letter. Raises `CheckFailedError` if it no longer has one."""
    for name in KINDS:
        dead_letters = DeadLetters(redis, name)
        payload = dead_letters.payload(dead_letter_id)
        if payload is not None:
            return payload
        if dead_letters.get(dead_letter_id) is not None:
            raise CheckFailedError(
                f"the payload of dead letter {dead_letter_id} has expired: a selfie is kept for an hour"
            )
    raise CheckFailedError(f"there is no dead letter {dead_letter_id}: `spottmee-worker dead list` shows all ids")


def payload_of_photo(redis: Redis, photo_id: str) -> bytes:
    """Return the payload of the photo's job: waiting, leased or dead. Raises `CheckFailedError` if there is none."""
    search = JobSearch(redis, PHOTO.queue)
    for job in search.all():
        payload = search.payload(job)
        if payload is not None and fields(payload).get(PHOTO.id_field) == photo_id:
            return payload
    raise CheckFailedError(
        f"photo {photo_id} has no job: none is waiting, leased or in the dead-letter queue. Pass the URL of the image "
        "with --url"
    )


def _queue(redis: Redis, name: str, settings: Settings) -> LeaseQueue:
    return LeaseQueue(
        redis, name, owner="onlooker", lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
    )


def _state(queue: LeaseQueue) -> QueueState:
    counts, leases = queue.counts(), queue.leased(_MOST_LEASES)
    runners = Counter(lease.owner.rpartition("/")[0] for lease in leases if lease.owner)
    return QueueState(
        name=queue.name,
        waiting=counts.waiting,
        in_flight=counts.in_flight,
        expired=counts.expired,
        dead_letters=counts.dead_letters,
        next_expiry_seconds=counts.next_expiry_seconds,
        oldest_lease_seconds=max((lease.age_seconds for lease in leases), default=None),
        leases_by_runner=dict(runners.most_common()),
        parked=counts.parked,
    )
