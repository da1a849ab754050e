"""An answer is final: one that the API overwrites with a late INITIATED is restored by the next run or sweep."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from runner.queue import keys
from tests.support.run_tools import Service, wait_for

JOB = "guest"
ANSWER = b"[]"  # the selfie is not an image


def _push(service: Service, payload: bytes) -> None:
    service.redis.rpush(keys.list_key("compare"), payload)


def _job(job_id: str = JOB) -> bytes:
    return json.dumps({"jobId": job_id, "storedIds": [], "selfie": "aGVsbG8="}).encode()


def _answered_unwatched(service: Service) -> None:
    service.run(RUNNER_RESULT_WATCH_SECONDS="0")


def _ended_while_watching(service: Service) -> None:
    run = service.start("run", RUNNER_RESULT_WATCH_SECONDS="60")
    wait_for(lambda: service.redis.get(keys.match_result(JOB)) == ANSWER)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 0, errors


@pytest.mark.parametrize("answered", [_answered_unwatched, _ended_while_watching])
@pytest.mark.parametrize("next_command", [("run", "--queues", "process"), ("run", "--queues", "compare"), ("sweep",)])
def test_a_late_initiated_is_repaired_by_the_next_run_or_sweep(
    service: Service, answered: Callable[[Service], None], next_command: tuple[str, ...]
) -> None:
    _push(service, _job())
    answered(service)
    service.redis.set(keys.match_result(JOB), "INITIATED")
    ended = service.command(*next_command)
    assert ended.code == 0, ended.errors
    assert service.redis.get(keys.match_result(JOB)) == ANSWER
    assert 0 < service.redis.ttl(keys.match_result(JOB)) <= 3600


def test_an_initiated_during_a_run_of_photos_is_repaired_at_its_end(service: Service) -> None:
    _push(service, _job())
    _answered_unwatched(service)
    run = service.start("run", "--queues", "process", "--idle-seconds", "3", RUNNER_LOG_LEVEL="debug")
    wait_for(lambda: _connected(service))
    service.redis.set(keys.match_result(JOB), "INITIATED")
    run.communicate(timeout=30)
    assert service.redis.get(keys.match_result(JOB)) == ANSWER


def _connected(service: Service) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'spottmee-worker%'"
    row = service.connection.execute(query).fetchone()
    return row is not None and row[0] > 0


def test_photos_are_processed_where_the_answers_of_comparisons_cannot_be_read(service: Service) -> None:
    service.redis.set(keys.unconfirmed(), "of another type")
    ended = service.command("run", "--queues", "process")
    assert ended.code == 0, ended.errors
    assert ended.lines(event="answers were not restored", code="redis_refused")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"jobId":"guest","storedIds":[],"selfie":"aGVs',
        b'{"jobId":"guest","storedIds":[],"selfie":NaN}',
        b'{"storedIds":[,],"jobId":"guest","selfie":"aGVsbG8="}',
        b'\xef\xbb\xbf{"jobId":"guest","storedIds":[],"selfie":"aGVsbG8="}',
        b'{\'storedIds\': [], "jobId": "guest"}',
        b'{"jobId":"guest","storedIds":["\xff"],"selfie":"aGVsbG8="}',
    ],
)
def test_invalid_json_with_a_readable_job_id_is_answered_empty(service: Service, payload: bytes) -> None:
    _push(service, payload)
    service.redis.set(keys.match_result(JOB), "INITIATED")
    ended = service.run()
    assert service.api.result(JOB) == []
    assert ended.summary["dead_lettered"] == 1


def test_no_key_of_a_comparison_can_be_read_as_the_result_of_another_job(service: Service) -> None:
    _push(service, _job())
    service.redis.set(keys.match_result(JOB), "INITIATED")
    service.run()
    assert service.api.detail(JOB)
    assert service.redis.keys(keys.match_result("*")) == [keys.match_result(JOB).encode()]
