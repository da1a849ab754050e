"""Leased lists: a job is moved to a lease, never popped, so a process that dies loses no job.

Each operation is one Lua script of `lua/`, atomic and on Redis' own clock. The claim that created a lease is its
fencing token: only its holder can renew or settle it. Every operation is idempotent, so it can be repeated after a lost
reply. See docs/explanation/queue-protocol.md.
"""

from __future__ import annotations

import json
import random as random_module
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import quote

from runner.queue import keys, totals
from runner.queue.privacy import SELFIE_SECONDS, may_hold_selfie
from runner.queue.scripts import Script
from runner.queue.totals import Tally

if TYPE_CHECKING:  # `settings` imports this module: redis must not come with it
    from redis import Redis

DEAD_LETTER_SECONDS = 30 * 86_400
# The longest lease and retry delay (their settings allow no more): an expiry further ahead shows that Redis' clock was
# set back.
HORIZON_SECONDS = 3600
# A claim returns no further job once its payloads reach this size, and only the start of a larger payload: one that
# does not fit into memory would kill every runner at its claim, before any of them could dead-letter it. The base64 of
# a selfie of 48 MiB fits.
CLAIM_BYTES = 64 * 2**20
OVERSIZED_SHOWN_BYTES = 64 * 2**10
DETAIL_LENGTH = 1000
# How many summaries of runs are kept per queue.
RUNS_KEPT = 50
# A float holds no more than 2 ** 1023. Every base of a setting is far above its cap after as many doublings.
_MOST_DOUBLINGS = 1000

