"""An idle run is woken by a push, at once and without polling."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from runner.queue import keys
from tests.support.queue_tools import NAME, push, queue_of
from tests.support.worker_tools import LoopBench


def test_waiting_for_a_push_changes_nothing(redis: Redis) -> None:
    queue = queue_of(redis, "here/1")
    assert queue.wait_for_push(0.1) is False
    payloads = [b"first", b"second", b"third"]
    push(redis, payloads)
    assert queue.wait_for_push(5) is True
    assert redis.lrange(keys.list_key(NAME), 0, -1) == payloads


def test_one_push_wakes_every_waiting_run(redis: Redis) -> None:
    woken: list[bool] = []
    threads = [
        threading.Thread(target=lambda: woken.append(queue_of(redis, "here/1").wait_for_push(10))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    push(redis, [b"job"])
    for thread in threads:
        thread.join(5)
    assert woken == [True] * 5
    assert redis.lrange(keys.list_key(NAME), 0, -1) == [b"job"]


def beside(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_an_idle_run_begins_a_pushed_job_within_50_ms(redis: Redis) -> None:
    bench = LoopBench(redis, RUNNER_IDLE_SECONDS="2", RUNNER_MAX_JOBS="1000")
    pushed: dict[bytes, float] = {}
    begun: dict[bytes, float] = {}
    read = bench.handler.read

    def noted(task: Any) -> bytes:
        begun[task.lease.payload] = time.monotonic()
        return read(task)

    bench.handler.read = noted  # type: ignore[method-assign]  # a stand-in for this test

    def guests() -> None:
        for number in range(15):
            time.sleep(0.13)
            payload = b"%d" % number
            pushed[payload] = time.monotonic()
            push(redis, [payload])

    thread = beside(guests)
    assert bench.run() == "empty"
    thread.join(5)
    assert bench.outcomes() == {"succeeded": 15}
    assert statistics.median(begun[payload] - pushed[payload] for payload in pushed) < 0.05


def calls(redis: Any) -> int:
    """Return how many commands the runs have sent. Those inside a script are not counted."""
    stats = redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "blmove"))


def test_an_idle_run_sends_a_few_commands_a_second(redis: Redis) -> None:
    bench = LoopBench(redis, RUNNER_IDLE_SECONDS="5")
    counts: list[int] = []

    def observe() -> None:
        time.sleep(1)
        for _ in range(2):
            counts.append(calls(redis))
            time.sleep(3)

    thread = beside(observe)
    assert bench.run() == "empty"
    thread.join(10)
    assert 2 <= counts[1] - counts[0] <= 3 * 3


def test_an_idle_run_exits_at_once_after_a_signal(redis: Redis) -> None:
    bench = LoopBench(redis, RUNNER_IDLE_SECONDS="60")
    sent: list[float] = []

    def terminate() -> None:
        time.sleep(1)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    beside(terminate)
    assert bench.run() == "signal"
    assert time.monotonic() - sent[0] < 0.25


def test_a_run_without_the_right_to_block_polls_instead(redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    redis.execute_command("ACL", "SETUSER", "poller", "on", "nopass", "allkeys", "+@all", "-blmove")
    pool = redis.connection_pool.connection_kwargs
    limited = Redis(host=pool["host"], port=pool["port"], username="poller", password="", protocol=2)
    try:
        bench = LoopBench(limited, RUNNER_IDLE_SECONDS="2")

        def guest() -> None:
            time.sleep(1)
            push(redis, [b"job"])

        beside(guest)
        assert bench.run() == "empty"
        assert bench.outcomes() == {"succeeded": 1}
        assert "cannot wait for pushes, polling instead" in caplog.text
    finally:
        limited.close()
        redis.execute_command("ACL", "DELUSER", "poller")


def test_a_run_that_waits_for_its_own_retry_is_not_woken_by_other_jobs(redis: Redis) -> None:
    push(redis, [b"%d" % number for number in range(3)])
    bench = LoopBench(redis, RUNNER_MAX_JOBS="1", RUNNER_RETRY_BASE_SECONDS="1.5")
    failed: list[bytes] = []

    def refuse(task: Any) -> Exception | None:
        if task.faces is None or failed:
            return None
        failed.append(task.lease.payload)
        return RuntimeError("once")

    bench.handler.refuse = refuse
    before = calls(redis)
    assert bench.run() == "max_jobs"
    assert bench.outcomes() == {"retried": 1, "succeeded": 1}
    assert calls(redis) - before < 40
