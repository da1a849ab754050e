"""Every operation of the queue, tried once on a private list with the rights of the user that asks.

The private keys begin like all the others, so the key patterns of docs/reference/redis-keys.md cover them. Nothing
else reads them: runs and KEDA know the names of their lists. They are removed at the end, and expire where that is
prevented.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from runner.errors import CheckFailedError, MissingRightError, RunnerError
from runner.queue import keys
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.expiry import Expiry
from runner.queue.leases import LeaseQueue, Parked
from runner.queue.parking import Parking
from runner.queue.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

LIFETIME_SECONDS = 60
_OLDER, _NEWER, _OPERATOR = "doctor/self-test/1", "doctor/self-test/2", "doctor"


class SelfTest:
    """One private list and its side keys."""

    def __init__(self, redis: Redis) -> None:
        self.token = secrets.token_hex(8)
        self.name = f"doctor:{self.token}"
        self.unconfirmed = keys.unconfirmed(self.name)
        self.job_id = f"doctor-{self.token}"
        self._redis = redis
        self._list = keys.list_key(self.name)
        self._letters = DeadLetters(redis, self.name, owner=_OPERATOR)
        self._older, self._newer = (
            LeaseQueue(
                redis,
                self.name,
                owner=owner,
                lease_seconds=LIFETIME_SECONDS,
                max_attempts=3,
                payload_seconds=LIFETIME_SECONDS,
            )
            for owner in (_OLDER, _NEWER)
        )
        self._made = [
            self._list, keys.leases(self.name), keys.claimed(self.name), keys.dead(self.name),
            keys.dead_index(self.name), keys.seen(self.name),
            self.unconfirmed, keys.last(self.name, _OLDER), keys.last(self.name, _NEWER),
            keys.last(self.name, f"letters/{_OPERATOR}"), keys.match_result(self.job_id),
            keys.match_result_detail(self.job_id),
        ]  # fmt: skip

    def require_rights(self, *, results: bool) -> None:
        """Raise `MissingRightError` with every right at once that the Redis user lacks.

        `results`: also for the keys of comparisons' results.
        """
        places = [self._list, keys.leases(self.name), *([keys.match_result(self.job_id)] if results else [])]
        missing = sorted({grant for key in places for grant in self._missing(key)})
        if missing:
            raise MissingRightError(" ".join(missing), "the self-test of the queue needs it")

    def play(self) -> None:
        """Claim, renew, retry, release, bury, put back, drop, take over, park, wake and acknowledge.

        Raises as the operations do, and `CheckFailedError` where one succeeds and does something else.
        """
        self._redis.rpush(self._list, *[b"doctor"] * 5)
        self._expire()
        claimed = self._older.claim(5)
        self._expire()
        self._expect("claim", len(claimed) == 5)  # noqa: PLR2004 - as many as were pushed
        done, again, released, buried, dropped = claimed
        self._made += [keys.dead_payload(self.name, lease.id) for lease in (buried, dropped)]
        self._expect("renew", self._older.renew([done]) == [])
        self._expect("retry", self._older.retry(again, 0, "doctor"))
        self._expect("release", self._older.release(released))
        for lease in (buried, dropped):
            self._expect("dead_letter", self._older.dead_letter(lease, "doctor", ""))
            self._expire()
        self._expect("dead_letters", len(list(self._letters.all())) == 2)  # noqa: PLR2004 - as above
        self._expect("requeue", self._letters.requeue(buried.id) is Requeued.DONE)
        self._expire()
        self._expect("purge", self._letters.purge(dropped.id))
        self._expect("take_over", self._newer.take_over() == 1)
        rest = self._newer.claim(5)
        self._expect("claim", len(rest) == 4)  # noqa: PLR2004 - all but the one that was dropped
        parking = Parking(self._redis, self.name)
        waiting = rest.pop()
        self._made += [keys.parked(self.name), keys.pending(self.name, waiting.id)]
        self._expect("announce", parking.announce(waiting, ["doctor"], LIFETIME_SECONDS))
        self._expect("park", self._newer.park(waiting, "doctor", b"doctor") is Parked.DONE)
        self._expire()
        self._expect("wake", parking.photos_done(["doctor"]) == [waiting.id])
        rest += self._newer.claim(1)
        self._expect("acknowledge", self._newer.acknowledge_many(rest) == set())
        self._redis.rpush(self._list, b"doctor")
        self._expire()
        expiry = Expiry(self._redis, self.name, seconds=0)
        self._made.append(expiry.last)
        self._expect("expire", [expiry.remove(job, "doctor", "") for job in expiry.find()] == [True])
        self._expire()
        self._expect("purge", [self._letters.purge(letter.id) for letter in self._letters.all()] == [True])
        counts = self._newer.counts()
        self._expect("counts", (counts.waiting, counts.in_flight, counts.dead) == (0, 0, 0))

    def clean_up(self) -> None:
        """Remove every key, one by one: on a cluster they lie apart. What cannot be removed now expires."""
        with suppress(RunnerError):
            for key in self._made:
                self._redis.delete(key)

    def _missing(self, key: str) -> Sequence[str]:
        try:
            return [f"+{command.decode().lower()}" for command in Script(self._redis, "rights")([key])]
        except MissingRightError as error:
            return error.grant.split()

    def _expire(self) -> None:
        for key in self._made:
            self._redis.expire(key, LIFETIME_SECONDS)

    def _expect(self, operation: str, held: bool) -> None:  # noqa: FBT001 - a condition
        if not held:
            raise CheckFailedError(
                f"{operation} on the private list {self._list} did not do what it should: look for whatever else "
                "removes or evicts keys of this Redis (maxmemory-policy, docs/reference/redis-keys.md)"
            )