State: TypeAlias = bytes
_SUCCEEDED = {totals.job_field(totals.SUCCEEDED): 1}


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job: `attempts` includes this one.

    `holder` is the fencing token: the claim that the lease belongs to. `bytes` is the size of the whole payload (0: of
    `payload`); of one that is too large, `payload` is only the start. `alone` forbids other jobs in flight with it.
    `claimed_at` is the `time.monotonic` just before the claim, `age_seconds` the time from when the job left the list
    to its claim, and `state` what the last holder saved with `release` or `park`.
    """

    id: str
    queue: str
    payload: bytes = field(repr=False)
    attempts: int
    holder: str = ""
    bytes: int = 0
    alone: bool = False
    claimed_at: float = field(default_factory=time.monotonic, compare=False)
    age_seconds: float = field(default=0.0, compare=False)
    state: State = field(default=b"", repr=False)

    @property
    def truncated(self) -> bool:
        """Whether `payload` is only the start of the whole payload."""
        return len(self.payload) < self.bytes


class Counts(NamedTuple):
    """The jobs of a list. `next_expiry_seconds` is None without leases, and 0 if one has expired.

    `in_flight` includes retries that are not due yet. `parked` counts the comparisons that wait for their album, or the
    photos that wait for their image server; they are not in flight.
    """

    waiting: int
    in_flight: int
    expired: int
    dead_letters: int
    next_expiry_seconds: float | None
    parked: int = 0


class Parked(Enum):
    """The result of `LeaseQueue.park`."""

    DONE = "parked"
    WOKEN = "woken"  # since it was announced; it is still leased
    LOST = "lost"  # the lease belongs to another claim


class Leased(NamedTuple):
    """A lease as seen by others. `owner` is empty after a retry or a release, whose reason is `reason`.

    `expires_in_seconds` is negative if it has expired; `age_seconds` is the time since the job left the list.
    """

    id: str
    queue: str
    owner: str
    attempts: int
    expires_in_seconds: float
    age_seconds: float
    reason: str
    bytes: int


def owner_name(name: str) -> str:
    """Return the owner name of this process: NAME/HOST/PROCESS, or HOST/PROCESS if `name` is empty.

    `name` is the Kubernetes Job's, HOST the pod's host name, and PROCESS random: the process that replaces a dead one
    takes over its leases (`LeaseQueue.take_over`), but the two can never settle each other's.
    """
    parts = [name, socket.gethostname(), secrets.token_hex(8)]
    return "/".join(quote(part, safe="") for part in parts if part)


def backoff(attempts: int, *, base: float, cap: float, random: random_module.Random) -> float:
    """Return the delay in seconds before the next attempt: exponential, capped, half of it jitter."""
    return exponential(attempts, base=base, cap=cap) * random.uniform(0.5, 1.0)


def exponential(count: int, *, base: float, cap: float) -> float:
    """Return `base` doubled `count - 1` times, at most `cap`."""
    return min(cap, base * 2.0 ** min(count - 1, _MOST_DOUBLINGS))


def age(lease: Lease) -> float:
    """Return the seconds since the job left the list."""
    return lease.age_seconds + time.monotonic() - lease.claimed_at


class LeaseQueue:
    """The leases of one list, as seen by one owner. Raises what redis raises.

    Calls that claim or settle must not overlap; `renew`, `counts`, `leased` and `wait_for_push` may be called from any
    thread at any time. The payload of a dead letter is kept for `payload_seconds`. `list_name` replaces `name` in the
    keys, which expire `keys_seconds` after the last claim or the end of the job (0: never).

    Calls that settle count their outcome in the totals of the list, and with it the `tally` that they are given, unless
    the lease is lost.
    """

    def __init__(
        self,
        client: Redis,
        name: str,
        *,
        owner: str,
        lease_seconds: float,
        max_attempts: int,
        payload_seconds: float = DEAD_LETTER_SECONDS,
        list_name: str = "",
        keys_seconds: int = 0,
    ) -> None:
        self.name = name
        self.list_name = list_name or name
        self.owner = owner
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self._payload_seconds = payload_seconds
        self._keys_seconds = keys_seconds
        self._client = client
        self._list = keys.list_key(self.list_name)
        self._lease_keys = [keys.leases(self.list_name), keys.claimed(self.list_name)]
        self._last = keys.last(self.list_name, owner)
        self._dead_keys = [keys.dead(self.list_name), keys.dead_index(self.list_name)]
        self._parked = keys.parked(self.list_name)
        self._totals = keys.totals(self.list_name)
        self._carried: Counter[str] = Counter()
        self._carrying = threading.Lock()

    def claim(self, limit: int, *, in_flight: int | None = None) -> list[Lease]:
        """Claim up to `limit` jobs: first those whose lease has expired, then the head of the list.

        Large payloads can make it return fewer than `limit` although more are waiting. The attempt is counted here,
        so that it counts even if the job kills its runner: a job whose `attempts` exceed `max_attempts` must be
        dead-lettered.

        If `in_flight` says how many jobs the caller has in flight, the last attempt at a job whose runner died is
        returned alone, and only to a caller with none: the job may have killed that runner. If that attempt was not
        made alone, it is repeated.
        """
        return self._claim(limit, in_flight) if limit > 0 else []

    def check(self) -> None:
        """Raise the error with which Redis would refuse a claim (a missing right, a key of another type). Read-only."""
        self._claim(0, None)

    def wait_for_push(self, seconds: float) -> bool:
        """Return True as soon as a job waits in the list, or False after `seconds`. Blocks in Redis.

        Nothing changes: BLMOVE takes the head from the list and puts it back atomically. So one push wakes every
        waiting caller, and no job is lost if a caller dies. Expired leases do not wake callers.
        """
        return self._client.execute_command("BLMOVE", self._list, self._list, "LEFT", "LEFT", seconds) is not None

    def _claim(self, limit: int, in_flight: int | None) -> list[Lease]:
        request, before = _request_id(), time.monotonic()
        found = Script(self._client, "claim")(
            [self._list, *self._lease_keys, self._last, *self._dead_keys, self._totals],
            [
                self.owner, request, _milliseconds(self.lease_seconds), limit, CLAIM_BYTES, CLAIM_BYTES,
                OVERSIZED_SHOWN_BYTES, _milliseconds(HORIZON_SECONDS), _milliseconds(DEAD_LETTER_SECONDS),
                self.max_attempts, -1 if in_flight is None else in_flight, self._take_carried() if limit else "",
                self._keys_seconds,
            ],
        )  # fmt: skip
        holder = f"{self.owner}#{request}"
        return [
            Lease(
                raw.decode(),
                self.name,
                payload,
                int(attempts),
                holder,
                int(size),
                bool(alone),
                before,
                max(0, int(age)) / 1000,
                state,
            )
            for raw, payload, attempts, size, alone, age, state in found
        ]

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Renew the leases for another `lease_seconds`; return those that are lost."""
        if not leases:
            return []
        args: list[str | float] = [_milliseconds(self.lease_seconds), *_pairs(leases)]
        return [leases[int(index)] for index in Script(self._client, "renew")(self._lease_keys, args)]

    def acknowledge(self, lease: Lease, tally: Tally | None = None) -> bool:
        """End the lease of a finished job; False if the lease is lost."""
        return not self.acknowledge_many([lease], [tally])

    def acknowledge_many(self, leases: Sequence[Lease], tallies: Sequence[Tally | None] = ()) -> set[str]:
        """End the leases of finished jobs; return the ids of those that were lost.

        `tallies` has an entry for each lease, its outcome included; without one, the job has succeeded.
        """
        if not leases:
            return set()
        pending = [keys.pending(self.list_name, lease.id) for lease in leases]
        args = [_request_id(), self._take_carried()]
        for lease, tally in zip_longest(leases, tallies):
            args += [lease.id, lease.holder, totals.encode(tally or _SUCCEEDED)]
        return _ids(
            Script(self._client, "acknowledge")(
                [*self._lease_keys, self._last, self._parked, self._totals, *pending], args
            )
        )

    def retry(self, lease: Lease, delay_seconds: float, reason: str, tally: Tally | None = None) -> bool:
        """Make the job due again after `delay_seconds`; False if the lease is lost."""
        tally = _with(tally, totals.retry_field(reason))
        return self._defer(lease, delay_seconds, reason, tally=tally, is_release=False)

    def release(
        self,
        lease: Lease,
        delay_seconds: float = 0,
        *,
        reason: str = totals.RELEASED,
        state: bytes = b"",
        tally: Tally | None = None,
    ) -> bool:
        """Return the job to the queue, due after `delay_seconds`; False if the lease is lost.

        This attempt is not counted: the next claim returns the same `attempts`, and `state` if that is not empty.
        """
        tally = _with(tally, totals.release_field(reason))
        return self._defer(lease, delay_seconds, reason, tally=tally, is_release=True, state=state)

    def without_retries(self) -> AbstractContextManager[None]:
        """Return a context in which the client makes one attempt at each command, in every thread."""
        retries = getattr(self._client, "retries", None)
        return nullcontext() if retries is None else retries.suspended()

    def park(self, lease: Lease, reason: str, state: bytes, tally: Tally | None = None) -> Parked:
        """Park an announced job: it has no lease until it is woken (see `runner.queue.parking`).

        This attempt is not counted, and the next claim returns `state`.
        """
        done = Script(self._client, "park")(
            [*self._lease_keys, self._last, self._parked, self._totals],
            [
                _request_id(), lease.id, lease.holder, reason, state,
                totals.encode(_with(tally, totals.release_field(reason))),
            ],
        )  # fmt: skip
        return {1: Parked.DONE, 0: Parked.LOST, -1: Parked.WOKEN}[int(done)]

    def dead_letter(
        self, lease: Lease, reason: str, detail: str, tally: Tally | None = None, *, keep_selfie: bool = True
    ) -> bool:
        """Move the job to the dead-letter queue; False if the lease is lost. `detail` must hold nothing secret.

        Without `keep_selfie`, a payload that may hold one is deleted at once.
        """
        dead_letter = {
            "id": lease.id,
            "queue": self.name,
            "error": {"code": reason, "message": detail[:DETAIL_LENGTH]},
            "attempts": lease.attempts,
            "runner": self.owner,
            "bytes": max(lease.bytes, len(lease.payload)),
        }
        private = lease.truncated or may_hold_selfie(lease.payload)
        seconds = min(self._payload_seconds, SELFIE_SECONDS * keep_selfie) if private else self._payload_seconds
        done = Script(self._client, "dead_letter")(
            [
                *self._lease_keys, self._last, *self._dead_keys, keys.dead_payload(self.list_name, lease.id),
                self._parked, keys.pending(self.list_name, lease.id), self._totals,
            ],
            [
                _request_id(), lease.id, lease.holder, json.dumps(dead_letter), _milliseconds(seconds),
                _milliseconds(DEAD_LETTER_SECONDS),
                totals.encode(_with(tally, totals.job_field(totals.DEAD_LETTERED, reason))), self._keys_seconds,
            ],
        )  # fmt: skip
        return bool(done)

    def carry(self, tally: Tally) -> None:
        """Count these with the next claim or acknowledgement, or by `end_run`. May be called from any thread."""
        with self._carrying:
            self._carried.update(tally)

    def end_run(self, summary: str) -> None:
        """Send the counts collected so far, and store the summary of the run (JSON)."""
        Script(self._client, "count")(
            [self._totals, self._last, keys.runs(self.list_name)],
            [_request_id(), self._take_carried(), summary, RUNS_KEPT, self._keys_seconds],
        )

    def _take_carried(self) -> str:
        # Taken before the call: if that fails, its counts are lost, and never counted twice.
        with self._carrying:
            carried, self._carried = self._carried, Counter()
        return totals.encode(carried)

    def take_over(self) -> int:
        """Expire the leases of earlier processes of the same named owner; return how many.

        A Kubernetes Job runs one pod at a time, so they are dead. One that is still alive (on a node that Kubernetes
        has lost contact with) is fenced: the next claim has another holder.
        """
        job, _, _ = self.owner.rpartition("/")[0].rpartition("/")
        if not job:
            return 0
        return int(Script(self._client, "take_over")(self._lease_keys, [f"{self.owner}#", f"{job}/"]))

    def counts(self) -> Counts:
        """Return the number of jobs in each state. Read-only."""
        waiting, in_flight, due, dead, milliseconds, parked = Script(self._client, "counts")(
            [self._list, self._lease_keys[0], self._dead_keys[1], self._parked],
            [_milliseconds(DEAD_LETTER_SECONDS)],
        )
        seconds = None if int(milliseconds) < 0 else int(milliseconds) / 1000
        return Counts(int(waiting), int(in_flight), int(due), int(dead), seconds, int(parked))

    def leased(self, limit: int = 1000) -> list[Leased]:
        """Return up to `limit` leases, in the order in which they expire. Read-only."""
        rows = Script(self._client, "leased")(self._lease_keys, [limit])
        return [
            Leased(
                id=raw.decode(),
                queue=self.name,
                owner=holder.decode().partition("#")[0],
                attempts=int(attempts),
                expires_in_seconds=int(due) / 1000,
                age_seconds=int(since) / 1000,
                reason=reason.decode(),
                bytes=int(size),
            )
            for raw, due, since, holder, attempts, reason, size in rows
        ]

    def _defer(
        self, lease: Lease, seconds: float, reason: str, *, tally: Tally, is_release: bool, state: bytes = b""
    ) -> bool:
        args: list[str | float | bytes] = [
            _request_id(), lease.id, lease.holder, _milliseconds(min(seconds, HORIZON_SECONDS)), int(is_release),
            reason, state, totals.encode(tally),
        ]  # fmt: skip
        return bool(Script(self._client, "defer")([*self._lease_keys, self._last, self._totals], args))


def _with(tally: Tally | None, field: str) -> Tally:
    return {field: 1, **(tally or {})}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _request_id() -> str:
    """Return the id of one call, unique among all callers: 64 random bits."""
    return secrets.token_hex(8)


def _pairs(leases: Iterable[Lease]) -> list[str]:
    return [part for lease in leases for part in (lease.id, lease.holder)]


def _ids(found: Iterable[bytes]) -> set[str]:
    return {raw.decode() for raw in found}
