"""Expiry of comparisons that have waited for too long, so that their selfies are deleted even if no runner is active.

The elements of the API's list have no TTL and no push time. A job's age therefore counts from when it was first seen
here.
"""

from __future__ import annotations

import json
import secrets
from typing import NamedTuple

from redis import Redis

from runner.queue import keys, totals
from runner.queue.scripts import Script

# As long as a result is kept: nobody waits longer for one.
WAIT_SECONDS = 3600
# If the list is not checked for this long, ages start from zero.
SEEN_SECONDS = 30 * 86_400
_AT_ONCE = 100
_KNOWN = 10_000
# One check reads new payloads up to this size; the next check reads the rest.
_CHECK_BYTES = 64 * 2**20
_START_BYTES = 64 * 2**10


class Overdue(NamedTuple):
    """A job that has waited for too long, since `since` (milliseconds of Redis' clock).

    `lease_id` is empty for a job in the list. `beginning` is the start of its payload, `bytes` the size of
    all of it.
    """

    lease_id: str
    sha1: str
    beginning: bytes
    bytes: int
    attempts: int
    since: int

    def __repr__(self) -> str:
        return f"Overdue({self.sha1!r})"  # its payload may hold a selfie


class Expiry:
    """The jobs of one list by age. Raises what redis raises."""

    def __init__(self, client: Redis, name: str, *, seconds: float = WAIT_SECONDS) -> None:
        self.name = name
        self._client = client
        self._milliseconds = round(seconds * 1000)
        self._owner = f"expiry/{secrets.token_hex(8)}"
        self.last = keys.last(name, self._owner)

    def find(self) -> list[Overdue]:
        """Return up to 100 jobs that have waited for too long, and record those seen for the first time."""
        rows = Script(self._client, "expired")(
            [
                keys.list_key(self.name), keys.seen(self.name), keys.leases(self.name), keys.claimed(self.name),
            ],
            [self._milliseconds, _AT_ONCE, _START_BYTES, SEEN_SECONDS, _KNOWN, _CHECK_BYTES],
        )  # fmt: skip
        return [
            Overdue(raw.decode(), sha1.decode(), beginning, int(size), int(attempts), int(since))
            for raw, sha1, beginning, size, attempts, since in rows
        ]

    def remove(self, job: Overdue, reason: str, detail: str) -> bool:
        """Dead-letter the job, without its payload; False if it was claimed in the meantime."""
        dead_letter_id = job.lease_id or f"{secrets.token_hex(8)}-0"
        dead_letter = {
            "id": dead_letter_id, "queue": self.name, "error": {"code": reason, "message": detail},
            "attempts": job.attempts, "runner": self._owner, "bytes": job.bytes,
        }  # fmt: skip
        done = Script(self._client, "expire")(
            [
                keys.list_key(self.name), keys.leases(self.name), keys.claimed(self.name),
                self.last, keys.dead(self.name), keys.dead_index(self.name), keys.totals(self.name),
            ],
            [
                secrets.token_hex(8), job.lease_id, job.sha1, dead_letter_id, f"{job.since} {json.dumps(dead_letter)}",
                totals.encode({totals.job_field(totals.DEAD_LETTERED, reason): 1}),
            ],
        )  # fmt: skip
        return bool(done)
