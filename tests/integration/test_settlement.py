"""The settlement on a real queue: every lease ends once, and no job affects another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from redis import Redis

from demo.servers import EmbeddedRedis
from runner.errors import (
    DatabaseUnreachableError,
    FetchError,
    ImageMissingError,
    JobError,
    PhotoGoneError,
    RedisRefusedError,
    RedisUnreachableError,
    UnexpectedJobError,
)
from runner.queue import keys
from runner.queue.client import opened
from runner.queue.heartbeat import FRESH_SECONDS
from runner.queue.leases import Lease
from runner.settings import Settings, load
from runner.worker.task import AnyTask, State
from runner.worker.traces import Traces
from tests.support.queue_tools import LEASE_SECONDS, NAME, pass_time, places, push, queue_of
from tests.support.worker_tools import SettlementBench, settlement_of


@pytest.fixture
def bench(redis: Redis) -> Iterator[SettlementBench]:
    settings = load({"REDIS_URL": "redis://h/0", "DATABASE_URL": "postgresql://h/d"})
    bench = SettlementBench(redis, settings)
    with bench.heartbeat:
        yield bench


def _retrying(url: str) -> Settings:
    return load({"REDIS_URL": url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "20"}, required=("redis_url",))


def _bad(error: Exception) -> Callable[[AnyTask], Exception | None]:
    return lambda task: error if task.lease.payload == b"bad" else None


def test_a_job_that_cannot_be_begun_does_not_affect_others(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"bad", b"c")
    bench.handler.refuse = _bad(ValueError("secret"))
    bench.settlement.begin(tasks)
    assert [type(task.error) for task in tasks] == [type(None), UnexpectedJobError, type(None)]
    assert "secret" not in str(tasks[1].error)
    assert bench.handler.batches == [[b"a", b"bad", b"c"], [b"a"], [b"bad"], [b"c"]]


def test_a_job_that_another_runner_has_claimed_is_not_begun(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"b")
    pass_time(bench.redis, LEASE_SECONDS + 1)
    assert [lease.payload for lease in queue_of(bench.redis, "there/1").claim(1)] == [b"a"]
    time.sleep(2 * FRESH_SECONDS)  # the start-up connects to the databases between the claim and this
    before = places(bench.redis)
    bench.settlement.begin(tasks)
    assert bench.handler.batches == [[b"b"]]
    assert bench.outcomes() == {"lease_lost": 1}
    assert places(bench.redis) == before


def test_jobs_that_have_just_been_claimed_are_begun_without_another_request(
    bench: SettlementBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = bench.leased(b"a", b"b")
    bench.heartbeat.add([task.lease for task in tasks], claimed_at=time.monotonic() + 60)  # however slow this machine
    renewals: list[Sequence[Lease]] = []

    def renew(leases: Sequence[Lease]) -> list[Lease]:
        renewals.append(leases)
        return []

    monkeypatch.setattr(bench.queue, "renew", renew)
    bench.settlement.begin(tasks)
    assert bench.handler.batches == [[b"a", b"b"]]
    assert renewals == []


def test_a_job_that_cannot_be_stored_is_retried_and_the_others_succeed(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"bad", b"c")
    bench.handler.refuse = _bad(ValueError())
    bench.settlement.conclude(tasks)
    assert bench.outcomes() == {"succeeded": 2, "retried": 1}
    assert list(places(bench.redis).leased.values()) == [b"bad"]
    assert bench.handler.stored == {b"a": None, b"c": None}


def test_at_its_last_attempt_a_job_is_stored_as_failed_and_dead_lettered(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"bad", attempt=3)
    bench.handler.refuse = lambda task: ValueError() if task.lease.payload == b"bad" and task.error is None else None
    bench.settlement.conclude(tasks)
    assert bench.outcomes() == {"succeeded": 1, "dead_lettered": 1}
    assert bench.handler.stored == {b"a": None, b"bad": "unexpected"}
    assert bench.dead() == {"unexpected": 3}


def test_a_job_that_cannot_be_stored_as_failed_is_still_dead_lettered(bench: SettlementBench) -> None:
    tasks = bench.leased(b"bad", attempt=3)
    bench.handler.refuse = _bad(ValueError())
    bench.settlement.conclude(tasks)
    assert bench.outcomes() == {"dead_lettered": 1}
    assert places(bench.redis).leased == {}


@pytest.mark.parametrize(
    ("error", "attempt", "outcomes", "dead"),
    [
        (FetchError("500"), 1, {"retried": 1}, {}),
        (FetchError("500"), 2, {"retried": 1}, {}),
        (FetchError("500"), 3, {"dead_lettered": 1}, {"fetch_failed": 3}),
        (ImageMissingError(), 1, {"dead_lettered": 1}, {"image_missing": 1}),
        (PhotoGoneError(), 1, {"photo_gone": 1}, {}),
    ],
)
def test_a_failure_is_retried_or_dead_lettered_by_its_error(
    bench: SettlementBench, error: JobError, attempt: int, outcomes: dict[str, int], dead: dict[str, int]
) -> None:
    (task,) = bench.leased(b"job", attempt=attempt)
    task.error = error
    bench.settlement.conclude([task])
    assert bench.outcomes() == outcomes
    assert bench.dead() == dead
    assert bench.handler.stored == ({} if "retried" in outcomes else {b"job": error.code})


def test_a_gone_photo_is_not_a_success_and_adds_no_faces(bench: SettlementBench) -> None:
    (task,) = bench.leased(b"job")
    task.faces, task.error = [None, None], PhotoGoneError()  # type: ignore[list-item]  # only their number matters
    bench.settlement.conclude([task])
    summary = bench.summary.document()
    assert {name: summary[name] for name in ("claimed", "succeeded", "photo_gone", "photos", "faces", "unsettled")} == {
        "claimed": 1, "succeeded": 0, "photo_gone": 1, "photos": 0, "faces": 0, "unsettled": 0,
    }  # fmt: skip
    assert places(bench.redis).all == []


def test_a_job_that_has_killed_its_runners_is_not_begun_again(bench: SettlementBench) -> None:
    (task,) = bench.leased(b"job", attempt=4)
    bench.settlement.begin([task])
    assert bench.handler.batches == []
    assert task.error is not None
    assert task.error.code == "too_many_attempts"


def test_after_an_error_that_ends_the_run_every_job_can_be_released(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"b", b"c", b"d")
    bench.handler.unconfirmed = True
    bench.settlement.conclude(tasks[:1])  # a watched answer is done: its lease is not released
    bench.handler.refuse = lambda _: DatabaseUnreachableError("gone")
    with pytest.raises(DatabaseUnreachableError):
        bench.settlement.conclude(tasks[1:3])
    with pytest.raises(DatabaseUnreachableError):
        bench.settlement.begin(tasks[3:])
    bench.settlement.abandon()
    assert bench.outcomes() == {"succeeded": 1, "released": 3}
    assert bench.summary.unsettled == 0
    again = queue_of(bench.redis, "there/1").claim(5)
    assert sorted((lease.payload, lease.attempts) for lease in again) == [(b"b", 1), (b"c", 1), (b"d", 1)]


def test_a_job_that_another_runner_has_claimed_ends_as_lost_unchanged(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"b", b"c")
    pass_time(bench.redis, LEASE_SECONDS + 1)
    assert len(queue_of(bench.redis, "there/1").claim(3)) == 3
    tasks[1].error, tasks[2].error = FetchError("500"), ImageMissingError()
    before = places(bench.redis)
    bench.settlement.conclude(tasks)
    assert bench.outcomes() == {"lease_lost": 3}
    assert places(bench.redis) == before


def test_a_task_whose_lease_is_known_to_be_lost_is_dropped(bench: SettlementBench) -> None:
    kept, lost = bench.leased(b"a", b"b")
    pass_time(bench.redis, LEASE_SECONDS + 1)
    while queue_of(bench.redis, "there/1").claim(1)[0].payload != b"b":
        pass
    bench.heartbeat.beat()
    assert bench.settlement.drop_lost(lost)
    assert bench.outcomes()["lease_lost"] == 1
    del kept


def test_a_job_released_by_another_thread_still_ends_once(bench: SettlementBench) -> None:
    for round_ in range(20):
        tasks = bench.leased(*(f"{round_}-{number}".encode() for number in range(8)))
        giving = threading.Thread(target=bench.settlement.abandon)
        giving.start()
        bench.settlement.conclude(tasks)
        giving.join()
        assert bench.summary.unsettled == 0
        for lease in bench.queue.claim(100):
            bench.queue.acknowledge(lease)


class _ReaderWorks(float):
    """The seconds of a stage; whoever calculates with them finds that a reader has begun another stage meanwhile."""

    task: AnyTask

    def _begin_stage(self) -> None:
        self.task.stages[f"stage {len(self.task.stages)}"] = 0.0

    def __mul__(self, other: float) -> float:
        self._begin_stage()
        return float(self) * other

    def __radd__(self, other: float) -> float:
        self._begin_stage()
        return float(self) + other


def test_a_reader_that_begins_a_stage_meanwhile_does_not_prevent_a_release(
    bench: SettlementBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = bench.leased(b"a", b"b")
    monkeypatch.setattr(Traces, "_run", lambda _: None)  # there is no collector to send anything to
    bench.settlement._traces = Traces()
    for task in tasks:
        task.stages["fetch"] = seconds = _ReaderWorks(0.25)
        task.began["fetch"] = 0.0
        seconds.task = task
    bench.settlement.abandon()
    assert bench.outcomes() == {"released": 2}
    assert len(queue_of(bench.redis, "there/1").claim(5)) == 2


def test_jobs_are_released_even_if_redis_refuses_to_settle_an_answer(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"b", b"c")
    bench.handler.unconfirmed = True
    bench.settlement.conclude(tasks[:1])
    bench.redis.set(keys.parked(NAME), "another program's")  # an acknowledgement needs it, a release does not
    with pytest.raises(RedisRefusedError, match="WRONGTYPE"):
        bench.settlement.abandon()
    assert bench.outcomes() == {"released": 3}
    assert len(queue_of(bench.redis, "there/1").claim(5)) == 3


@pytest.mark.parametrize("state", [State.CLAIMED, State.UNCONFIRMED])
def test_a_queue_that_refuses_a_release_does_not_keep_the_jobs_of_another_one(redis: Redis, state: State) -> None:
    refusing, working = queue_of(redis, "here/1", name="compare"), queue_of(redis, "here/1", name="process")
    settlement = settlement_of([refusing, working])
    for queue in (refusing, working):
        push(redis, [b"a", b"b", b"c"], queue.name)
        for task in settlement.accept(queue.claim(3)):
            task.state = state
    redis.delete(keys.totals("compare"))
    redis.set(keys.totals("compare"), "another program's")
    with pytest.raises(RedisRefusedError, match=r"compare.*WRONGTYPE"):
        settlement.abandon()
    assert [task.lease.queue for task in settlement.in_flight] == ["compare"] * 3
    assert len(queue_of(redis, "there/1").claim(5)) == (3 if state is State.CLAIMED else 0)
    assert working.counts().in_flight == (3 if state is State.CLAIMED else 0)


def test_a_shard_that_refuses_writes_for_a_while_does_not_keep_the_jobs_of_another_one(
    redis: Redis, redis_url: str
) -> None:
    with EmbeddedRedis() as shard, opened(_retrying(shard.url)) as failing, opened(_retrying(redis_url)) as client:
        queues = [queue_of(failing, "here/1", name="compare"), queue_of(client, "here/1", name="process")]
        settlement = settlement_of(queues)
        for queue, server in zip(queues, (failing, redis), strict=True):
            push(server, [b"a", b"b"], queue.name)
            settlement.accept(queue.claim(2))
        failing.replicaof("127.0.0.1", 1)
        start = time.monotonic()
        with pytest.raises(RedisUnreachableError, match="read only"):
            settlement.abandon()
        assert time.monotonic() - start < 15, "not retried for RUNNER_CONNECT_TIMEOUT_SECONDS"
        assert [task.lease.queue for task in settlement.in_flight] == ["compare"] * 2
        assert len(queue_of(redis, "there/1").claim(5)) == 2


def test_due_retries_of_its_own_are_counted_once(bench: SettlementBench) -> None:
    tasks = bench.leased(b"a", b"b")
    for task in tasks:
        task.error = FetchError("500")
    bench.settlement.conclude(tasks)
    assert bench.settlement.take_due_retries() == 0
    waits = bench.settlement.next_own_retry()
    assert waits is not None
    assert 0 < waits <= 2
    pass_time(bench.redis, 10)
    again = bench.settlement.accept(bench.queue.claim(1))
    assert [task.own_retry for task in again] == [True]
    bench.settlement._own_retries = dict.fromkeys(bench.settlement._own_retries, 0.0)  # the other is due now
    assert bench.settlement.take_due_retries() == 1
    assert bench.settlement.take_due_retries() == 0
