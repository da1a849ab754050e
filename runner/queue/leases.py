"""The leased list: a job is moved, never popped, so that whoever dies with it loses nothing.

Each operation is one Lua script beside this file, atomic and on Redis' own clock. A lease belongs to the claim that
made it: only who holds that very claim can renew or settle it (fencing), so work on a lost lease changes nothing
here. Every operation may be sent twice: a repetition is answered like the first. See
docs/explanation/queue-protocol.md.
"""

from __future__ import annotations

import json
import random as random_module
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

from runner.queue import keys
from runner.queue.scripts import Script

if TYPE_CHECKING:
    from redis import Redis

DEAD_LETTER_SECONDS = 30 * 86_400
# No lease and no retry lasts longer (their settings end at an hour): what lies further ahead shows that Redis'
# clock was set back.
HORIZON_SECONDS = 3600
# One claim hands out no further job once it carries this much, and of a larger payload only the beginning: a
# payload that a runner cannot hold would end every runner at its claim, before any of them could bury it. The
# base64 of a selfie of 48 MiB fits.
CLAIM_BYTES = 64 * 2**20
OVERSIZED_SHOWN_BYTES = 64 * 2**10
DETAIL_LENGTH = 1000

State: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job: `attempts` counts this one too.

    `holder` is the claim that the lease belongs to. `bytes` is the size of the whole payload (0: that of `payload`);
    of one that is too large `payload` is only the beginning. `alone` asks for nothing else to be in hand beside it.
    `claimed_at` is a moment of `time.monotonic` from before the claim, `age_seconds` the time from when the job left
    the list to its claim, and `state` what the last holder left with `put_off` or `park`.
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
        """Whether the payload is too large to be handed out."""
        return len(self.payload) < self.bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """How a list stands. `next_due_seconds` is None where nothing is leased, and 0 where a lease is due.

    `parked` counts the comparisons that wait for their album; they are not in flight.
    """

    waiting: int
    in_flight: int
    due: int
    dead: int
    next_due_seconds: float | None
    parked: int = 0


class Parked(Enum):
    """What became of a job that was to be parked."""

    DONE = "parked"
    WOKEN = "woken"  # what it waited for is over: it is still leased
    LOST = "lost"  # the lease is another's


@dataclass(frozen=True, slots=True)
class Leased:
    """A lease as an onlooker sees it. `owner` is empty while the job is put off (`reason` says why).

    `due_seconds` is negative where it is overdue; `since_seconds` is the time since the job left the list.
    """

    id: str
    queue: str
    owner: str
    attempts: int
    due_seconds: float
    since_seconds: float
    reason: str
    bytes: int


def owner_name(name: str) -> str:
    """Return the owner of this process: NAME/PLACE/PROCESS, or PLACE/PROCESS where `name` is empty.

    `name` is the Kubernetes Job's, PLACE the host's (the pod's) and PROCESS this process alone: whoever replaces a
    dead process takes its leases over (`LeaseQueue.take_over`), and yet the two can never settle each other's.
    """
    parts = [name, socket.gethostname(), secrets.token_hex(8)]
    return "/".join(quote(part, safe="") for part in parts if part)


def backoff(attempts: int, *, base: float, cap: float, random: random_module.Random) -> float:
    """Return the seconds to wait before the next attempt: doubled each time, capped, half of it jitter."""
    longest: float = min(cap, base * 2.0 ** (attempts - 1))
    return longest * random.uniform(0.5, 1.0)


