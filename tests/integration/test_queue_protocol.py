"""The queue protocol, operation by operation, against a real server."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from runner.queue import keys
from runner.queue import leases as leases_module
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.leases import Counts
from tests.support.queue_tools import NAME, pass_time, places, push, queue_of

if TYPE_CHECKING:
    from redis import Redis

    from runner.queue.leases import Lease

# Invalid UTF-8, a NUL, a quote, a newline, and characters that cjson or a Lua pattern would mishandle.
HOSTILE = [b"\xff\xfe\x00%s\"'\r\n", b"", b"\xed\xa0\x80", bytes(range(256)), b'{"id":"\xc3("}', b"%1 %d -- ]]"]


def test_a_claim_moves_jobs_and_counts_the_attempt(redis: Redis) -> None:
    push(redis, [b"one", b"two", b"three"])
    queue = queue_of(redis, "a")
    found = queue.claim(2)
    assert [(lease.payload, lease.attempts, lease.queue) for lease in found] == [(b"one", 1, NAME), (b"two", 1, NAME)]
    now = places(redis)
    assert (now.waiting, sorted(now.leased.values())) == ([b"three"], [b"one", b"two"])
    counts = queue.counts()
    assert counts == Counts(1, 2, 0, 0, counts.next_expiry_seconds)
    assert 29 < (counts.next_expiry_seconds or 0) <= 30
    assert queue.claim(0) == []
    assert queue.claim(-1) == []


def test_an_expired_lease_is_claimed_by_any_runner(redis: Redis) -> None:
    push(redis, [b"one", b"two"])
    dead, other = queue_of(redis, "dead"), queue_of(redis, "other")
    first = dead.claim(1)[0]
    assert [lease.payload for lease in other.claim(5)] == [b"two"]
    pass_time(redis, 31)
    again = {lease.payload: lease for lease in other.claim(5)}[b"one"]
    assert (again.id, again.attempts) == (first.id, 2)
    assert dead.renew([first]) == [first]
    assert dead.acknowledge(first) is False
    assert dead.retry(first, 1, "late") is False
    assert dead.release(first) is False
    assert dead.dead_letter(first, "late", "") is False
    assert sorted(places(redis).leased.values()) == [b"one", b"two"]
    assert other.acknowledge(again) is True


def test_expired_leases_come_before_the_list(redis: Redis) -> None:
    push(redis, [b"old"])
    queue_of(redis, "dead").claim(1)
    push(redis, [b"new"])
    pass_time(redis, 31)
    assert [lease.payload for lease in queue_of(redis, "b").claim(1)] == [b"old"]


def test_a_late_settlement_counts_while_no_other_runner_has_the_job(redis: Redis) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    lease = queue.claim(1)[0]
    pass_time(redis, 31)
    assert queue.renew([lease]) == []
    assert queue.counts().expired == 0
    pass_time(redis, 31)
    assert queue.acknowledge(lease) is True
    assert places(redis).all == []


def test_a_process_that_claims_its_own_expired_lease_is_fenced_from_its_earlier_self(redis: Redis) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    before = queue.claim(1)[0]
    pass_time(redis, 31)
    after = queue.claim(1)[0]
    assert (after.id, after.attempts) == (before.id, 2)
    assert queue.renew([before, after]) == [before]
    assert queue.retry(before, 5, "late") is False
    assert queue.acknowledge_many([before]) == {before.id}
    assert queue.acknowledge(after) is True


def test_a_retry_waits_without_a_holder(redis: Redis) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    lease = queue.claim(1)[0]
    assert queue.retry(lease, 12, "fetch_failed") is True
    assert queue.acknowledge(lease) is False
    assert queue.claim(1) == []
    (row,) = queue.leased()
    assert (row.id, row.owner, row.reason, row.attempts, row.bytes) == (lease.id, "", "fetch_failed", 1, 3)
    assert 11 < row.expires_in_seconds <= 12
    pass_time(redis, 12)
    assert [again.attempts for again in queue.claim(1)] == [2]


def test_a_released_job_is_due_at_once_and_its_attempt_is_not_counted(redis: Redis) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    attempts = []
    lease = queue.claim(1)[0]
    for _ in range(4):
        attempts.append(lease.attempts)
        assert queue.release(lease) is True
        assert queue.leased()[0].attempts == lease.attempts, "attempts never fall, in no moment"
        lease = queue.claim(1)[0]
    assert attempts == [1, 1, 1, 1]
    assert queue.retry(lease, 0, "x") is True
    assert queue.claim(1)[0].attempts == 2


def test_the_longest_retry_is_within_the_horizon(redis: Redis) -> None:
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    queue.retry(queue.claim(1)[0], 10**9, "x")
    assert queue.leased()[0].expires_in_seconds <= leases_module.HORIZON_SECONDS


@pytest.mark.parametrize("payload", HOSTILE)
@pytest.mark.parametrize("detail", ["plain", "\ud800 lone", "\0\"'\\", "x" * 5000, "é漢\U0001f600"])
def test_a_job_is_dead_lettered_byte_for_byte(redis: Redis, payload: bytes, detail: str) -> None:
    push(redis, [payload])
    queue, letters = queue_of(redis, "a"), DeadLetters(redis, NAME)
    (lease,) = queue.claim(1)
    before = time.time()
    assert queue.dead_letter(lease, "invalid_job", detail) is True
    assert queue.counts() == Counts(0, 0, 0, 1, None)
    (letter,) = letters.all()
    assert letter == letters.get(lease.id)
    assert (letter.id, letter.queue, letter.code, letter.attempts, letter.runner, letter.bytes) == (
        lease.id, NAME, "invalid_job", 1, "a", len(payload),
    )  # fmt: skip
    assert letter.message == detail[:1000]
    assert before - 1 < letter.claimed_at <= letter.dead_lettered_at <= time.time()
    assert letters.payload(lease.id) == payload
    assert letters.requeue(lease.id) is Requeued.DONE
    assert places(redis).all == [payload]
    assert queue.claim(1)[0].attempts == 1


def test_payload_and_dead_letter_expire_independently(redis: Redis) -> None:
    for name, seconds in (("process", 30 * 86_400), ("compare", 3540)):
        push(redis, [b"x"], name)
        queue, letters = queue_of(redis, "a", name=name), DeadLetters(redis, name)
        (lease,) = queue.claim(1)
        queue.dead_letter(lease, "image_undecodable", "")
        kept = letters.payload_seconds(lease.id)
        assert kept is not None
        assert seconds - 5 < kept <= seconds


def test_a_dead_letter_outlives_its_selfie_and_then_cannot_be_requeued(redis: Redis) -> None:
    push(redis, [b"selfie"], "compare")
    queue, letters = queue_of(redis, "a", name="compare"), DeadLetters(redis, "compare")
    (lease,) = queue.claim(1)
    queue.dead_letter(lease, "image_undecodable", "")
    redis.pexpire(keys.dead_payload("compare", lease.id), 0)
    assert letters.payload(lease.id) is None
    assert letters.payload_seconds(lease.id) is None
    assert letters.requeue(lease.id) is Requeued.EXPIRED
    assert [letter.id for letter in letters.all()] == [lease.id]
    assert letters.purge(lease.id) is True
    assert letters.requeue(lease.id) is Requeued.ABSENT
    assert letters.purge(lease.id) is False


@pytest.mark.parametrize("cleaner", ["dead_letter", "claim"])
def test_old_dead_letters_are_removed_by_the_next_dead_letter_or_claim(redis: Redis, cleaner: str) -> None:
    push(redis, [b"old", b"new"])
    queue, letters = queue_of(redis, "a"), DeadLetters(redis, NAME)
    old, new = queue.claim(2)
    queue.dead_letter(old, "x", "")
    month = 30 * 86_400_000
    redis.zincrby(keys.dead_index(NAME), -month - 1000, old.id)
    assert queue.counts().dead_letters == 0
    assert list(letters.all()) == []
    if cleaner == "dead_letter":
        queue.dead_letter(new, "x", "")
    else:
        queue.claim(1)
    assert not redis.zscore(keys.dead_index(NAME), old.id)
    left: Any = redis.hkeys(keys.dead(NAME))
    assert not [raw for raw in left if raw.startswith(old.id.encode())]


def test_dead_letters_are_filtered_by_time_and_paged(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.queue.dead_letters._PAGE", 3)
    push(redis, [b"%d" % number for number in range(10)])
    queue, letters = queue_of(redis, "a"), DeadLetters(redis, NAME)
    leases = queue.claim(10)
    for number, lease in enumerate(leases):
        queue.dead_letter(lease, "x", str(number))
        redis.zadd(keys.dead_index(NAME), {lease.id: round((time.time() - 100 * number) * 1000)})
    assert [letter.message for letter in letters.all()] == [str(number) for number in range(9, -1, -1)]
    assert [letter.message for letter in letters.all(newer_than=250)] == ["2", "1", "0"]
    assert [letter.message for letter in letters.all(older_than=750)] == ["9", "8"]


def test_a_purge_between_two_pages_hides_no_dead_letter(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge moves the following entries to the front: listing must not skip any."""
    monkeypatch.setattr("runner.queue.dead_letters._PAGE", 3)
    push(redis, [b"%d" % number for number in range(10)])
    queue, letters = queue_of(redis, "a"), DeadLetters(redis, NAME)
    for lease in queue.claim(10):
        queue.dead_letter(lease, "x", "")
    seen = [letter.id for letter in letters.all() if letters.purge(letter.id)]
    assert len(seen) == 10


