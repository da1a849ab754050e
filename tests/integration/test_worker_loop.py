"""The worker loop on a real queue, with a handler and an engine that the tests control."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from redis import Redis

from runner.errors import ModelError, SchemaError, StuckError
from runner.worker.loop import PREFETCH
from tests.support.queue_tools import LEASE_SECONDS, pass_time, places, push, queue_of
from tests.support.worker_tools import Load, LoopBench


def computing_after(event: threading.Event) -> Callable[[Load], Future[list[Any]]]:
    """Return an engine that computes nothing before `event` is set, each photo in a thread of its own."""

    def compute(load: Load) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()

        def work() -> None:
            event.wait()
            load()
            future.set_result([])

        threading.Thread(target=work, daemon=True).start()
        return future

    return compute


@pytest.fixture
def stuck_for_ever() -> Iterator[threading.Event]:
    """An event that is set only at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def test_every_job_is_processed_once(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(100)])
    bench = LoopBench(redis, RUNNER_MAX_JOBS="1000")
    assert bench.run() == "empty"
    assert bench.outcomes() == {"succeeded": 100}
    assert len(bench.handler.stored) == 100
    assert places(redis).all == []
    assert bench.last_resorts == []


def test_a_run_claims_no_more_than_max_jobs(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(30)])
    bench = LoopBench(redis, RUNNER_MAX_JOBS="13")
    assert bench.run() == "max_jobs"
    assert bench.outcomes() == {"succeeded": 13}
    assert len(places(redis).waiting) == 17


def test_the_first_jobs_are_read_and_computed_while_the_stores_are_prepared(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(20)])
    bench = LoopBench(redis)
    begun_before: list[list[bytes]] = []

    def prepare() -> None:
        while len(bench.decoded) < 2:
            time.sleep(0.001)
        begun_before.extend(bench.handler.batches)

    bench.prepare = prepare
    assert bench.run() == "empty"
    assert begun_before == []  # nothing is written before the stores are ready
    assert bench.outcomes() == {"succeeded": 20}


def test_jobs_claimed_before_the_stores_fail_are_released(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(20)])
    bench = LoopBench(redis)

    def prepare() -> None:
        raise SchemaError("it has none")

    bench.prepare = prepare
    with pytest.raises(SchemaError):
        bench.run()
    bench.settlement.abandon()
    assert bench.outcomes() == {"released": bench.settings.claim_size}
    again = queue_of(redis, "there/1").claim(20)
    assert {lease.attempts for lease in again} == {1}  # a release is not counted
    assert bench.handler.stored == {}


def test_deleted_photos_end_as_gone_whether_fetched_or_not(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(8)])
    bench = LoopBench(redis)
    gone = {b"0", b"7"}  # the first is being read by then, the last is not
    bench.handler.gone_at_begin = gone
    assert bench.run() == "empty"
    assert bench.outcomes() == {"succeeded": 6, "photo_gone": 2}
    assert {payload for payload, word in bench.handler.stored.items() if word == "photo_gone"} == gone


def test_a_job_that_may_have_killed_its_runners_is_processed_alone(redis: Redis) -> None:
    push(redis, [b"poison", b"innocent"])
    for number in range(2):
        assert len(queue_of(redis, f"dead/{number}").claim(2)) == 2
        pass_time(redis, LEASE_SECONDS + 1)
    push(redis, [f"{number}".encode() for number in range(40)])
    bench = LoopBench(redis, RUNNER_MAX_JOBS="1000")
    assert bench.run() == "empty"
    assert bench.outcomes() == {"succeeded": 42}
    for suspect in (b"poison", b"innocent"):
        assert [together for together in bench.handler.seen_together if suspect in together] == [{suspect}]
    assert max(len(together) for together in bench.handler.seen_together) > 1


def test_a_last_attempt_after_a_death_is_not_made_before_the_model_is_loaded(redis: Redis) -> None:
    push(redis, [b"suspect"])
    for number in range(2):
        assert len(queue_of(redis, f"dead/{number}").claim(1)) == 1
        pass_time(redis, LEASE_SECONDS + 1)
    push(redis, [b"new"])
    bench = LoopBench(redis)
    polls = []

    def is_loaded() -> bool:
        polls.append(dict(bench.handler.stored))
        return len(polls) > 4

    bench.is_loaded = is_loaded
    assert bench.run() == "empty"
    assert polls[:5] == [{}] * 5
    assert bench.outcomes() == {"succeeded": 2}


