"""Helpers for tests of the queue: queues of several owners, control of lease times, and the state in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from runner.queue import client, keys
from runner.queue.leases import LeaseQueue
from runner.settings import Settings
from runner.worker.kinds import KINDS

LEASE_SECONDS = 30.0
NAME = "process"


def queue_of(
    redis: Redis, owner: str, *, name: str = NAME, lease_seconds: float = LEASE_SECONDS, max_attempts: int = 3
) -> LeaseQueue:
    return LeaseQueue(
        redis,
        name,
        owner=owner,
        lease_seconds=lease_seconds,
        max_attempts=max_attempts,
        payload_seconds=KINDS[name].payload_seconds,
    )


def closing_clients(monkeypatch: pytest.MonkeyPatch, module: str) -> Iterator[None]:
    """Close the clients that `connect` of a module returned during the test.

    A client that is garbage-collected without being closed raises a warning, in whichever test is running then.
    """
    clients: list[Redis] = []

    def noted(settings: Settings) -> Redis:
        clients.append(client.connect(settings))
        return clients[-1]

    monkeypatch.setattr(f"{module}.connect", noted)
    yield
    for one in clients:
        client.close(one)


def push(redis: Redis, payloads: Iterable[bytes], name: str = NAME) -> None:
    for payload in payloads:
        redis.rpush(keys.list_key(name), payload)


def pass_time(redis: Any, seconds: float, name: str = NAME) -> None:
    """Let `seconds` pass for the leases by moving their expiry; negative seconds set the clock back."""
    past = round(seconds * 1000)
    for key in (keys.leases(name), keys.parked(name)):
        for lease_id, score in redis.zrange(key, 0, -1, withscores=True):
            redis.zadd(key, {lease_id: score - past})
    for field, moment in redis.hgetall(keys.claimed(name)).items():
        if field.endswith(b":since"):
            redis.hset(keys.claimed(name), field, int(moment) - past)


@dataclass(frozen=True)
class Places:
    """Where each payload of a list is in Redis."""

    waiting: list[bytes]
    leased: dict[str, bytes]
    parked: dict[str, bytes]
    dead: dict[str, bytes]

    @property
    def all(self) -> list[bytes]:
        return [*self.waiting, *self.leased.values(), *self.parked.values(), *self.dead.values()]


def places(redis: Any, name: str = NAME) -> Places:
    """Read the keys directly, not through the code under test."""
    claimed = redis.hgetall(keys.claimed(name))
    scored = {raw.decode() for raw in redis.zrange(keys.leases(name), 0, -1)}
    payloads = {k.decode().removesuffix(":payload"): v for k, v in claimed.items() if k.endswith(b":payload")}
    parked = {raw.decode() for raw in redis.zrange(keys.parked(name), 0, -1)}
    assert set(payloads) == scored | parked, "a lease without a payload, or a payload without a lease"
    assert {k.decode().rpartition(":")[0] for k in claimed} == set(payloads), "an ended lease left fields behind"
    pending = {raw.decode() for raw in redis.scan_iter(keys.pending(name, "*"))}
    assert pending == {keys.pending(name, one) for one in parked}, "a set of pending photos without a parked job"
    dead_ids = [raw.decode() for raw in redis.zrange(keys.dead_index(name), 0, -1)]
    return Places(
        waiting=redis.lrange(keys.list_key(name), 0, -1),
        leased={one: payload for one, payload in payloads.items() if one in scored},
        parked={one: payload for one, payload in payloads.items() if one not in scored},
        dead={one: redis.get(keys.dead_payload(name, one)) or b"" for one in dead_ids},
    )
