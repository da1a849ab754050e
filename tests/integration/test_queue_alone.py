"""A job that kills its runners is identified: its last attempt is made alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.queue_tools import LEASE_SECONDS, pass_time, push, queue_of

if TYPE_CHECKING:
    from redis import Redis


def _die_with_all(redis: Redis, count: int, times: int) -> None:
    """Let `times` runners die with `count` jobs in flight."""
    for number in range(times):
        assert len(queue_of(redis, f"dead-{number}").claim(count, in_flight=0)) == count
        pass_time(redis, LEASE_SECONDS + 1)


def test_early_attempts_are_claimed_together(redis: Redis) -> None:
    push(redis, [b"a", b"b", b"c"])
    _die_with_all(redis, 3, 1)
    leases = queue_of(redis, "b").claim(5, in_flight=0)
    assert [(lease.attempts, lease.alone) for lease in leases] == [(2, False)] * 3


def test_the_last_attempt_after_a_death_is_claimed_alone(redis: Redis) -> None:
    push(redis, [b"a", b"b", b"c", b"d"])
    _die_with_all(redis, 3, 2)
    queue = queue_of(redis, "b")
    found = []
    for left in (2, 1, 0):
        (lease,) = queue.claim(5, in_flight=0)
        assert (lease.attempts, lease.alone) == (3, True)
        if left:
            assert queue.claim(5, in_flight=1) == []  # not even the new job behind it
        assert queue.acknowledge(lease)
        found.append(lease.payload)
    assert sorted(found) == [b"a", b"b", b"c"]
    assert [(lease.payload, lease.alone) for lease in queue.claim(5, in_flight=0)] == [(b"d", False)]


def test_a_busy_runner_does_not_claim_a_last_attempt_after_a_death(redis: Redis) -> None:
    push(redis, [b"a", b"new"])
    _die_with_all(redis, 1, 2)
    assert queue_of(redis, "busy").claim(5, in_flight=3) == []
    assert [lease.payload for lease in queue_of(redis, "free").claim(5, in_flight=0)] == [b"a"]
    assert [lease.payload for lease in queue_of(redis, "busy").claim(5, in_flight=3)] == [b"new"]


def test_jobs_due_before_a_last_attempt_are_claimed_first(redis: Redis) -> None:
    push(redis, [b"retried", b"a"])
    _die_with_all(redis, 2, 1)
    queue = queue_of(redis, "dead")
    (other,) = [lease for lease in queue.claim(2, in_flight=0) if lease.payload == b"retried"]
    assert queue.retry(other, 0, "fetch_failed")
    pass_time(redis, LEASE_SECONDS + 1)
    assert [lease.payload for lease in queue_of(redis, "b").claim(5, in_flight=0)] == [b"retried"]


def test_a_retry_or_a_release_does_not_count_as_a_death(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    for _ in range(2):
        queue = queue_of(redis, "b")
        for lease in queue.claim(2, in_flight=0):
            assert queue.retry(lease, 0, "fetch_failed")
    leases = queue.claim(2, in_flight=0)
    assert [(lease.attempts, lease.alone) for lease in leases] == [(3, False)] * 2
    for lease in leases:
        assert queue.release(lease)
    assert [(lease.attempts, lease.alone) for lease in queue.claim(2, in_flight=0)] == [(3, False)] * 2


def test_jobs_without_attempts_left_are_claimed_together_with_others(redis: Redis) -> None:
    push(redis, [b"a", b"b", b"c"])
    _die_with_all(redis, 2, 2)
    for _ in range(2):
        (lease,) = queue_of(redis, "dead").claim(5, in_flight=0)
        assert lease.alone
    pass_time(redis, LEASE_SECONDS + 1)
    leases = queue_of(redis, "b").claim(5, in_flight=2)
    assert [(lease.attempts, lease.alone) for lease in leases] == [(4, False), (4, False), (1, False)]


def test_without_a_count_in_flight_last_attempts_are_claimed_with_others(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    _die_with_all(redis, 2, 2)
    assert [lease.alone for lease in queue_of(redis, "b").claim(2)] == [False, False]


def test_a_death_after_retries_leaves_an_attempt_alone(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    queue = queue_of(redis, "b")
    for _ in range(2):
        assert queue.retry(queue.claim(1, in_flight=0)[0], 0, "photo_timeout")
    _die_with_all(redis, 2, 1)
    found = {}
    for _ in range(2):
        (lease,) = queue.claim(5, in_flight=0)
        assert queue.acknowledge(lease)
        found[lease.payload] = (lease.attempts, lease.alone)
    assert found == {b"a": (3, True), b"b": (2, False)}


def test_the_only_attempt_of_a_job_is_repeated_alone_after_a_death(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    assert len(queue_of(redis, "dead", max_attempts=1).claim(2, in_flight=0)) == 2
    pass_time(redis, LEASE_SECONDS + 1)
    queue = queue_of(redis, "b", max_attempts=1)
    for _ in range(2):
        (lease,) = queue.claim(5, in_flight=0)
        assert (lease.attempts, lease.alone) == (1, True)
        assert queue.acknowledge(lease)


def test_an_attempt_alone_that_was_released_can_be_made_alone_again(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    _die_with_all(redis, 2, 2)
    queue = queue_of(redis, "b")
    for _ in range(2):
        assert queue.release(queue.claim(1, in_flight=0)[0])
    assert [lease.alone for lease in queue_of(redis, "dead").claim(2, in_flight=0)] == [False, False]
    pass_time(redis, LEASE_SECONDS + 1)
    assert [(lease.attempts, lease.alone) for lease in queue.claim(5, in_flight=0)] == [(3, True)]


def test_a_job_whose_runner_dies_with_it_alone_has_no_attempt_left(redis: Redis) -> None:
    push(redis, [b"a"])
    _die_with_all(redis, 1, 3)
    assert [(lease.attempts, lease.alone) for lease in queue_of(redis, "b").claim(5, in_flight=2)] == [(4, False)]
    pass_time(redis, LEASE_SECONDS + 1)
    assert [(lease.attempts, lease.alone) for lease in queue_of(redis, "b").claim(5, in_flight=2)] == [(5, False)]
