"""The result keys, and the race with the API's INITIATED in every interleaving."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from runner.errors import RedisRefusedError
from runner.queue import keys
from runner.store.results import INITIATED, UNANSWERED, ResultStore, ResultWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOB = "9b2f6c1e-job"
MATCHED = ["photo-2", "photo 1", 'quo"te', "été"]
DETAIL: dict[str, Any] = {
    "scores": dict.fromkeys(MATCHED, 0.75),
    "faces": 1,
    "model": "buffalo_sc",
    "threshold": 0.5,
    "stored_ids": 10,
    "with_embeddings": 7,
    "milliseconds": 12.5,
    "error": None,
}
FAILED: dict[str, Any] = {**DETAIL, "scores": {}, "error": {"code": "no_face_in_selfie", "message": "…"}}
POLLS = 4


def value(redis: Redis) -> bytes | None:
    found = redis.get(keys.match_result(JOB))
    assert found is None or isinstance(found, bytes)
    return found


def detail(redis: Redis) -> dict[str, Any]:
    text = redis.get(keys.match_result_detail(JOB))
    assert isinstance(text, bytes)
    document = json.loads(text)
    assert isinstance(document, dict)
    return document


def initiate(redis: Redis) -> None:
    """As the API does it: without a TTL."""
    redis.set(keys.match_result(JOB), "INITIATED")


def assert_answered(redis: Redis, matched: list[str] = MATCHED) -> None:
    found = value(redis)
    assert found is not None
    assert json.loads(found) == matched
    assert 0 < redis.ttl(keys.match_result(JOB)) <= 3600
    assert detail(redis)["matched"] == matched
    assert 0 < redis.ttl(keys.match_result_detail(JOB)) <= 3600


def now(redis: Redis) -> int:
    """Return the server's time in seconds."""
    seconds = redis.time()[0]
    assert isinstance(seconds, int)
    return seconds


class Crash(BaseException):
    """The runner's process is gone."""


class Api:
    """Writes INITIATED once: before the given command, counted from 1 over all runners, or after the last."""

    def __init__(self, redis: Redis, position: int) -> None:
        self._redis = redis
        self._left = position

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            initiate(self._redis)

    def finish(self) -> None:
        if self._left > 0:
            initiate(self._redis)
            self._left = 0


class _WatchedRedis(Redis):
    """A client each of whose commands passes `wire`."""

    def __init__(self, wire: Wire, redis: Redis) -> None:
        super().__init__(connection_pool=redis.connection_pool)
        self._wire = wire

    def execute_command(self, *args: Any, **options: Any) -> Any:
        execute: Callable[..., Any] = super().execute_command
        return self._wire.carry(lambda: execute(*args, **options))


class Wire:
    """A runner's client, between whose commands the API may act, and any of whose commands may be its last."""

    def __init__(self, redis: Redis, api: Api | None = None, **crash: int) -> None:
        self.client = _WatchedRedis(self, redis)
        self._api = api or Api(redis, 0)
        self._crash = crash
        self.commands = 0

    def carry(self, command: Callable[[], Any]) -> Any:
        self.commands += 1
        self._api.tick()
        if self.commands == self._crash.get("before"):
            raise Crash
        answer = command()
        if self.commands == self._crash.get("after"):
            raise Crash
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def compare(redis: Redis, matched: list[str] = MATCHED, about: dict[str, Any] = DETAIL) -> None:
    """Do what a run does for one comparison, from its claim to its acknowledgement."""
    clock = Clock()
    results = ResultStore(redis)
    watch = ResultWatch(results, seconds=POLLS * ResultWatch.POLL_SECONDS, clock=clock)
    results.begin(JOB)
    if results.answer(JOB, matched, about):
        return
    watch.add(JOB, matched, about)
    for _ in range(POLLS - 1):
        clock.now += ResultWatch.POLL_SECONDS
        if watch.poll():
            return
    assert watch.leave() == [JOB]


def longest_run(redis: Redis) -> int:
    """Return how many commands a run takes that never sees INITIATED."""
    compare(redis)  # the server knows the scripts from here on
    redis.flushall()
    wire = Wire(redis)
    compare(wire.client)
    redis.flushall()
    assert wire.commands >= 4 + POLLS
    return wire.commands


