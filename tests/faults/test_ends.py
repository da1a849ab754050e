"""How a run ends: on SIGTERM, when servers are unreachable, and when native code never returns."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.api import PROCESS_LIST
from runner.errors import StuckError, UnreachableError
from runner.queue import keys
from tests.faults.gate import Gate, State
from tests.faults.pictures import kinds
from tests.faults.runs import end
from tests.faults.world import Setup, World

DRAIN_SECONDS = 1.0
# After RUNNER_SHUTDOWN_SECONDS the watchdog ends the run, normally within 1.5 s; the rest allows for a machine that is
# busy with other tests. Without the watchdog, none of these runs would end within a minute.
REST_SECONDS = 20.0
LEASE_SECONDS = 6.0
HUNG = "-80"  # added to the timeouts of 30 s and 60 s: a run counts as hung after 10 s
KINDS = ["Ada", "Ben", "nobody"]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One world for all tests of this module, which start their own runners; checks at the end that no job is lost."""
    environment = {
        "RUNNER_SHUTDOWN_SECONDS": f"{DRAIN_SECONDS:g}",
        "RUNNER_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
        "RUNNER_MAX_ATTEMPTS": "20",  # many runners of these tests end with the same photos in flight
    }
    with World(kinds(), Setup(environment=environment)) as world:
        yield world
        ended = end(world.command("run", "--queues", "process", "--max-jobs", "1000"), 120)
        assert ended.code == 0, ended.errors
        assert world.scaler.depth("process") == (0, 0)
        with world.database("api") as connection:
            statuses = connection.execute('SELECT DISTINCT status::text FROM "Photo"').fetchall()
        assert set(statuses) == {("READY",), ("NO_FACES_FOUND",)}


@pytest.fixture
def photos(world: World) -> Iterator[list[str]]:
    """Photos pushed ahead of those that earlier tests left on the list; opens all gates at the end."""
    left = world.redis.lrange(PROCESS_LIST, 0, -1)
    world.redis.delete(PROCESS_LIST)
    ids = world.upload(8, names=KINDS)
    if left:
        world.redis.rpush(PROCESS_LIST, *left)
    world.notes.write_text("", "utf-8")
    yield ids
    for gate in (world.redis_gate, world.postgres_gate):
        gate.set(State.OPEN)


def run(world: World, fault: Mapping[str, str] | None = None, *, fresh: bool = False) -> subprocess.Popen[str]:
    # On a busy machine, the default of 0.7 s is too short for the watchdog to release all leases.
    more = {"FAULT_RELEASE_SECONDS": "5", **(fault or {})}
    return world.command("run", "--queues", "process", "--max-jobs", "100", fault=more, fresh=fresh)


def begun(world: World, photos: list[str]) -> bool:
    """Return whether a run is processing some of these photos."""
    with world.database("api") as connection:
        query = """SELECT 1 FROM "Photo" WHERE id = ANY(%s) AND status = 'PROCESSING'"""
        return connection.execute(query, (photos,)).fetchone() is not None


def handles_sigterm(process: subprocess.Popen[str]) -> bool:
    """Return whether the process has installed its signal handler; until then, SIGTERM kills it."""
    status = Path("/proc", str(process.pid), "status").read_text("utf-8")
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def holds_leases(world: World, owner: str) -> bool:
    fields: Any = world.redis.hgetall(keys.claimed("process"))
    return any(value.startswith(f"{owner}/".encode()) for field, value in fields.items() if field.endswith(b":holder"))


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("photos")
def test_sigterm_during_startup_loses_no_job(world: World) -> None:
    for after in range(20, 900, 110):  # milliseconds
        process = run(world, fresh=True)
        time.sleep(after / 1000)
        process.terminate()
        ended = end(process, DRAIN_SECONDS + REST_SECONDS)
        # Until Python has installed a handler, the signal ends the process, which has not claimed anything yet.
        assert ended.code in (0, -15), ended.errors
        assert ended.code == -15 or ended.summary["exit_reason"] in ("signal", "empty", "max_jobs")


@pytest.mark.parametrize("state", [State.REFUSED, State.UNRESPONSIVE], ids=lambda state: state.value)
@pytest.mark.parametrize("server", ["redis_gate", "postgres_gate"])
@pytest.mark.usefixtures("photos")
def test_sigterm_ends_a_run_that_cannot_reach_a_server_at_startup(world: World, server: str, state: State) -> None:
    gate: Gate = getattr(world, server)
    gate.set(state)
    owner = f"{server}-{state.value}"
    process = run(world, {"RUNNER_OWNER": owner})
    until(lambda: handles_sigterm(process), process)
    if server == "postgres_gate":
        until(lambda: holds_leases(world, owner), process)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    ended = end(process, DRAIN_SECONDS + REST_SECONDS)
    assert (ended.code, ended.summary["exit_reason"], ended.summary["unsettled"]) == (0, "signal", 0), ended.errors
    # Jobs claimed before PostgreSQL could be reached are released.
    assert ended.summary["claimed"] == ended.summary["released"]
    assert (ended.summary["claimed"] == 0) == (server == "redis_gate")


