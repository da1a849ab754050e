"""The lists of Redis as an onlooker sees them: how each stands, and the payload of one job. Nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runner.errors import CheckFailedError, SettingsError
from runner.queue import keys
from runner.worker.kinds import KINDS, PHOTO

if TYPE_CHECKING:
    from redis import Redis

    from runner.queue.leases import Leased, LeaseQueue
    from runner.settings import Settings

# A person is waiting: Redis is tried for this long, not for the half minute of a run.
PATIENCE_SECONDS = 5.0
_PAGE = 1000
_MOST_LEASES = 100_000


@dataclass(frozen=True, slots=True)
class ListState:
    """One list. Times are seconds by Redis' clock; `runners` is owner → leases held, the busiest first."""

    name: str
    waiting: int
    in_flight: int
    due: int
    dead: int
    next_due_seconds: float | None
    oldest_lease_seconds: float | None
    runners: dict[str, int]


@contextmanager
def opened(settings: Settings) -> Iterator[Redis]:
    """Connect to Redis for the time of the block."""
    if not settings.redis_url:
        raise SettingsError("REDIS_URL is missing")
    from runner.queue import client

    with client.opened(replace(settings, connect_seconds=min(settings.connect_seconds, PATIENCE_SECONDS))) as redis:
        yield redis


def look_at_lists(settings: Settings) -> list[ListState]:
    """Return how every list stands. Raises `RedisUnreachableError` and `SettingsError`."""
    with opened(settings) as redis:
        return [_state(_queue(redis, name, settings)) for name in settings.queues]


def held_by(redis: Redis, settings: Settings, owner: str) -> list[Leased]:
    """Return the leases of the owner's processes; `owner` is what `owner_name` gives, without the process."""
    queues = [_queue(redis, name, settings) for name in settings.queues]
    return [lease for queue in queues for lease in queue.leased(_MOST_LEASES) if lease.owner.startswith(f"{owner}/")]


def payload_of_letter(redis: Redis, letter_id: str) -> bytes:
    """Return the payload of a dead letter, or raise `CheckFailedError` where there is none."""
    from runner.queue.dead_letters import DeadLetters

    for name in KINDS:
        letters = DeadLetters(redis, name)
        payload = letters.payload(letter_id)
        if payload is not None:
            return payload
        if letters.get(letter_id) is not None:
            raise CheckFailedError(f"dead letter {letter_id} has no payload any more: a selfie is kept for an hour")
    raise CheckFailedError(f"there is no dead letter {letter_id}: `spottmee-worker dead list` shows them")


def payload_of_photo(redis: Redis, photo_id: str) -> bytes:
    """Return the job of a photo that waits, is leased or is dead, or raise `CheckFailedError`."""
    for payload in _payloads(redis, PHOTO.queue):
        if _photo_id(payload) == photo_id:
            return payload
    raise CheckFailedError(
        f"photo {photo_id} neither waits, nor is leased, nor is dead, and the API's table holds no URL: give it with "
        "--url"
    )


def _payloads(redis: Redis, name: str) -> Iterator[bytes]:
    """Yield every payload that Redis holds of a list. A job that moves meanwhile is met where it moves to."""
    from runner.queue.dead_letters import DeadLetters
    from runner.queue.scripts import refusals

    start = 0
    client: Any = redis
    with refusals(f"reading {keys.list_key(name)} and {keys.claimed(name)}"):
        while page := client.lrange(keys.list_key(name), start, start + _PAGE - 1):
            yield from page
            start += len(page)
        for _, payload in client.hscan_iter(keys.claimed(name), match="*:payload", count=_PAGE):
            yield payload
    letters = DeadLetters(redis, name)
    for letter in letters.all():
        payload = letters.payload(letter.id)
        if payload is not None:
            yield payload


def _photo_id(payload: bytes) -> str | None:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    found = document.get(PHOTO.id_field) if isinstance(document, dict) else None
    return found if isinstance(found, str) else None


def _queue(redis: Redis, name: str, settings: Settings) -> LeaseQueue:
    from runner.queue.leases import LeaseQueue

    return LeaseQueue(
        redis, name, owner="onlooker", lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
    )


def _state(queue: LeaseQueue) -> ListState:
    counts, leases = queue.counts(), queue.leased(_MOST_LEASES)
    runners: dict[str, int] = {}
    for lease in leases:
        if lease.owner:
            name = lease.owner.rpartition("/")[0]
            runners[name] = runners.get(name, 0) + 1
    return ListState(
        name=queue.name,
        waiting=counts.waiting,
        in_flight=counts.in_flight,
        due=counts.due,
        dead=counts.dead,
        next_due_seconds=counts.next_due_seconds,
        oldest_lease_seconds=max((lease.since_seconds for lease in leases), default=None),
        runners=dict(sorted(runners.items(), key=lambda item: -item[1])),
    )
