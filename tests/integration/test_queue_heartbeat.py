"""The heartbeat: leases are renewed well before they expire, lost ones are noticed, without Redis the clock decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from demo.servers import EmbeddedRedis
from runner.errors import RedisUnreachableError
from runner.forget import forget_jobs
from runner.queue import heartbeat as heartbeat_module
from runner.queue.client import connect
from runner.queue.heartbeat import Heartbeat
from runner.settings import load
from runner.worker.kinds import PHOTO
from tests.support.queue_tools import closing_clients, pass_time, push, queue_of
from tests.support.redis_topologies import Relay

if TYPE_CHECKING:
    from redis import Redis

    from runner.queue.leases import Lease


class Clock:
    """A monotonic clock that moves only when the test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_renewal_keeps_a_lease_far_beyond_its_duration(redis: Redis) -> None:
    push(redis, [b"one"])
    queue, other = queue_of(redis, "a", lease_seconds=0.6), queue_of(redis, "b", lease_seconds=0.6)
    (lease,) = queue.claim(1)
    least = 0.6
    with Heartbeat([queue]) as heartbeat:
        heartbeat.add([lease])
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert other.claim(1) == []
            least = min(least, other.leased()[0].expires_in_seconds)
            time.sleep(0.02)
        assert heartbeat.still_owned(lease)
    assert least > 0.2, "it is renewed at two thirds of its time"


def test_a_removed_lease_expires(redis: Redis) -> None:
    push(redis, [b"one", b"two"])
    queue = queue_of(redis, "a", lease_seconds=0.6)
    kept, dropped = queue.claim(2)
    with Heartbeat([queue]) as heartbeat:
        heartbeat.add([kept, dropped])
        heartbeat.remove(dropped)
        time.sleep(1)
        assert [lease.payload for lease in queue_of(redis, "b").claim(2)] == [dropped.payload]
        assert heartbeat.still_owned(kept)
        assert not heartbeat.still_owned(dropped)


def test_a_lost_lease_is_noticed_before_anything_is_stored(redis: Redis, clock: Clock) -> None:
    """Redis' clock is set forward and another runner claims: by the local clock it would not be lost yet."""
    push(redis, [b"one", b"two"])
    queue = queue_of(redis, "a")
    lost, kept = queue.claim(2)
    with Heartbeat([queue], clock=clock) as heartbeat:
        heartbeat.add([lost, kept], claimed_at=clock.now)
        clock.now += 1
        assert heartbeat.still_owned(lost)
        pass_time(redis, 31)
        assert len(queue_of(redis, "b").claim(1)) == 1
        clock.now += 1
        assert not heartbeat.still_owned(lost)
        assert heartbeat.still_owned(kept)