def test_a_result_goes_from_initiated_to_processing_to_the_answer(redis: Redis) -> None:
    results = ResultStore(redis)
    initiate(redis)
    assert results.begin(JOB)
    assert value(redis) == b"PROCESSING"
    assert 0 < redis.ttl(keys.match_result(JOB)) <= 3600
    assert results.answer(JOB, MATCHED, DETAIL)
    assert_answered(redis)
    assert detail(redis) == {**DETAIL, "initiated": True, "matched": MATCHED}


def test_a_failure_is_an_empty_list_with_its_reason_in_the_detail(redis: Redis) -> None:
    results = ResultStore(redis)
    initiate(redis)
    results.begin(JOB)
    assert results.answer(JOB, [], FAILED)
    assert value(redis) == b"[]"
    assert detail(redis)["error"] == FAILED["error"]


def test_a_failure_before_processing_is_answered_too(redis: Redis) -> None:
    assert not ResultStore(redis).answer(JOB, [], FAILED)
    assert_answered(redis, [])


def test_a_failure_never_replaces_the_answer_of_an_earlier_attempt(redis: Redis) -> None:
    first, second = ResultStore(redis), ResultStore(redis)
    first.begin(JOB)
    first.answer(JOB, MATCHED, DETAIL)
    assert not second.begin(JOB)
    assert not second.answer(JOB, [], FAILED)
    assert_answered(redis)
    assert detail(redis)["error"] is None
    watch = ResultWatch(second, seconds=10)
    watch.add(JOB, [], FAILED)
    initiate(redis)
    assert watch.poll() == [JOB]
    assert_answered(redis)


def test_a_redelivered_job_keeps_the_final_answer(redis: Redis) -> None:
    first, second = ResultStore(redis), ResultStore(redis)
    initiate(redis)
    first.begin(JOB)
    first.answer(JOB, MATCHED, DETAIL)
    assert second.begin(JOB), "the first runner's sight of INITIATED was forgotten"
    assert_answered(redis)
    assert second.answer(JOB, ["photo-2"], DETAIL)
    assert_answered(redis, ["photo-2"])


def test_the_answer_of_a_crashed_runner_is_available_at_once(redis: Redis) -> None:
    first = ResultStore(redis)
    first.begin(JOB)
    first.answer(JOB, MATCHED, DETAIL)
    initiate(redis)
    assert ResultStore(redis).begin(JOB)
    assert_answered(redis)


def test_an_initiated_before_any_command_of_a_run_is_overwritten(redis: Redis) -> None:
    """One runner; the API writes INITIATED before each of its commands in turn, or after the last."""
    longest = longest_run(redis)
    restored = 0
    for position in range(1, longest + 2):
        redis.flushall()
        api = Api(redis, position)
        compare(Wire(redis, api).client)
        api.finish()
        if value(redis) == b"INITIATED":  # it came after the runner's last check: the next run repairs it
            assert ResultStore(redis).restore() == [JOB], position
            restored += 1
        assert_answered(redis)
        assert ResultStore(redis).restore() == []
        assert_answered(redis)
    assert restored == 2  # before the last command, which only records the answer, and after it


def test_an_initiated_at_any_moment_of_a_crash_and_a_takeover_is_overwritten(redis: Redis) -> None:
    """A runner ends before or after any of its commands; INITIATED is written before, between or after all."""
    longest = longest_run(redis)
    crashes = 0
    for where, moment, position in itertools.product(
        range(1, longest + 1), ("before", "after"), range(1, 2 * longest + 2)
    ):
        redis.flushall()
        api = Api(redis, position)
        try:
            compare(Wire(redis, api, **{moment: where}).client)
        except Crash:
            crashes += 1
            compare(Wire(redis, api).client)
        api.finish()
        ResultStore(redis).restore()
        assert_answered(redis)
    assert crashes > longest * 2 * longest


