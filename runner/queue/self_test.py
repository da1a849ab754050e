"""A self-test for `doctor`: every queue operation once, on a private list and with the user's own rights.

The key patterns of docs/reference/redis-keys.md cover the private keys. Nothing else reads them, because runs and KEDA
use fixed list names. The keys are removed at the end, or expire if that fails.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress

from redis import Redis

from runner.errors import CheckFailedError, MissingRightError, RunnerError
from runner.queue import keys, rights, totals
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.expiry import Expiry
from runner.queue.hosts import Failure, Hosts, Verdict
from runner.queue.leases import Lease, LeaseQueue, Parked
from runner.queue.parking import Parking
from runner.queue.scripts import Script
from runner.queue.totals import read_totals

LIFETIME_SECONDS = 60
# Connecting and the script itself need two of them, and a script may not block.
_TRIED_ELSEWHERE = frozenset({"PING", "EVAL", "BLMOVE"})
_SERVER = "doctor"
_OLDER, _NEWER, _OPERATOR = "doctor/self-test/1", "doctor/self-test/2", "doctor"


class SelfTest:
    """A private list and its other keys."""

    def __init__(self, redis: Redis) -> None:
        self.token = secrets.token_hex(8)
        self.name = f"doctor:{self.token}"
        self.unconfirmed = keys.unconfirmed(self.name)
        self.job_id = f"doctor-{self.token}"
        self._redis = redis
        self._list = keys.list_key(self.name)
        self._dead_letters = DeadLetters(redis, self.name, owner=_OPERATOR)
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
        self._places = {
            "~face_embeddings:*": self._list,
            "~{face_embeddings:*": keys.leases(self.name),
            "~match-result:*": keys.match_result(self.job_id),
        }
        self._created = [
            self._list, keys.leases(self.name), keys.claimed(self.name), keys.dead(self.name),
            keys.dead_index(self.name), keys.seen(self.name), keys.totals(self.name), keys.runs(self.name),
            self.unconfirmed, keys.last(self.name, _OLDER), keys.last(self.name, _NEWER),
            keys.last(self.name, f"letters/{_OPERATOR}"), keys.match_result(self.job_id),
            keys.match_result_detail(self.job_id),
        ]  # fmt: skip

    def require_rights(self, commands: Collection[str]) -> None:
        """Raise one `MissingRightError` with every right that the Redis user lacks for any of the commands."""
        if missing := self.missing(commands):
            raise MissingRightError(" ".join(sorted(missing)), f"needed by {', '.join(sorted(commands))}")

    def missing(self, commands: Collection[str]) -> set[str]:
        """Return the ACL rules that the Redis user lacks for any of the commands."""
        rules = rights.needed(commands)
        tried = sorted(rule[1:].upper() for rule in rules if rule.startswith("+"))
        names = [name for name in tried if name not in _TRIED_ELSEWHERE]
        places = {key for pattern, key in self._places.items() if pattern in rules}
        waits = self._missing_to_wait() if "BLMOVE" in tried else set()
        return {grant for key in places for grant in self._missing(key, names)} | waits

    def play(self) -> None:
        """Claim, renew, retry, release, dead-letter, requeue, purge, take over, park, wake, wait and expire.

        Raises what the operations raise, and `CheckFailedError` if one has no effect.
        """
        pushed = [b"doctor"] * 5
        self._redis.rpush(self._list, *pushed)
        self._expire()
        self._expect("wait_for_push", self._older.wait_for_push(1))
        claimed = self._older.claim(len(pushed))
        self._expire()
        self._expect("claim", len(claimed) == len(pushed))
        done, again, released, requeued, purged = claimed
        dead = (requeued, purged)
        self._created += [keys.dead_payload(self.name, lease.id) for lease in dead]
        self._expect("renew", self._older.renew([done]) == [])
        self._expect("retry", self._older.retry(again, 0, "doctor"))
        self._expect("release", self._older.release(released))
        for lease in dead:
            self._expect("dead_letter", self._older.dead_letter(lease, "doctor", ""))
            self._expire()
        self._expect("dead_letters", len(list(self._dead_letters.all())) == len(dead))
        self._expect("requeue", self._dead_letters.requeue(requeued.id) is Requeued.DONE)
        self._expire()
        self._expect("purge", self._dead_letters.purge(purged.id))
        self._expect("take_over", self._newer.take_over() == 1)
        rest = self._newer.claim(len(pushed))
        self._expect("claim", len(rest) == len(pushed) - 1)  # without the purged one
        rest += self._play_parking(rest.pop())
        self._play_outage(rest)
        self._expect("acknowledge", self._newer.acknowledge_many(rest) == set())
        self._redis.rpush(self._list, b"doctor")
        self._expire()
        expiry = Expiry(self._redis, self.name, seconds=0)
        self._created.append(expiry.last)
        self._expect("expire", [expiry.remove(job, "doctor", "") for job in expiry.find()] == [True])
        self._expire()
        self._expect(
            "purge", [self._dead_letters.purge(dead_letter.id) for dead_letter in self._dead_letters.all()] == [True]
        )
        totals_now = read_totals(self._redis, self.name)
        self._expect("totals", (totals_now[totals.TAKEN], totals_now[totals.REQUEUES]) == (7, 1))
        self._newer.end_run('{"doctor": true}')
        counts = self._newer.counts()
        self._expect("counts", (counts.waiting, counts.in_flight, counts.dead_letters) == (0, 0, 0))

    def _play_parking(self, waiting: Lease) -> list[Lease]:
        """Park a job, wake it, and claim it again."""
        parking = Parking(self._redis, self.name)
        self._created += [keys.parked(self.name), keys.pending(self.name, waiting.id)]
        self._expect("announce", parking.announce(waiting, ["doctor"], LIFETIME_SECONDS))
        self._expect("park", self._newer.park(waiting, "doctor", b"doctor") is Parked.DONE)
        self._expire()
        self._expect("wake", parking.photos_done(["doctor"]) == [waiting.id])
        return self._newer.claim(1)

    def _play_outage(self, leases: list[Lease]) -> None:
        """Let two jobs wait for an image server, one as its probe, and claim them again when it answers."""
        hosts = Hosts(self._redis, self.name, owner=_NEWER)
        names = (keys.hosts(self.name), keys.host(self.name, _SERVER), keys.host_parked(self.name, _SERVER))
        self._created += names
        verdicts = []
        for _ in range(2):
            failure = Failure(is_first=True, pause_seconds=LIFETIME_SECONDS, delay_seconds=0)
            found = hosts.wait(
                leases.pop(), _SERVER, failure=failure, timeout_seconds=LIFETIME_SECONDS, state=b"", tally={}
            )
            verdicts.append(found[0])
            self._expire()
        self._expect("wait_for_host", verdicts == [Verdict.PUT_OFF, Verdict.PARKED])
        self._expect("host_answers", hosts.failing() == {_SERVER} and hosts.answers(_SERVER) == 1)
        waiting = [lease.id for lease in self._newer.leased() if not lease.owner]
        self._redis.zadd(keys.leases(self.name), dict.fromkeys(waiting, 0), xx=True)
        leases += self._newer.claim(5)

    def clean_up(self) -> None:
        """Remove every key, one by one: on Redis Cluster they are in different slots. The others expire."""
        with suppress(RunnerError):
            for key in self._created:
                self._redis.delete(key)

    def _missing(self, key: str, commands: Sequence[str]) -> Sequence[str]:
        try:
            return [f"+{command.decode().lower()}" for command in Script(self._redis, "rights")([key], commands)]
        except MissingRightError as error:
            return error.grant.split()

    def _missing_to_wait(self) -> set[str]:
        """Return the right to wait for pushes, if it is missing. A script may not block, so it cannot try that."""
        try:
            self._older.wait_for_push(0.01)
        except MissingRightError as error:
            return set(error.grant.split())
        return set()

    def _expire(self) -> None:
        for key in self._created:
            self._redis.expire(key, LIFETIME_SECONDS)

    def _expect(self, operation: str, condition: bool) -> None:  # noqa: FBT001 - private
        if not condition:
            raise CheckFailedError(
                f"{operation} on the private list {self._list} had the wrong result: find out what else removes or "
                "evicts keys of this Redis (maxmemory-policy, docs/reference/redis-keys.md)"
            )