def test_a_claim_is_limited_in_bytes(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "CLAIM_BYTES", 1000)
    push(redis, [b"x" * 400] * 5)
    queue = queue_of(redis, "a")
    assert len(queue.claim(5)) == 3
    pass_time(redis, 31)
    assert len(queue.claim(5)) == 3, "also of expired leases"
    assert len(queue.claim(5)) == 2


def test_a_claim_returns_only_the_start_of_an_oversized_payload(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "CLAIM_BYTES", 1000)
    monkeypatch.setattr(leases_module, "OVERSIZED_SHOWN_BYTES", 10)
    huge = b'{"id": "p1' + b"y" * 5000
    push(redis, [huge, b"x" * 1000])
    queue = queue_of(redis, "a")
    large, whole = queue.claim(2)
    assert (large.payload, large.bytes, large.truncated) == (b'{"id": "p1', len(huge), True)
    assert (len(whole.payload), whole.bytes, whole.truncated) == (1000, 1000, False)
    queue.dead_letter(large, "invalid_job", "")
    letters = DeadLetters(redis, NAME)
    assert letters.payload(large.id) == huge
    assert [letter.bytes for letter in letters.all()] == [len(huge)]


def test_a_claim_returns_only_the_start_of_the_payload_of_a_job_without_attempts_left(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its payload may kill every runner that decodes it, so it is dead-lettered without being decoded."""
    monkeypatch.setattr(leases_module, "OVERSIZED_SHOWN_BYTES", 10)
    push(redis, [b"y" * 500])
    queue = queue_of(redis, "a")
    shown = []
    for _ in range(4):
        (lease,) = queue.claim(1)
        shown.append((lease.attempts, len(lease.payload), lease.bytes, lease.truncated))
        pass_time(redis, 31)
    assert shown == [(1, 500, 500, False), (2, 500, 500, False), (3, 500, 500, False), (4, 10, 500, True)]
    assert queue.dead_letter(lease, "too_many_attempts", "")
    assert DeadLetters(redis, NAME).payload(lease.id) == b"y" * 500


def test_more_jobs_than_lua_can_unpack_are_claimed_and_settled(redis: Redis) -> None:
    push(redis, [b"%d" % number for number in range(12_000)])
    queue = queue_of(redis, "a")
    leases = queue.claim(12_000)
    assert len({lease.payload for lease in leases}) == 12_000
    assert queue.renew(leases) == []
    assert len(queue.leased(20_000)) == 12_000
    assert queue.acknowledge_many(leases) == set()
    assert places(redis).all == []


def test_a_clock_set_back_delays_no_lease_beyond_the_horizon(redis: Redis) -> None:
    push(redis, [b"one", b"two"])
    dead, other = queue_of(redis, "dead"), queue_of(redis, "other")
    dead.claim(1)
    pass_time(redis, -86_400)
    dead_lease = other.leased()[0]
    assert dead_lease.expires_in_seconds > 86_400
    assert [lease.payload for lease in other.claim(2)] == [b"two"]
    assert all(row.expires_in_seconds <= 30 for row in other.leased())
    pass_time(redis, 31)
    assert b"one" in [lease.payload for lease in other.claim(2)]


def test_a_live_runner_keeps_its_lease_when_the_clock_is_set_back(redis: Redis) -> None:
    push(redis, [b"one"])
    queue, other = queue_of(redis, "a"), queue_of(redis, "b")
    lease = queue.claim(1)[0]
    pass_time(redis, -86_400)
    other.claim(1)
    assert queue.renew([lease]) == []
    assert 29 < queue.leased()[0].expires_in_seconds <= 30
    assert queue.acknowledge(lease) is True


def test_a_clock_set_forward_costs_an_attempt_and_loses_nothing(redis: Redis) -> None:
    push(redis, [b"one"])
    queue, other = queue_of(redis, "a"), queue_of(redis, "b")
    lease = queue.claim(1)[0]
    pass_time(redis, 86_400)
    again = other.claim(1)[0]
    assert again.attempts == 2
    assert queue.acknowledge(lease) is False
    assert other.acknowledge(again) is True


class TestTakeOver:
    JOB = "job-1"

    @pytest.mark.parametrize("replacement", ["job-1/pod-a/2", "job-1/pod-b/2"])
    def test_the_replacement_of_a_dead_process_takes_over_its_leases_at_once(
        self, redis: Redis, replacement: str
    ) -> None:
        push(redis, [b"one"])
        dead, next_ = queue_of(redis, "job-1/pod-a/1"), queue_of(redis, replacement)
        lease = dead.claim(1)[0]
        assert next_.take_over() == 1
        assert next_.take_over() == 0, "a repetition brings nothing further forward"
        assert [(again.id, again.attempts) for again in next_.claim(1)] == [(lease.id, 2)]

    def test_a_process_that_is_still_alive_is_fenced(self, redis: Redis) -> None:
        push(redis, [b"one", b"two"])
        lost, next_ = queue_of(redis, "job-1/pod-a/1"), queue_of(redis, "job-1/pod-b/2")
        taken, kept = lost.claim(2)
        next_.take_over()
        again = next_.claim(1)[0]
        assert again.id == taken.id
        assert lost.renew([taken, kept]) == [taken]
        assert lost.acknowledge(taken) is False
        assert lost.acknowledge(kept) is True
        assert next_.acknowledge(again) is True

    @pytest.mark.parametrize("stranger", ["job-10/pod/1", "job-2/pod/1", "pod/1", "job%2F1/pod/1", "job"])
    def test_leases_of_other_jobs_are_not_taken_over(self, redis: Redis, stranger: str) -> None:
        push(redis, [b"one"])
        queue_of(redis, stranger).claim(1)
        assert queue_of(redis, "job-1/pod/2").take_over() == 0
        assert queue_of(redis, "pod/2").take_over() == 0, "without a name nobody is replaced"

    def test_a_delayed_retry_is_not_taken_over(self, redis: Redis) -> None:
        push(redis, [b"one"])
        dead, next_ = queue_of(redis, "job-1/pod/1"), queue_of(redis, "job-1/pod/2")
        dead.retry(dead.claim(1)[0], 60, "x")
        assert next_.take_over() == 0
        assert next_.claim(1) == []

    def test_its_own_leases_are_not_taken_over(self, redis: Redis) -> None:
        push(redis, [b"one"])
        queue = queue_of(redis, "job-1/pod/1")
        queue.claim(1)
        assert queue.take_over() == 0


def test_a_dead_letter_has_every_field(redis: Redis) -> None:
    """The stored dead letter is JSON that other tools read too."""
    push(redis, [b"one"])
    queue = queue_of(redis, "a")
    (lease,) = queue.claim(1)
    queue.dead_letter(lease, "image_missing", "no such image")
    stored = redis.hget(keys.dead(NAME), lease.id)
    assert stored is not None
    since, _, letter = stored.partition(b" ")  # type: ignore[arg-type]  # the client answers bytes
    assert abs(int(since) / 1000 - time.time()) < 60
    assert json.loads(letter) == {
        "id": lease.id, "queue": NAME, "error": {"code": "image_missing", "message": "no such image"}, "attempts": 1,
        "runner": "a", "bytes": 3,
    }  # fmt: skip


def test_the_repr_of_a_lease_contains_no_payload(redis: Redis) -> None:
    push(redis, [b"a selfie"])
    lease: Lease = queue_of(redis, "a").claim(1)[0]
    assert "selfie" not in repr(lease)
    assert lease.id in repr(lease)