def test_an_initiated_at_any_moment_of_two_crashes_is_overwritten(redis: Redis) -> None:
    """As before, with a second runner that crashes too, and a third whose comparison fails."""
    longest = longest_run(redis)
    for first, second, position in itertools.product(
        range(1, longest + 1), range(1, longest + 1), range(1, 3 * longest, 2)
    ):
        redis.flushall()
        api = Api(redis, position)
        ended = 0
        given = False
        for last in (first, second):
            try:
                compare(Wire(redis, api, after=last).client)
            except Crash:
                ended += 1
                given = given or value(redis) not in UNANSWERED
                continue
            break
        if ended == 2:
            compare(Wire(redis, api).client, [], FAILED)
        api.finish()
        ResultStore(redis).restore()
        found = value(redis)
        assert found is not None
        assert json.loads(found) in (MATCHED, []), (first, second, position)
        assert_answered(redis, json.loads(found))
        if given or ended < 2:
            assert json.loads(found) == MATCHED, (first, second, position)


def test_two_runners_with_the_same_job_give_one_answer(redis: Redis) -> None:
    """All orders of the steps of a runner that lost its lease, of its successor, and of the API."""
    steps = 4
    answers = {"a": ["photo-1"], "b": ["photo-2"]}
    played = 0
    for places in itertools.combinations(range(2 * steps), steps):
        order = ["a" if place in places else "b" for place in range(2 * steps)]
        for position in range(2 * steps + 1):
            redis.flushall()
            running = {name: stepwise(redis, matched) for name, matched in answers.items()}
            for number, name in enumerate(order):
                if number == position:
                    initiate(redis)
                next(running[name])
            if position == 2 * steps:
                initiate(redis)
            ResultStore(redis).restore()
            found = value(redis)
            assert found is not None
            assert json.loads(found) in answers.values(), (order, position)
            assert 0 < redis.ttl(keys.match_result(JOB)) <= 3600
            played += 1
    assert played == 70 * 9


def stepwise(redis: Redis, matched: list[str]) -> Iterator[None]:
    """Do what `compare` does, in four steps."""
    results = ResultStore(redis)
    watch = ResultWatch(results, seconds=100)
    results.begin(JOB)
    yield
    if not results.answer(JOB, matched, DETAIL):
        watch.add(JOB, matched, DETAIL)
    yield
    watch.poll()
    yield
    watch.leave()
    yield


def test_an_answer_that_a_failover_lost_is_restored(redis: Redis) -> None:
    results = ResultStore(redis)
    watch = ResultWatch(results, seconds=100)
    results.begin(JOB)
    results.answer(JOB, MATCHED, DETAIL)
    watch.add(JOB, MATCHED, DETAIL)
    redis.flushall()
    assert watch.poll() == []
    assert_answered(redis)
    assert detail(redis)["scores"] == DETAIL["scores"]
    redis.delete(keys.match_result_detail(JOB))
    initiate(redis)
    watch._next_poll = 0
    assert watch.poll() == [JOB]
    assert_answered(redis)


def test_confirm_and_restore_replace_only_initiated_and_processing(redis: Redis) -> None:
    results = ResultStore(redis)
    results.remember(JOB)
    for other in ("[]", '["x"]', "null", "something else"):
        redis.set(keys.match_result(JOB), other)
        assert not results.confirm(JOB, MATCHED, DETAIL)
        assert results.restore() == []
        assert value(redis) == other.encode()


def test_restore_skips_a_job_that_another_runner_is_processing(redis: Redis) -> None:
    results = ResultStore(redis)
    results.begin(JOB)
    results.remember(JOB)
    assert results.restore() == []
    assert value(redis) == b"PROCESSING"
    redis.delete(keys.match_result(JOB))
    assert results.restore() == []
    assert value(redis) is None


def test_restore_writes_an_empty_answer_if_the_answer_was_evicted(redis: Redis) -> None:
    results = ResultStore(redis)
    compare(redis)
    redis.delete(keys.match_result_detail(JOB))
    initiate(redis)
    assert results.restore() == [JOB]
    assert_answered(redis, [])
    assert detail(redis)["error"]["code"] == "answer_lost"


def test_an_unconfirmed_entry_expires_with_its_answer(redis: Redis) -> None:
    compare(redis)
    expires = redis.zscore(keys.unconfirmed(), JOB)
    assert isinstance(expires, float)
    assert 3590 < expires - now(redis) <= 3600
    assert 0 < redis.ttl(keys.unconfirmed()) <= 3600
    redis.zadd(keys.unconfirmed(), {JOB: now(redis) - 1})
    initiate(redis)
    assert ResultStore(redis).restore() == []
    assert redis.zcard(keys.unconfirmed()) == 0


