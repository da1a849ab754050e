"""Parked jobs: they wait without a lease, so that KEDA starts no Job for them.

Photos wait for a failing image server (`runner.queue.hosts`), and comparisons for photos of their album. A comparison
is parked in three steps, because the photos are in another slot of a Redis Cluster and in PostgreSQL. Its holder
announces which photos it waits for (`Parking.announce`), queries PostgreSQL again for those still pending, reports the
others (`Parking.photos_done`), and then parks the job (`LeaseQueue.park`). The runner of a process job calls
`photos_done` after the photo's status is committed and before its lease ends. So the holder sees every photo that
became final before its second query, and every later one is reported to an announced job: no order of the steps, and
no crash between them, leaves a job waiting for a photo that is final.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.queue import keys
from runner.queue.leases import HORIZON_SECONDS, Lease, LeaseQueue
from runner.queue.scripts import Script

if TYPE_CHECKING:  # `settings` imports this module, and not every command needs redis-py (130 ms)
    from redis import Redis

# A parked job waits for at most this many photos, the last to be processed. It then checks the album again.
WAITED_FOR = 1000
_WOKEN_AT_ONCE = 500
_PAGE = 1000
# A process job has a few hundred bytes: a much larger payload is not one, and is not transferred.
_JOB_BYTES = 64 * 2**10
_PAYLOADS = 200


class Parking:
    """The parked jobs of a list, none for more than `longest_seconds`. Every call is idempotent.

    Raises what redis raises.
    """

    def __init__(self, client: Redis, name: str = "compare", *, longest_seconds: int = HORIZON_SECONDS) -> None:
        self._client = client
        self._longest = longest_seconds * 1000
        self._name = name
        self._lease_keys = [keys.leases(name), keys.claimed(name)]
        self._parked = keys.parked(name)
        self._woken: set[str] = set()

    def announce(self, lease: Lease, photo_ids: Sequence[str], seconds: float) -> bool:
        """Announce that the job is about to be parked until these photos are done; False if the lease is lost.

        `photo_ids` has 1 to `WAITED_FOR` ids; `seconds` counts from when the job left the list.
        """
        done = Script(self._client, "announce")(
            [keys.claimed(self._name), self._parked, keys.pending(self._name, lease.id)],
            [lease.id, lease.holder, round(seconds * 1000), *photo_ids],
        )
        return bool(done)

    def photos_done(self, photo_ids: Collection[str]) -> list[str]:
        """Report photos whose processing has ended; return the lease ids of the comparisons that this woke.

        Comparisons that have timed out are woken too.
        """
        return self._wake(photo_ids, everything=False)

    def wake_overdue(self) -> list[str]:
        """Wake the jobs that have timed out, and return their lease ids."""
        return self._wake_jobs(self._ids(overdue=True), (), everything=False)

    def wake_stranded(self) -> list[str]:
        """Wake every parked comparison if there is no process job, and return their lease ids.

        The runner of a photo wakes those that wait for it, but a Redis failover can lose that write.
        """
        if not self.ids():
            return []
        process = _observer(self._client).counts()
        jobs = process.waiting + process.in_flight + process.parked
        return [] if jobs else self._wake((), everything=True)

    def take_woken(self) -> set[str]:
        """Return the lease ids that this object has woken since the last call."""
        woken, self._woken = self._woken, set()
        return woken

    def ids(self) -> list[str]:
        """Return the lease ids of the parked jobs, in the order in which they time out."""
        return self._ids(overdue=False)

    def _ids(self, *, overdue: bool) -> list[str]:
        found = Script(self._client, "parked")([self._parked], [int(overdue), self._longest])
        return [raw.decode() for raw in found]

    def _wake(self, photo_ids: Collection[str], *, everything: bool) -> list[str]:
        # A job that is announced after this call sees the photos' statuses itself: they are committed by now.
        return self._wake_jobs(self.ids(), photo_ids, everything=everything)

    def _wake_jobs(self, ids: Sequence[str], photo_ids: Collection[str], *, everything: bool) -> list[str]:
        woken: list[str] = []
        for first in range(0, len(ids), _WOKEN_AT_ONCE):
            part = ids[first : first + _WOKEN_AT_ONCE]
            found = Script(self._client, "wake")(
                [*self._lease_keys, self._parked, *(keys.pending(self._name, one) for one in part)],
                [int(everything), self._longest, len(part), *part, *photo_ids],
            )
            woken += [raw.decode() for raw in found]
        self._woken.update(woken)
        return woken


class PhotosAtWork(NamedTuple):
    """The photos that have a process job: `ids`, the last to be processed first.

    `is_alive` says whether any runner holds the lease of a process job, or one of the photos waits for its image
    server: then KEDA keeps a Job for that server.
    """

    ids: tuple[str, ...]
    is_alive: bool


class ProcessJobs:
    """The process jobs that wait, are leased (retries included) or are parked. Read-only."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._queue = _observer(client)
        self._parking = Parking(client, "process")

    def at_work(self, photo_ids: Collection[str]) -> PhotosAtWork:
        """Return which of the photos have a job.

        A job that moves from the list to a lease at the same time is found in one of them: the list is read first, and
        from its end, so that neither claims nor pushes move unread jobs past the reader. A job can be parked or woken
        between two reads, so the parked jobs are read before and after the leases.
        """
        wanted = set(photo_ids)
        found: dict[str, None] = {}
        for photo_id in self._waiting():
            if photo_id in wanted:
                found[photo_id] = None
                if len(found) == len(wanted):
                    break
        parked = self._parking.ids()
        leased = [lease for lease in self._queue.leased(limit=100_000) if lease.bytes <= _JOB_BYTES]
        ids = [lease.id for lease in leased]
        found |= dict.fromkeys(photo_id for photo_id in self._leased(ids) if photo_id in wanted)
        waiting = [*parked, *self._parking.ids()]
        for_server = [photo_id for photo_id in self._leased(list(dict.fromkeys(waiting))) if photo_id in wanted]
        is_owned = any(lease.owner and lease.expires_in_seconds > 0 for lease in leased)
        return PhotosAtWork(tuple(found | dict.fromkeys(for_server)), is_owned or bool(for_server))

    def _waiting(self) -> Iterator[str]:
        script, end = Script(self._client, "waiting"), -1
        while True:
            size, page = script([keys.list_key("process")], [end - _PAGE + 1, end, _JOB_BYTES])
            yield from _photo_ids(reversed(page))
            if size < _PAGE:
                return
            end -= _PAGE

    def _leased(self, lease_ids: Sequence[str]) -> Iterator[str]:
        for first in range(0, len(lease_ids), _PAYLOADS):
            names = [f"{lease_id}:payload" for lease_id in lease_ids[first : first + _PAYLOADS]]
            yield from _photo_ids(self._client.hmget(keys.claimed("process"), names))


def _observer(client: Redis) -> LeaseQueue:
    return LeaseQueue(client, "process", owner="observer", lease_seconds=0, max_attempts=0)


def _photo_ids(payloads: Any) -> Iterator[str]:
    for payload in payloads:
        try:
            document = json.loads(payload or b"")
        except (ValueError, RecursionError):
            continue
        photo_id = document.get("id") if isinstance(document, dict) else None
        if isinstance(photo_id, str):
            yield photo_id
