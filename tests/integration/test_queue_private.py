"""The queue of `run --job`: leased like any other, invisible to other runs, removed afterwards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from runner.errors import RedisUnreachableError, UnreachableError
from runner.queue.client import opened
from runner.queue.leases import Counts, Lease
from runner.queue.private import LIFETIME_SECONDS, PrivateQueue
from runner.settings import Settings, load
from tests.support.queue_tools import NAME, push, queue_of
from tests.support.redis_topologies import Relay
from tests.support.run_tools import Ended, Service

BAD = b'{"id": "a-photo"}'  # without a URL


def _private_keys(redis: Redis) -> list[bytes]:
    return [key for key in redis.scan_iter() if b":job:" in key]


def _settings(port: int, seconds: str = "1") -> Settings:
    return load(
        {"REDIS_URL": f"redis://127.0.0.1:{port}", "RUNNER_CONNECT_TIMEOUT_SECONDS": seconds}, required=("redis_url",)
    )


def _private(redis: Redis) -> PrivateQueue:
    return PrivateQueue(redis, NAME, b"payload", owner="here/1", lease_seconds=30, max_attempts=3)


def test_a_given_job_is_leased_retried_and_acknowledged_like_any_other(redis: Redis) -> None:
    with _private(redis) as queue:
        (lease,) = queue.claim(5)
        assert (lease.queue, lease.payload, lease.attempts) == (NAME, b"payload", 1)
        assert queue_of(redis, "another/1").claim(5) == []
        assert queue_of(redis, "another/1").counts().in_flight == 0  # KEDA does not count anything either
        assert queue.retry(lease, 0, "again")
        (again,) = queue.claim(5)
        assert again.attempts == 2
        assert queue.acknowledge_many([again]) == set()
    assert _private_keys(redis) == []


def test_a_given_job_is_counted_apart_from_its_queue(redis: Redis) -> None:
    push(redis, [b"one", b"two"])
    others = queue_of(redis, "another/1")
    _, dead = others.claim(2)
    assert others.dead_letter(dead, "expired", "")
    with _private(redis) as queue:
        assert queue.counts() == Counts(1, 0, 0, 0, None)
        (lease,) = queue.claim(1)
        assert queue.dead_letter(lease, "expired", "")
        assert queue.counts() == Counts(0, 0, 0, 1, None)
    assert others.counts()[:4] == (0, 1, 0, 1)


def test_the_keys_of_a_killed_run_expire(redis: Redis) -> None:
    queue = _private(redis)
    queue.__enter__()
    (lease,) = queue.claim(1)
    assert queue.dead_letter(lease, "invalid_job", "")
    left = _private_keys(redis)
    assert left
    assert all(0 < redis.ttl(key) <= LIFETIME_SECONDS for key in left)


@pytest.mark.parametrize("step", ["push", "claim", "dead_letter", "end_run"])
def test_the_keys_expire_if_redis_is_lost_while_it_writes_them(redis: Redis, redis_url: str, step: str) -> None:
    port = urlsplit(redis_url).port
    assert port is not None
    with Relay(lambda: port) as relay, opened(_settings(relay.port)) as client:
        queue = _private(client)
        leases: list[Lease] = []
        steps: dict[str, Callable[[], Any]] = {
            "push": queue.__enter__,
            "claim": lambda: leases.extend(queue.claim(1)),
            "dead_letter": lambda: queue.dead_letter(leases[0], "invalid_job", ""),
            "end_run": lambda: queue.end_run("{}"),
        }
        for earlier in list(steps)[: list(steps).index(step)]:
            steps[earlier]()
        relay.lose_replies = 10_000
        with pytest.raises(RedisUnreachableError):
            steps[step]()
    left = _private_keys(redis)
    assert left
    assert all(0 < redis.ttl(key) <= LIFETIME_SECONDS for key in left)


def test_a_job_whose_push_is_repeated_is_there_once(redis: Redis, redis_url: str) -> None:
    port = urlsplit(redis_url).port
    assert port is not None
    with Relay(lambda: port) as relay, opened(_settings(relay.port, "5")) as client:
        relay.lose_replies = 1
        with _private(client) as queue:
            assert relay.lose_replies == 0
            assert len(queue.claim(5)) == 1


@pytest.mark.parametrize("payload", [BAD, b"not JSON", b'{"jobId": "c", "storedIds": [], "selfie": "!"}'])
def test_a_given_job_that_fails_leaves_no_dead_letter(service: Service, tmp_path: Path, payload: bytes) -> None:
    job = tmp_path / "job.json"
    job.write_bytes(payload)
    ended = service.run("--job", str(job))
    assert (ended.summary["claimed"], ended.summary["dead_lettered"], ended.summary["exit_reason"]) == (
        1,
        1,
        "max_jobs",
    )
    assert _private_keys(service.redis) == []
    assert service.leftovers() == {}


@pytest.mark.parametrize("length", [1, 10, 2000])
def test_a_payload_in_place_of_its_path_is_not_repeated(service: Service, length: int) -> None:
    payload = json.dumps({"jobId": "c", "storedIds": [], "selfie": "QUJD" * length})
    for ended in (service.command("run", "--job", payload), service.command("run", RUNNER_JOB=payload)):
        assert ended.code == 2
        assert "standard input" in ended.summary["exit_message"]
        assert "QUJD" not in ended.output + ended.errors


@pytest.fixture
def refused_job(service: Service, tmp_path: Path) -> str:
    """The file of a job whose image server refuses connections."""
    service.api.upload({"a.jpg": "http://127.0.0.1:9/a.jpg"})
    redis: Any = service.redis
    job = tmp_path / "job.json"
    job.write_bytes(redis.lpop("face_embeddings:process"))
    return str(job)


def _assert_unfinished(service: Service, ended: Ended, reason: str) -> None:
    """Check that the run says that its job is lost, and that it leaves nothing."""
    assert ended.code == UnreachableError.exit_code, ended.errors
    assert ended.summary["exit_reason"] == reason
    assert "run it again" in ended.summary["exit_message"]
    assert ended.lines(event="job not finished", exit_code=75)
    assert _private_keys(service.redis) == []


def test_a_given_job_that_does_not_finish_in_time_is_no_success(service: Service, refused_job: str) -> None:
    more = {"RUNNER_RETRY_BASE_SECONDS": "60", "RUNNER_MAX_SECONDS": "1"}
    ended = service.command("run", "--job", refused_job, **more)
    assert ended.summary["retried"] == 1
    _assert_unfinished(service, ended, "max_seconds")


def test_a_signal_drops_the_given_job_and_is_no_success(service: Service, refused_job: str) -> None:
    process = service.start("run", "--job", refused_job, RUNNER_RETRY_BASE_SECONDS="60")
    deadline = time.monotonic() + 60
    while not any(b":leases" in key for key in _private_keys(service.redis)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # refused, and by now waiting for its retry
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    _assert_unfinished(service, Ended(process.returncode, output, errors), "signal")
