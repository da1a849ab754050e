"""The leased list: a job is moved, never popped, so that whoever dies with it loses nothing.

Each operation is one Lua script beside this file, atomic and on Redis' own clock. A lease belongs to the process
that claimed it; only that owner can renew or settle it (fencing), so work on a lost lease changes nothing here.
"""

from __future__ import annotations

import json
import random as random_module
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from runner.queue import keys

if TYPE_CHECKING:
    from redis import Redis

# A selfie is kept no longer than the result it was sent for; other payloads as long as their letter.
SELFIE_SECONDS = 3600
LETTER_SECONDS = 30 * 86_400

_SCRIPTS = ("claim", "renew", "acknowledge", "defer", "bury", "take_over", "counts")


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job: `attempts` counts this one too."""

    id: str
    queue: str
    payload: bytes = field(repr=False)
    attempts: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How a list stands. `next_due_seconds` is None where nothing is leased, and 0 where a lease is due."""

    waiting: int
    in_flight: int
    due: int
    dead: int
    next_due_seconds: float | None


def owner_name(name: str) -> str:
    """Return the owner of this process: `name` is the Kubernetes Job's, or empty outside of one.

    The part behind the slash is this process alone: the pod that replaces a dead pod of the same Job takes its
    leases over, and yet the two can never settle each other's.
    """
    return f"{name or socket.gethostname()}/{uuid.uuid4().hex}"


def backoff(attempts: int, *, base: float, cap: float, random: random_module.Random) -> float:
    """Return the seconds to wait before the next attempt: doubled each time, capped, half of it jitter."""
    longest: float = min(cap, base * 2.0 ** (attempts - 1))
    return longest * random.uniform(0.5, 1.0)


class LeaseQueue:
    """One list with its leases and dead letters, as seen by one owner. Errors of redis come out as they are."""

    def __init__(self, client: Redis, name: str, *, owner: str, lease_seconds: float, max_attempts: int) -> None:
        self.name = name
        self.owner = owner
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self._client = client
        self._scripts: Mapping[str, Any] = {script: client.register_script(_text(script)) for script in _SCRIPTS}
        self._list = keys.list_key(name)
        self._leases = keys.leases(name)
        self._claimed = keys.claimed(name)

    def claim(self, limit: int) -> list[Lease]:
        """Lease up to `limit` jobs: first those whose lease has expired, then the head of the list.

        The attempt is counted here, so that a job that ends its runner is counted too: `attempts` can exceed
        `max_attempts`, and then the job is to be buried.
        """
        if limit <= 0:
            return []
        found = self._scripts["claim"](
            keys=[self._list, self._leases, self._claimed],
            args=[self.owner, self._milliseconds(self.lease_seconds), limit, uuid.uuid4().hex],
        )
        return [Lease(raw.decode(), self.name, payload, int(attempts)) for raw, payload, attempts in found]

    def renew(self, lease_ids: Iterable[str]) -> set[str]:
        """Keep the leases for another `lease_seconds`; return the ids of those that are no longer ours."""
        ids = list(lease_ids)
        if not ids:
            return set()
        args = [self.owner, self._milliseconds(self.lease_seconds), *ids]
        return _ids(self._scripts["renew"](keys=[self._leases, self._claimed], args=args))

    def acknowledge(self, lease: Lease) -> bool:
        """End the lease of a job that is done; False where the lease is no longer ours."""
        return not self.acknowledge_many([lease])

    def acknowledge_many(self, leases: Sequence[Lease]) -> set[str]:
        """End the leases of jobs that are done; return the ids of those that were no longer ours."""
        if not leases:
            return set()
        args = [self.owner, *(lease.id for lease in leases)]
        return _ids(self._scripts["acknowledge"](keys=[self._leases, self._claimed], args=args))

    def retry(self, lease: Lease, delay_seconds: float, reason: str) -> bool:
        """Let the job fall due again later; False where the lease is no longer ours."""
        return self._defer(lease, delay_seconds, 0, reason)

    def release(self, lease: Lease) -> bool:
        """Give the job back, due at once and without this attempt; False where the lease is no longer ours."""
        return self._defer(lease, 0, -1, "released")

    def bury(self, lease: Lease, reason: str, detail: str) -> bool:
        """Make the job a dead letter; False where the lease is no longer ours."""
        letter = {
            "id": lease.id,
            "queue": self.name,
            "reason": reason,
            "detail": detail,
            "attempts": lease.attempts,
            "runner": self.owner,
            "bytes": len(lease.payload),
        }
        seconds = SELFIE_SECONDS if self.name == "compare" else 0
        dead_keys = [keys.dead(self.name), keys.dead_index(self.name), keys.dead_payload(self.name, lease.id)]
        done = self._scripts["bury"](
            keys=[self._leases, self._claimed, *dead_keys],
            args=[self.owner, lease.id, json.dumps(letter), seconds, LETTER_SECONDS * 1000],
        )
        return bool(done)

    def take_over(self) -> int:
        """Let the leases of earlier processes of the same owner fall due at once; return how many."""
        prefix = self.owner.rpartition("/")[0] + "/"
        return int(self._scripts["take_over"](keys=[self._leases, self._claimed], args=[self.owner, prefix]))

    def counts(self) -> Counts:
        """Return how the list stands."""
        waiting, in_flight, due, dead, milliseconds = self._scripts["counts"](
            keys=[self._list, self._leases, keys.dead_index(self.name)]
        )
        seconds = None if int(milliseconds) < 0 else int(milliseconds) / 1000
        return Counts(int(waiting), int(in_flight), int(due), int(dead), seconds)

    def _defer(self, lease: Lease, seconds: float, attempts: int, reason: str) -> bool:
        args = [self.owner, lease.id, self._milliseconds(seconds), attempts, reason]
        return bool(self._scripts["defer"](keys=[self._leases, self._claimed], args=args))

    @staticmethod
    def _milliseconds(seconds: float) -> int:
        return round(seconds * 1000)


def _text(script: str) -> str:
    return (resources.files("runner.queue") / f"{script}.lua").read_text(encoding="utf-8")


def _ids(found: Iterable[bytes]) -> set[str]:
    return {raw.decode() for raw in found}
