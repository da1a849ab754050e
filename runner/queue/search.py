"""Finds and removes jobs of a list in Redis, whatever their state. For operators, not for runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from runner.queue import keys, totals
from runner.queue.dead_letters import DeadLetter, DeadLetters
from runner.queue.expiry import SEEN_SECONDS
from runner.queue.leases import LeaseQueue
from runner.queue.parking import Parking
from runner.queue.scripts import Script, refusals

# Of a larger payload only this beginning is read: no job of a photo is larger, and that of a comparison shows its id.
BEGINNING_BYTES = 64 * 2**10
_PAGE = 200  # a page of a long list takes Redis some 5 ms
_PAGE_BYTES = 4 * 2**20
_MOST_LEASES = 1_000_000
_FORGOTTEN = totals.job_field(totals.FORGOTTEN)


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was found. `bytes` is the size of its payload, of which `beginning` is the first 64 KiB at most."""

    beginning: bytes = field(repr=False)
    bytes: int

    @property
    def truncated(self) -> bool:
        """Whether `beginning` is not the whole payload."""
        return len(self.beginning) < self.bytes


@dataclass(frozen=True, slots=True)
class Waiting(Job):
    """A job in the list, at `index` from its end (negative) when it was read."""

    index: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Claimed(Job):
    """A job that has left the list: leased, deferred or parked."""

    lease_id: str


@dataclass(frozen=True, slots=True)
class Dead(Job):
    """The job of a dead letter."""

    dead_letter: DeadLetter


class JobSearch:
    """The jobs of one list. Raises `RedisRefusedError` for permanent errors of Redis."""

    def __init__(self, client: Redis, name: str) -> None:
        self.name = name
        self._client = client
        self._dead_letters = DeadLetters(client, name)
        self._queue = LeaseQueue(client, name, owner="onlooker", lease_seconds=0, max_attempts=0)

    def all(self) -> Iterator[Job]:
        """Yield every job that exists throughout the search, some perhaps twice.

        A job moves from the list to a lease, from there to a dead letter, and an operator may put that back into the
        list: in this order none is missed, unless it moves twice during the search.
        """
        yield from self.dead()
        yield from self.waiting()
        yield from self.claimed()
        yield from self.dead()

    def waiting(self) -> Iterator[Waiting]:
        """Yield the jobs of the list, the last one first."""
        script, index = Script(self._client, "page"), -1
        while page := script([keys.list_key(self.name)], [index, _PAGE, BEGINNING_BYTES, _PAGE_BYTES]):
            for beginning, size, fingerprint in page:
                yield Waiting(beginning, int(size), index, fingerprint.decode())
                index -= 1

    def claimed(self) -> Iterator[Claimed]:
        """Yield the jobs that have left the list and are not dead-lettered."""
        parked = self._parked()
        leased = [lease.id for lease in self._queue.leased(_MOST_LEASES)]
        ids = list(dict.fromkeys([*parked, *leased, *self._parked()]))  # a job may be woken or parked in the meantime
        script = Script(self._client, "beginnings")
        for first in range(0, len(ids), _PAGE):
            part = ids[first : first + _PAGE]
            rows = script([keys.claimed(self.name)], [BEGINNING_BYTES, *part])
            for lease_id, (beginning, size) in zip(part, rows, strict=True):
                if size:
                    yield Claimed(beginning, int(size), lease_id)

    def _parked(self) -> list[str]:
        return Parking(self._client, self.name).ids()

    def dead(self) -> Iterator[Dead]:
        """Yield the dead letters whose payload is still kept."""
        for dead_letter in self._dead_letters.all():
            payload = self._dead_letters.payload(dead_letter.id)
            if payload is not None:
                yield Dead(payload[:BEGINNING_BYTES], len(payload), dead_letter)

    def payload(self, job: Job) -> bytes | None:
        """Return the complete payload of a job, or None if it has ended or moved in the meantime."""
        if not job.truncated:
            return job.beginning
        if isinstance(job, Dead):
            return self._dead_letters.payload(job.dead_letter.id)
        client: Any = self._client
        with refusals(f"reading {keys.list_key(self.name)} and {keys.claimed(self.name)}"):
            if isinstance(job, Claimed):
                found = client.hget(keys.claimed(self.name), f"{job.lease_id}:payload")
            else:
                found = client.lindex(keys.list_key(self.name), getattr(job, "index", 0))
        return found if isinstance(found, bytes) and found.startswith(job.beginning) else None

    def erase(self, job: Job) -> tuple[int, bool]:
        """Remove a job where it was found; return the number of copies, and whether a runner owned its lease.

        From then on that runner can neither renew nor settle the lease, and stores nothing.
        """
        match job:
            case Waiting():
                removed = Script(self._client, "erase")(
                    [keys.list_key(self.name), keys.seen(self.name), keys.totals(self.name)],
                    [job.index, job.fingerprint, SEEN_SECONDS, _FORGOTTEN],
                )
                return int(removed), False
            case Claimed():
                touched = [
                    keys.leases(self.name), keys.claimed(self.name), keys.parked(self.name),
                    keys.pending(self.name, job.lease_id), keys.totals(self.name),
                ]  # fmt: skip
                outcome = int(Script(self._client, "revoke")(touched, [job.lease_id, totals.encode({_FORGOTTEN: 1})]))
                return min(outcome, 1), outcome > 1
            case Dead():
                return int(self._dead_letters.purge(job.dead_letter.id)), False
        raise TypeError(type(job))
