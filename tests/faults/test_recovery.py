"""Recovery without an operator: runners wait for the jobs of dead runners, take them over and finish them."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from demo.api import COMPARE_LIST, Api
from runner.queue import keys
from runner.queue.heartbeat import Heartbeat
from runner.queue.leases import LeaseQueue
from tests.faults.gate import State
from tests.faults.pictures import Behaviour, kinds
from tests.faults.runs import Ended, end
from tests.faults.world import Setup, World
from tests.support.run_tools import wait_for
from tests.support.web import Web, ok

KINDS = ["Ada", "Ben", "nobody"]


@pytest.fixture(scope="module")
def servers() -> Iterator[World]:
    with World(kinds(), Setup(environment={"RUNNER_RESULT_WATCH_SECONDS": "3"})) as world:
        yield world


@pytest.fixture
def world(servers: World) -> World:
    """A world with an empty Redis, in which tests start their own runners."""
    servers.redis.flushall()
    servers.jobs.photos.clear()
    servers.jobs.comparisons.clear()
    servers.notes.write_text("", "utf-8")
    servers.images.behaviour = Behaviour.NORMAL
    return servers


def run(world: World, *arguments: str, queue: str = "process", **environment: str) -> Ended:
    world.environment |= environment
    try:
        return end(world.command("run", "--queues", queue, *arguments), 90)
    finally:
        for name in environment:
            del world.environment[name]


def dead_runner(world: World, name: str, seconds: float, *, owner: str = "dead/1") -> LeaseQueue:
    """Return the queue of a runner that never renews its leases."""
    return LeaseQueue(world.redis, name, owner=owner, lease_seconds=seconds, max_attempts=3)


def all_final(world: World) -> bool:
    with world.database("api") as connection:
        rows = connection.execute(
            'SELECT DISTINCT status::text FROM "Photo" WHERE id = ANY(%s)', (list(world.jobs.photos),)
        ).fetchall()
    return {row[0] for row in rows} <= {"READY", "NO_FACES_FOUND"} and world.scaler.depth("process") == (0, 0)


def test_a_run_on_an_empty_list_waits_for_the_leases_of_a_dead_runner(world: World) -> None:
    world.upload(5, names=KINDS)
    assert len(dead_runner(world, "process", 4).claim(5)) == 5
    ended = run(world, RUNNER_LEASE_SECONDS="4")
    assert (ended.code, ended.summary["claimed"], ended.summary["succeeded"]) == (0, 5, 5), ended.errors
    assert all_final(world)


def test_a_run_waits_for_the_delayed_retry_of_a_dead_runner(world: World) -> None:
    world.upload(1, names=KINDS)
    dead = dead_runner(world, "process", 1)
    assert dead.retry(dead.claim(1)[0], 5, "fetch_failed")
    ended = run(world, RUNNER_LEASE_SECONDS="1")  # the retry is due after any lease of a live runner would have expired
    assert (ended.code, ended.summary["succeeded"]) == (0, 1), ended.errors
    assert all_final(world)


def test_a_run_stops_waiting_once_it_sees_that_the_owner_of_a_lease_is_alive(world: World) -> None:
    world.upload(5, names=KINDS)
    alive = dead_runner(world, "process", 6, owner="alive/1")
    with Heartbeat([alive]) as heartbeat:
        leases = alive.claim(5)
        heartbeat.add(leases)
        ended = run(world, RUNNER_LEASE_SECONDS="6", RUNNER_RETRY_MAX_SECONDS="80")
        assert (ended.code, ended.summary["claimed"], ended.summary["exit_reason"]) == (0, 0, "empty"), ended.errors
        assert ended.summary["duration_seconds"] < 40, "it waited as long as for a dead runner"
        assert not alive.renew(leases)


def test_waiting_for_other_leases_is_bounded_by_the_longest_retry_delay(world: World) -> None:
    world.upload(1, names=KINDS)
    dead_runner(world, "process", 3000).claim(1)
    ended = run(world, RUNNER_LEASE_SECONDS="3000", RUNNER_RETRY_MAX_SECONDS="2")
    assert (ended.code, ended.summary["exit_reason"]) == (0, "empty"), ended.errors
    assert 2 <= ended.summary["duration_seconds"] < 60, "it waited for a lease of 3000 s"


def test_a_replacement_pod_of_the_same_job_takes_over_the_leases_at_once(world: World) -> None:
    world.upload(12, names=KINDS)
    world.environment |= {"RUNNER_OWNER": "job-7", "RUNNER_LEASE_SECONDS": "600"}
    try:
        fault = {"FAULT_POINT": "before_store", "FAULT_ACTION": "kill", "FAULT_SHARE": "1"}
        assert end(world.command("run", "--queues", "process", fault=fault), 60).code == -9
        assert world.scaler.depth("process")[1] > 0
        started = time.monotonic()
        ended = end(world.command("run", "--queues", "process"), 60)
        assert (ended.code, ended.summary["succeeded"]) == (0, 12), ended.errors
        assert time.monotonic() - started < 30  # a lease lasts ten minutes
    finally:
        del world.environment["RUNNER_OWNER"], world.environment["RUNNER_LEASE_SECONDS"]
    assert all_final(world)


def held_up(world: World, queue: str) -> subprocess.Popen[str]:
    """Start a run that waits for PostgreSQL with a job of `queue`, which it has claimed during its start-up."""
    world.postgres_gate.set(State.UNRESPONSIVE)
    process = world.command("run", "--queues", queue, fault={"RUNNER_LEASE_SECONDS": "2"})
    wait_for(lambda: world.redis.zcard(keys.leases(queue)))
    return process


def test_a_run_that_was_frozen_does_not_begin_a_photo_that_another_run_has_failed(world: World) -> None:
    with world.database("api") as connection, Web({"*": ok(b"", status="404 Not Found")}) as web:
        (photo,) = Api(world.redis, connection).upload({"photo": web.url("/photo.jpg")}).values()
        frozen = held_up(world, "process")
        try:
            wait_for(lambda: web.requests)
            frozen.send_signal(signal.SIGSTOP)
            time.sleep(2.1)  # until its lease has expired
            more = {"RUNNER_LEASE_SECONDS": "2", "DATABASE_URL": world.postgres.database_url("api")}
            other = end(world.command("run", "--queues", "process", fault=more), 90)
        finally:
            world.postgres_gate.set(State.OPEN)
            frozen.send_signal(signal.SIGCONT)
            ended = end(frozen, 90)
        assert other.summary["dead_lettered"] == 1, other.errors
        assert (ended.code, ended.summary["lease_lost"]) == (0, 1), ended.errors
        assert connection.execute('SELECT status::text FROM "Photo" WHERE id = %s', (photo,)).fetchone() == ("FAILED",)


def test_a_run_does_not_begin_a_comparison_that_is_forgotten_during_its_start_up(world: World) -> None:
    with world.database("api") as connection:
        job = Api(world.redis, connection).compare(world.pictures["selfie Ada"].data, ["photo"])
    waiting = held_up(world, "compare")
    try:
        forgotten = world.command("forget", "--comparison", job, "--yes")
        output, errors = forgotten.communicate(timeout=60)
        assert forgotten.returncode == 0, errors
        assert "1 of the leases" in output
    finally:
        world.postgres_gate.set(State.OPEN)
        ended = end(waiting, 90)
    assert (ended.code, ended.summary["lease_lost"]) == (0, 1), ended.errors
    assert not world.redis.exists(keys.match_result(job), keys.match_result_detail(job))


@pytest.mark.parametrize("most", ["6", "50"])
def test_photos_of_an_image_server_that_was_down_are_completed_without_counting_attempts(
    world: World, most: str
) -> None:
    world.upload(6, names=KINDS)
    world.images.behaviour = Behaviour.DOWN
    process = world.command("run", "--queues", "process", "--max-jobs", most)
    while world.images.answers["closed"] < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    world.images.behaviour = Behaviour.NORMAL
    runs = [end(process, 60)]
    while not all_final(world) and len(runs) < 30:  # a run exits while its last job is parked for the server
        runs.append(end(world.command("run", "--queues", "process", "--max-jobs", most), 60))
    assert [run.code for run in runs] == [0] * len(runs), runs[-1].errors
    assert sum(run.summary["succeeded"] for run in runs) == 6
    assert sum(run.summary["retried"] + run.summary["dead_lettered"] for run in runs) == 0
    assert all_final(world)
    world.images.answers.clear()


def test_retries_do_not_make_a_run_exceed_its_maximum_of_jobs(world: World) -> None:
    world.upload(12, names=KINDS)
    world.images.behaviour = Behaviour.DOWN
    process = world.command("run", "--queues", "process", "--max-jobs", "4", fault={"RUNNER_OUTAGE_SECONDS": "0"})
    while world.images.answers["closed"] < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    world.images.behaviour = Behaviour.NORMAL
    ended = end(process, 60)
    world.images.answers.clear()
    assert ended.summary["succeeded"] == 4, ended.errors
    assert ended.summary["exit_reason"] == "max_jobs"
    assert world.scaler.depth("process") == (8, 0)


def test_a_run_that_watches_a_result_key_keeps_claiming(world: World) -> None:
    world.prepare_comparisons()
    first, second = _comparison(world, "first"), _comparison(world, "second")
    world.redis.rpush(COMPARE_LIST, first)
    # The key is watched until INITIATED is seen, much longer than the second comparison takes.
    process = world.command("run", "--queues", "compare", fault={"RUNNER_RESULT_WATCH_SECONDS": "60"})
    while not (world.redis.get(keys.match_result("first")) or b"").startswith(b"["):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert world.scaler.depth("compare") == (0, 1)
    world.redis.rpush(COMPARE_LIST, second)
    while not (world.redis.get(keys.match_result("second")) or b"").startswith(b"["):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert world.scaler.depth("compare") == (0, 2), (
        "the first result was no longer watched when the second comparison was claimed"
    )
    for job_id in ("first", "second"):
        world.redis.set(keys.match_result(job_id), "INITIATED")
    ended = end(process, 50)
    assert (ended.code, ended.summary["comparisons"]) == (0, 2), ended.errors


def _comparison(world: World, job_id: str) -> bytes:
    selfie = base64.b64encode(world.pictures["selfie Ada"].data).decode()
    document = {"jobId": job_id, "storedIds": list(world.reference.photos), "selfie": selfie, "threshold": 0.5}
    return json.dumps(document).encode()