@pytest.mark.parametrize("polls_before", [1, 2, 3, 4, 5, 9])
def test_a_run_whose_model_loads_slowly_waits_for_it_if_a_last_attempt_is_due(redis: Redis, polls_before: int) -> None:
    push(redis, [b"suspect"])
    for number in range(2):
        assert len(queue_of(redis, f"dead/{number}").claim(1)) == 1
        pass_time(redis, LEASE_SECONDS + 1)
    push(redis, [b"behind it"])
    bench = LoopBench(redis, RUNNER_RETRY_MAX_SECONDS="0", RUNNER_RETRY_BASE_SECONDS="0")
    polls = itertools.count()
    bench.is_loaded = lambda: next(polls) >= polls_before
    assert bench.run() == "empty"
    assert bench.outcomes() == {"succeeded": 2}
    assert places(redis).all == []


def test_a_run_whose_model_never_loads_ends_when_its_time_is_over(redis: Redis) -> None:
    push(redis, [b"suspect"])
    for number in range(2):
        assert len(queue_of(redis, f"dead/{number}").claim(1)) == 1
        pass_time(redis, LEASE_SECONDS + 1)
    bench = LoopBench(redis, RUNNER_RETRY_MAX_SECONDS="0", RUNNER_MAX_SECONDS="1")
    bench.is_loaded = lambda: False
    assert bench.run() == "max_seconds"
    assert list(places(redis).leased.values()) == [b"suspect"]


def test_the_last_photo_that_a_stuck_thread_began_is_blamed(redis: Redis, stuck_for_ever: Any) -> None:
    push(redis, [b"first", b"second", b"third"])
    bench = LoopBench(redis, RUNNER_PHOTO_TIMEOUT_SECONDS="1")
    loads: list[Load] = []
    ready = threading.Event()

    def thread() -> None:
        ready.wait()
        for one in loads:
            one()
            time.sleep(0.1)
        stuck_for_ever.wait()

    def compute(load: Load) -> Future[list[Any]]:
        loads.append(load)
        if len(loads) == 3:
            ready.set()
        return Future()

    bench.compute = compute
    threading.Thread(target=thread, daemon=True).start()
    with pytest.raises(StuckError):
        bench.run()
    bench.settlement.abandon()
    assert bench.outcomes() == {"retried": 1, "released": 2}
    (retried,) = [lease for lease in queue_of(redis, "observer").leased() if lease.reason == "photo_timeout"]
    assert places(redis).leased[retried.id] == bench.decoded[-1]


def test_a_signal_releases_jobs_that_have_not_begun_and_finishes_the_others(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(40)])
    bench = LoopBench(redis, RUNNER_MAX_JOBS="1000", RUNNER_CLAIM_SIZE="40")
    going_on = threading.Event()

    def signals() -> None:
        while not bench.handler.open:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        going_on.set()

    bench.compute = computing_after(going_on)
    assert bench.run(before=threading.Thread(target=signals, daemon=True).start) == "signal"
    outcomes = bench.outcomes()
    assert outcomes["succeeded"] == len(bench.handler.stored) <= 2 + PREFETCH
    assert outcomes["released"] == 40 - outcomes["succeeded"]
    assert bench.summary.unsettled == 0


def test_begun_jobs_are_released_after_the_grace_period(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    bench = LoopBench(redis, RUNNER_SHUTDOWN_SECONDS="0.3")
    bench.compute = lambda _: Future()

    def signals() -> None:
        while not bench.handler.open:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    assert bench.run(before=threading.Thread(target=signals, daemon=True).start) == "signal"
    assert bench.outcomes() == {"released": 2}


def test_an_engine_that_cannot_be_opened_ends_the_run_and_loses_no_job(redis: Redis) -> None:
    push(redis, [b"a", b"b"])
    bench = LoopBench(redis)

    def compute(_: Load) -> Future[list[Any]]:
        raise ModelError("damaged")

    bench.compute = compute
    with pytest.raises(ModelError):
        bench.run()
    bench.settlement.abandon()
    assert bench.outcomes() == {"released": 2}
    assert [lease.attempts for lease in queue_of(redis, "b").claim(5)] == [1, 1]


def test_a_job_whose_lease_is_lost_is_not_fetched(redis: Redis) -> None:
    push(redis, [f"{number}".encode() for number in range(30)])
    bench = LoopBench(redis, RUNNER_CLAIM_SIZE="30", RUNNER_MAX_JOBS="30")
    going_on = threading.Event()

    def steal() -> None:
        while not bench.handler.open:
            time.sleep(0.01)
        pass_time(redis, LEASE_SECONDS + 1)
        queue_of(redis, "there/1").claim(100)
        bench.settlement._heartbeat.beat()
        going_on.set()

    bench.compute = computing_after(going_on)
    assert bench.run(before=threading.Thread(target=steal, daemon=True).start) == "max_jobs"
    assert bench.outcomes() == {"lease_lost": 30}
    assert len({one for together in bench.handler.seen_together for one in together}) < 12