def test_redis_is_queried_once_for_a_batch(redis: Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    push(redis, [b"%d" % number for number in range(8)])
    queue = queue_of(redis, "a")
    leases, calls = queue.claim(8), []
    renew = queue.renew

    def counted(leases: list[Lease]) -> list[Lease]:
        calls.append(len(leases))
        return renew(leases)

    monkeypatch.setattr(queue, "renew", counted)
    with Heartbeat([queue], clock=clock) as heartbeat:
        heartbeat.add(leases, claimed_at=clock.now)
        clock.now += 5
        assert all(heartbeat.still_owned(lease) for lease in leases)
        assert calls == [8]


def test_without_its_thread_the_heartbeat_queries_redis_in_the_caller(redis: Redis, clock: Clock) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    (lease,) = queue.claim(1)
    heartbeat = Heartbeat([queue], clock=clock)
    heartbeat.add([lease], claimed_at=clock.now)
    clock.now += 5
    pass_time(redis, 31)
    queue_of(redis, "b").claim(1)
    assert not heartbeat.still_owned(lease)


def test_two_claims_of_one_job_are_distinguished(redis: Redis, clock: Clock) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    heartbeat = Heartbeat([queue], clock=clock)
    (before,) = queue.claim(1)
    heartbeat.add([before], claimed_at=clock.now)
    pass_time(redis, 31)
    (after,) = queue.claim(1)
    heartbeat.add([after], claimed_at=clock.now)
    clock.now += 1
    assert not heartbeat.still_owned(before)
    assert heartbeat.still_owned(after)
    heartbeat.remove(before)
    assert heartbeat.still_owned(after)


def test_a_lease_counts_from_before_its_claim(redis: Redis) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a", lease_seconds=1.0)
    before = time.monotonic()
    (lease,) = queue.claim(1)
    after = time.monotonic()
    assert before <= lease.claimed_at <= after


class TestRedisAway:
    @pytest.fixture(autouse=True)
    def _closed_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        yield from closing_clients(monkeypatch, __name__)

    @pytest.fixture
    def relay(self) -> Iterator[Relay]:
        with EmbeddedRedis() as server, Relay(lambda: server.port) as relay:
            yield relay

    def connected(self, relay: Relay, seconds: str) -> Redis:
        url = f"redis://127.0.0.1:{relay.port}"
        return connect(load({"REDIS_URL": url, "RUNNER_CONNECT_TIMEOUT_SECONDS": seconds}, required=("redis_url",)))

    def test_leases_count_as_lost_before_another_can_take_them(
        self, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heartbeat_module, "ASK_SECONDS", 0.1)
        client = self.connected(relay, "60")
        push(client, [b"one"])
        queue = queue_of(client, "a", lease_seconds=4.0)
        (lease,) = queue.claim(1)
        claimed = time.monotonic()
        with Heartbeat([queue]) as heartbeat:
            heartbeat.add([lease])
            assert heartbeat.still_owned(lease)
            confirmed = time.monotonic()
            relay.cut_off()
            assert heartbeat.still_owned(lease), "no other runner can have it yet"
            while heartbeat.still_owned(lease):
                assert time.monotonic() < confirmed + 4.0, "it has to count as lost by then"
                time.sleep(0.01)
            given_up = time.monotonic()
            assert claimed + 3 < given_up < confirmed + 4
            heartbeat.remove(lease)  # as its runner does; otherwise it is renewed as soon as Redis is back
            relay.restore()
            other = queue_of(self.connected(relay, "5"), "b")
            while not other.claim(1):
                assert time.monotonic() < given_up + 10
                time.sleep(0.01)
            assert time.monotonic() > given_up

    def test_storing_does_not_wait_for_an_unreachable_redis(self, relay: Relay) -> None:
        """The caller holds locks in PostgreSQL: it waits half a second once, then uses the local clock."""
        client = self.connected(relay, "60")
        push(client, [b"%d" % number for number in range(40)])
        queue = queue_of(client, "a")
        leases = queue.claim(40)
        with Heartbeat([queue]) as heartbeat:
            heartbeat.add(leases)
            time.sleep(0.1)
            relay.cut_off()
            start = time.monotonic()
            assert all(heartbeat.still_owned(lease) for lease in leases)
            assert (
                time.monotonic() - start < 20 * heartbeat_module.ASK_SECONDS
            )  # it would take twice as long if each lease waited
            relay.restore()

    def test_a_run_stores_nothing_after_forget_even_if_redis_was_slow(self, relay: Relay) -> None:
        client, operator = self.connected(relay, "60"), self.connected(relay, "60")
        push(client, [b'{"imageUrl": "https://h/a.jpg", "id": "p"}'])
        queue = queue_of(client, "a", lease_seconds=60)
        (lease,) = queue.claim(1)
        with Heartbeat([queue]) as heartbeat:
            heartbeat.add([lease])
            time.sleep(2 * heartbeat_module.FRESH_SECONDS)
            operator.execute_command("CLIENT", "PAUSE", "1500")  # milliseconds
            assert heartbeat.still_owned(lease), "the local clock decides for a while"
            assert forget_jobs(operator, PHOTO, lambda _: True).interrupted == 1
            asked = time.monotonic()
            assert not heartbeat.still_owned(lease) or time.monotonic() - asked >= heartbeat_module.ASK_SECONDS, (
                "without asking Redis, unless that is slow again"
            )

    def test_renewal_resumes_after_redis_was_unreachable(self, relay: Relay) -> None:
        client = self.connected(relay, "0.1")
        push(client, [b"one"])
        queue = queue_of(client, "a", lease_seconds=1.5)
        (lease,) = queue.claim(1)
        with Heartbeat([queue]) as heartbeat:
            heartbeat.add([lease])
            relay.cut_off()
            time.sleep(0.8)
            relay.restore()
            time.sleep(1.5)
            assert [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
            assert heartbeat.still_owned(lease)
            relay.cut_off()
            with pytest.raises(RedisUnreachableError):
                heartbeat.beat()