@pytest.mark.parametrize("state", [State.REFUSED, State.UNRESPONSIVE], ids=lambda state: state.value)
@pytest.mark.parametrize("server", ["redis_gate", "postgres_gate"])
def test_sigterm_ends_a_run_that_has_lost_a_server(world: World, photos: list[str], server: str, state: State) -> None:
    process = run(world)
    until(lambda: begun(world, photos), process)
    getattr(world, server).set(state)
    time.sleep(0.5)
    process.terminate()
    ended = end(process, DRAIN_SECONDS + REST_SECONDS)
    assert ended.summary["exit_reason"] == "signal"
    if server == "postgres_gate":  # the leases are in Redis, which can release them
        assert ended.code == 0, ended.errors
        assert ended.summary["released"] > 0
    else:
        assert ended.code == UnreachableError.exit_code, ended.errors
        assert ended.summary["unsettled"] > 0


@pytest.mark.usefixtures("photos")
def test_sigterm_is_no_success_while_the_reply_to_a_claim_is_outstanding(world: World) -> None:
    with Gate(world.redis_server.port) as gate:
        gate.mute_at = keys.last("process", "").encode()  # no command before the claim names it
        url = f"redis://127.0.0.1:{gate.port}/0"
        process = run(world, {"REDIS_URL": url, "RUNNER_OWNER": "mute", "FAULT_RELEASE_SECONDS": "0.5"})
        until(lambda: holds_leases(world, "mute"), process)
        process.terminate()
        ended = end(process, DRAIN_SECONDS + REST_SECONDS)
    assert gate.is_mute.is_set()
    assert (ended.code, ended.summary["exit_reason"]) == (UnreachableError.exit_code, "signal"), ended.errors
    assert '"claim_in_progress": true' in ended.errors


@pytest.mark.usefixtures("photos")
def test_sigterm_ends_a_run_whose_main_thread_is_in_native_code(world: World) -> None:
    process = run(world, {"FAULT_POINT": "before_store", "FAULT_ACTION": "hang", "FAULT_SHARE": "1"})
    until(lambda: "before_store hang" in world.faults_noted(), process)
    process.terminate()
    ended = end(process, DRAIN_SECONDS + REST_SECONDS)
    assert ended.code == 0, ended.errors
    assert ended.summary["released"] > 0


@pytest.mark.usefixtures("photos")
def test_a_hung_main_thread_ends_the_run(world: World) -> None:
    fault = {"FAULT_POINT": "before_store", "FAULT_ACTION": "hang", "FAULT_SHARE": "1", "FAULT_HUNG_SECONDS": HUNG}
    ended = end(run(world, fault), 90)
    assert ended.code == UnreachableError.exit_code, ended.errors
    assert ended.summary["exit_reason"] == "hung"
    assert ended.summary["released"] > 0
    assert ended.summary["unsettled"] == 0


def test_an_unresponsive_postgresql_ends_the_run(world: World, photos: list[str]) -> None:
    process = run(world, {"FAULT_HUNG_SECONDS": HUNG})
    until(lambda: begun(world, photos), process)
    world.postgres_gate.set(State.UNRESPONSIVE)
    ended = end(process, 90)
    assert ended.code == UnreachableError.exit_code, ended.errors
    assert ended.summary["exit_reason"] == "hung"
    assert ended.summary["unsettled"] == 0


@pytest.mark.usefixtures("photos")
def test_native_code_that_never_releases_the_gil_ends_the_process(world: World) -> None:
    fault = {"FAULT_POINT": "in_decode", "FAULT_ACTION": "freeze", "FAULT_SHARE": "1", "FAULT_HUNG_SECONDS": HUNG}
    ended = end(run(world, fault), 90)
    assert ended.code == 1
    assert "Timeout" in ended.errors  # faulthandler prints the stack of every thread
    assert "crashing_runner" in ended.errors
    time.sleep(LEASE_SECONDS)  # nothing could release the leases, so they must expire


@pytest.mark.usefixtures("photos")
def test_a_photo_that_hangs_ends_the_run_and_costs_no_other_photo_an_attempt(world: World) -> None:
    world.environment["RUNNER_PHOTO_TIMEOUT_SECONDS"] = "1"
    fault = {"FAULT_POINT": "in_decode", "FAULT_ACTION": "hang", "FAULT_SHARE": "1"}
    ended = end(run(world, fault), 90)
    del world.environment["RUNNER_PHOTO_TIMEOUT_SECONDS"]
    assert ended.code == StuckError.exit_code, ended.errors
    summary = ended.summary
    assert (summary["exit_reason"], summary["retried"], summary["unsettled"]) == ("stuck", 1, 0), summary