class LeaseQueue:
    """One list with its leases and dead letters, as seen by one owner. Errors of redis come out as they are.

    One call at a time claims or settles, from whatever thread; `renew` and the looks may be called beside it. The
    payload of a dead letter is kept for `payload_seconds`. The keys are those of `list_name`, where it is given.
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
    ) -> None:
        self.name = name
        self.list_name = list_name or name
        self.owner = owner
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self._payload_seconds = payload_seconds
        self._client = client
        self._list = keys.list_key(self.list_name)
        self._held = [keys.leases(self.list_name), keys.claimed(self.list_name)]
        self._last = keys.last(self.list_name, owner)
        self._letters = [keys.dead(self.list_name), keys.dead_index(self.list_name)]
        self._parked = keys.parked(self.list_name)

    def claim(self, limit: int, *, in_hand: int | None = None) -> list[Lease]:
        """Lease up to `limit` jobs: first those whose lease has expired, then the head of the list.

        Fewer than `limit` may be returned while more are there, where their payloads are large. The attempt is
        counted here, so that a job that ends its runner is counted too: `attempts` can exceed `max_attempts`, and
        then the job is to be buried.

        Where `in_hand` says how many jobs the caller holds, the last attempt at a job whose runner died comes alone,
        and only to a caller that holds none: it may be the job that ended that runner.
        """
        return self._claim(limit, in_hand) if limit > 0 else []

    def check(self) -> None:
        """Raise what Redis would refuse of a claim: a right, or a key of another type. Changes nothing."""
        self._claim(0, None)

    def _claim(self, limit: int, in_hand: int | None) -> list[Lease]:
        word, before = _word(), time.monotonic()
        found = Script(self._client, "claim")(
            [self._list, *self._held, self._last, *self._letters],
            [
                self.owner, word, _milliseconds(self.lease_seconds), limit, CLAIM_BYTES, CLAIM_BYTES,
                OVERSIZED_SHOWN_BYTES, _milliseconds(HORIZON_SECONDS), _milliseconds(DEAD_LETTER_SECONDS),
                self.max_attempts, -1 if in_hand is None else in_hand,
            ],
        )  # fmt: skip
        holder = f"{self.owner}#{word}"
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
        """Keep the leases for another `lease_seconds`; return those that are no longer ours."""
        if not leases:
            return []
        args: list[str | float] = [_milliseconds(self.lease_seconds), *_pairs(leases)]
        return [leases[int(index)] for index in Script(self._client, "renew")(self._held, args)]

    def acknowledge(self, lease: Lease) -> bool:
        """End the lease of a job that is done; False where the lease is no longer ours."""
        return not self.acknowledge_many([lease])

    def acknowledge_many(self, leases: Sequence[Lease]) -> set[str]:
        """End the leases of jobs that are done; return the ids of those that were no longer ours."""
        if not leases:
            return set()
        pending = [keys.pending(self.list_name, lease.id) for lease in leases]
        return _ids(
            Script(self._client, "acknowledge")(
                [*self._held, self._last, self._parked, *pending], [_word(), *_pairs(leases)]
            )
        )

    def retry(self, lease: Lease, delay_seconds: float, reason: str) -> bool:
        """Let the job fall due again later; False where the lease is no longer ours."""
        return self._defer(lease, min(delay_seconds, HORIZON_SECONDS), reason, spared=False)

    def release(self, lease: Lease, delay_seconds: float = 0) -> bool:
        """Give the job back, due after `delay_seconds`; False where the lease is no longer ours.

        This attempt does not count: the next claim returns the same `attempts`.
        """
        return self._defer(lease, min(delay_seconds, HORIZON_SECONDS), "released", spared=True)

    def put_off(self, lease: Lease, delay_seconds: float, reason: str, state: bytes) -> bool:
        """Let the job fall due later without counting this attempt; False where the lease is no longer ours.

        The next claim returns `state`.
        """
        return self._defer(lease, min(delay_seconds, HORIZON_SECONDS), reason, spared=True, state=state)

    def park(self, lease: Lease, reason: str, state: bytes) -> Parked:
        """Take an announced job out of the leases until it is woken (see `runner.queue.parking`).

        This attempt does not count, and the next claim returns `state`.
        """
        done = Script(self._client, "park")(
            [*self._held, self._last, self._parked], [_word(), lease.id, lease.holder, reason, state]
        )
        return {1: Parked.DONE, 0: Parked.LOST, -1: Parked.WOKEN}[int(done)]

    def dead_letter(self, lease: Lease, reason: str, detail: str) -> bool:
        """Make the job a dead letter; False where the lease is no longer ours. `detail` holds nothing secret."""
        from runner.queue.privacy import SELFIE_SECONDS, may_hold_selfie

        letter = {
            "id": lease.id,
            "queue": self.name,
            "reason": reason,
            "detail": detail[:DETAIL_LENGTH],
            "attempts": lease.attempts,
            "runner": self.owner,
            "bytes": max(lease.bytes, len(lease.payload)),
        }
        private = lease.truncated or may_hold_selfie(lease.payload)
        seconds = min(self._payload_seconds, SELFIE_SECONDS) if private else self._payload_seconds
        done = Script(self._client, "dead_letter")(
            [
                *self._held, self._last, *self._letters, keys.dead_payload(self.list_name, lease.id),
                self._parked, keys.pending(self.list_name, lease.id),
            ],
            [
                _word(), lease.id, lease.holder, json.dumps(letter), _milliseconds(seconds),
                _milliseconds(DEAD_LETTER_SECONDS),
            ],
        )  # fmt: skip
        return bool(done)

    def take_over(self) -> int:
        """Let the leases of earlier processes of the same named owner fall due at once; return how many.

        A Kubernetes Job runs one pod at a time, so they are dead. One that lives after all (on a node that was given
        up as lost) is fenced: the next claim has another holder.
        """
        job, _, _ = self.owner.rpartition("/")[0].rpartition("/")
        if not job:
            return 0
        return int(Script(self._client, "take_over")(self._held, [f"{self.owner}#", f"{job}/"]))

    def counts(self) -> Counts:
        """Return how the list stands."""
        waiting, in_flight, due, dead, milliseconds, parked = Script(self._client, "counts")(
            [self._list, keys.leases(self.name), keys.dead_index(self.name), self._parked],
            [_milliseconds(DEAD_LETTER_SECONDS)],
        )
        seconds = None if int(milliseconds) < 0 else int(milliseconds) / 1000
        return Counts(int(waiting), int(in_flight), int(due), int(dead), seconds, int(parked))

    def leased(self, limit: int = 1000) -> list[Leased]:
        """Return up to `limit` leases, those that fall due first, without changing anything."""
        rows = Script(self._client, "leased")(self._held, [limit])
        return [
            Leased(
                id=raw.decode(),
                queue=self.name,
                owner=holder.decode().partition("#")[0],
                attempts=int(attempts),
                due_seconds=int(due) / 1000,
                since_seconds=int(since) / 1000,
                reason=reason.decode(),
                bytes=int(size),
            )
            for raw, due, since, holder, attempts, reason, size in rows
        ]

    def _defer(self, lease: Lease, seconds: float, reason: str, *, spared: bool, state: bytes = b"") -> bool:
        args: list[str | float | bytes] = [
            _word(), lease.id, lease.holder, _milliseconds(seconds), int(spared), reason, state,
        ]  # fmt: skip
        return bool(Script(self._client, "defer")([*self._held, self._last], args))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _word() -> str:
    """Return what no other call of anyone is known by: 64 random bits."""
    return secrets.token_hex(8)


def _pairs(leases: Iterable[Lease]) -> list[str]:
    return [word for lease in leases for word in (lease.id, lease.holder)]


def _ids(found: Iterable[bytes]) -> set[str]:
    return {raw.decode() for raw in found}