def test_many_unconfirmed_answers_are_restored_together(redis: Redis) -> None:
    results = ResultStore(redis)
    for number in range(300):
        results.answer(f"job-{number}", [f"photo-{number}"], DETAIL)
        results.remember(f"job-{number}")
        if number % 3:
            redis.set(keys.match_result(f"job-{number}"), "INITIATED")
    assert len(results.restore()) == 200
    assert results.restore() == []
    for number in range(300):
        assert redis.get(keys.match_result(f"job-{number}")) == f'["photo-{number}"]'.encode()
    assert redis.zcard(keys.unconfirmed()) == 100


def test_the_watch_polls_at_its_own_pace_and_ends_in_time(redis: Redis) -> None:
    clock = Clock()
    wire = Wire(redis)
    watch = ResultWatch(ResultStore(wire.client), seconds=10, clock=clock)
    ResultStore(redis).answer(JOB, MATCHED, DETAIL)
    watch.add(JOB, MATCHED, DETAIL)
    assert len(watch) == 1
    for _ in range(50):
        assert watch.poll() == []
    assert wire.commands == 1
    clock.now = 9.99
    assert watch.poll() == []
    clock.now = 10.5
    assert watch.poll() == [JOB]
    assert (len(watch), watch.poll(), watch.leave()) == (0, [], [])


def test_a_forgotten_answer_is_not_watched(redis: Redis) -> None:
    watch = ResultWatch(ResultStore(redis), seconds=10)
    watch.add(JOB, MATCHED, DETAIL)
    watch.forget(JOB)
    watch.forget("unknown")
    assert (watch.poll(), watch.leave()) == ([], [])
    assert value(redis) is None


def test_an_answer_of_20000_photos_is_written(redis: Redis) -> None:
    matched = [f"{number:036d}" for number in range(20_000)]
    about = {**DETAIL, "scores": dict.fromkeys(matched, 0.612345)}
    compare(redis, matched, about)
    initiate(redis)
    assert ResultStore(redis).restore() == [JOB]
    assert_answered(redis, matched)


def test_a_result_of_another_type_does_not_prevent_restoring_others(redis: Redis) -> None:
    results = ResultStore(redis)
    for job_id in (JOB, "other"):
        results.answer(job_id, ["p1"], DETAIL)
        results.remember(job_id)
    redis.delete(keys.match_result(JOB))
    redis.hset(keys.match_result(JOB), "in the way", "yes")
    redis.set(keys.match_result("other"), "INITIATED")
    assert ResultStore(redis).restore() == ["other"]


@pytest.mark.parametrize(
    "text",
    [
        b"{", b"\xff", b"[]", b"[" * 100_000, b'{"matched": 5}', b'{"matched": [1]}', b'{"matched": null}',
        b'{"matched": ["\\ud800"]}', b'{"matched": ["a"], "note": "\\ud800"}',
    ],
)  # fmt: skip
def test_a_detail_that_cannot_be_read_counts_as_lost(redis: Redis, text: bytes) -> None:
    store = ResultStore(redis)
    for job_id in ("damaged", "kept"):
        store.begin(job_id)
        store.answer(job_id, ["a"], {"error": None})
        store.remember(job_id)
        redis.set(keys.match_result(job_id), INITIATED)
    redis.set(keys.match_result_detail("damaged"), text)
    assert sorted(store.restore()) == ["damaged", "kept"]
    assert (redis.get(keys.match_result("damaged")), redis.get(keys.match_result("kept"))) == (b"[]", b'["a"]')
    redis.set(keys.match_result_detail("damaged"), text)
    redis.set(keys.match_result("damaged"), INITIATED)
    assert store.begin("damaged"), "it is processed again"


def test_a_set_of_unconfirmed_answers_of_another_type_is_named(redis: Redis) -> None:
    redis.set(keys.unconfirmed(), "in the way")
    for step in (ResultStore(redis).restore, lambda: ResultStore(redis).remember(JOB)):
        with pytest.raises(RedisRefusedError, match="rename or delete it") as refused:
            step()
        assert "unconfirmed" in str(refused.value)
