"""`status` without a cluster, and `inspect` of an active run."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from demo.album import jpeg, landscape
from runner.cli.inspect import run_arguments, settings_of
from tests.support.forked import Fork
from tests.support.odd_server import OddServer
from tests.support.queue_tools import push, queue_of

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.support.run_tools import Service


def _status(service: Service, *arguments: str, **more: str) -> dict[str, Any]:
    ended = service.command("status", "--json", *arguments, **more)
    assert ended.code == 0, ended.errors
    document: dict[str, Any] = json.loads(ended.output)
    return document


def test_the_redis_half_of_status_works_without_a_cluster(service: Service, redis: Redis, tmp_path: Path) -> None:
    push(redis, [b"%d" % number for number in range(9)])
    first, second = queue_of(redis, "job-a/pod-a/1"), queue_of(redis, "job-b/pod-b/1")
    leases = first.claim(2)
    second.claim(3)
    first.dead_letter(leases[0], "invalid_job", "x")
    second.retry(second.claim(1)[0], 0, "fetch_failed")
    document = _status(service, KUBECONFIG=str(tmp_path / "none"))
    state = document["queues"]["process"]
    assert {name: state[name] for name in ("waiting", "in_flight", "expired", "dead_letters", "leases_by_runner")} == {
        "waiting": 3,
        "in_flight": 5,
        "expired": 1,
        "dead_letters": 1,
        "leases_by_runner": {"job-b/pod-b": 3, "job-a/pod-a": 1},
    }
    assert 0 <= state["oldest_lease_seconds"] < 60
    assert document["queues"]["compare"]["waiting"] == 0
    assert document["cluster"] is None
    assert "kubeconfig" in document["cluster_error"]["message"]


def test_status_prints_readable_text(service: Service, redis: Redis, tmp_path: Path) -> None:
    push(redis, [b"1", b"2"])
    ended = service.command("status", KUBECONFIG=str(tmp_path / "none"))
    lines = ended.output.splitlines()
    assert lines[0].split() == [
        "QUEUE",
        "WAITING",
        "IN",
        "FLIGHT",
        "EXPIRED",
        "PARKED",
        "DEAD",
        "OLDEST",
        "LEASE",
        "RUNNERS",
    ]
    assert lines[2].split() == ["process", "2", "0", "0", "0", "0", "-", "-"]
    assert lines[3].startswith("0 photos are READY without embeddings of ")
    assert lines[4].startswith("cluster: No Kubernetes cluster is available")
    assert "KUBECONFIG" in lines[4]


def test_an_unreachable_or_missing_redis_is_reported(service: Service, tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    away = service.command(
        "status", REDIS_URL="redis://127.0.0.1:1/0", KUBECONFIG=none, RUNNER_CONNECT_TIMEOUT_SECONDS="0.1"
    )
    assert (away.code, "queues: Redis is unavailable" in away.output) == (75, True)
    unset = service.command("status", REDIS_URL="", KUBECONFIG=none)
    assert (unset.code, "REDIS_URL is missing" in unset.output) == (2, True)


def test_a_requested_cluster_that_is_unreachable_is_an_error(service: Service, tmp_path: Path) -> None:
    ended = service.command("status", "--context", "nowhere", KUBECONFIG=str(tmp_path / "none"))
    assert ended.code == 6
    assert ended.output.startswith("QUEUE")


def test_watching_in_a_pipe_repeats_plain_lines(service: Service, tmp_path: Path) -> None:
    process = service.start("status", "--watch", "--json", "--interval", "0.2", KUBECONFIG=str(tmp_path / "none"))
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert all(set(document["queues"]) == {"compare", "process"} for document in seen)


def test_watching_on_a_terminal_redraws_in_place(service: Service, redis: Redis, tmp_path: Path) -> None:
    push(redis, [b"1"] * 7)
    leader, follower = os.openpty()
    command = ["runner.cli", "status", "--watch", "--interval", "0.2"]
    environment = {**service.environment, "KUBECONFIG": str(tmp_path / "none"), "TERM": "xterm", "COLUMNS": "120"}
    with Fork(command, env=environment, stdout=follower, stderr=follower) as process:
        os.close(follower)
        screen = ""
        while screen.count("Waiting") < 3:
            screen += os.read(leader, 65_536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal's other end is closed when the command has ended
            while text := os.read(leader, 65_536):
                screen += text.decode(errors="replace")
        assert process.wait(30) == 130
    os.close(leader)
    assert "\x1b[" in screen, "the cursor is moved up"
    assert "process" in screen
    assert "7" in screen
    assert "Traceback" not in screen


def test_inspect_shows_the_leases_of_a_run(service: Service, redis: Redis) -> None:
    with OddServer({"lake.jpg": jpeg(landscape(320, 200))}) as server:
        service.api.upload({f"{number}": server.url("hang") for number in range(3)})
        # `inspect` reads the command line and the environment that a process was started with.
        run = service.start_fresh("run", "--max-seconds", "100", RUNNER_OWNER="job-x", RUNNER_MAX_JOBS="7")
        try:
            deadline = time.monotonic() + 60
            while int(redis.zcard("{face_embeddings:process}:leases")) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # Only root may read the environment of a run; another user's `inspect` has to have the same one.
            environment = (
                {"RUNNER_MAX_JOBS": "1"} if os.geteuid() == 0 else {"RUNNER_MAX_JOBS": "7", "RUNNER_OWNER": "job-x"}
            )
            ended = service.command("inspect", "--pid", str(run.pid), "--json", **environment)
            text = service.command("inspect", "--pid", str(run.pid), **environment)
        finally:
            run.kill()
            run.communicate()
    assert ended.code == 0, ended.errors
    view = json.loads(ended.output)
    assert view["owner"].startswith("job-x/")
    assert view["max_jobs"] == 7  # the run's environment counts, not that of the command, where it may be read
    assert 0 < view["claiming_seconds_left"] < 100
    assert 20 < view["memory_mib"] <= view["memory_peak_mib"] < 2000
    assert [(lease["queue"], lease["attempts"]) for lease in view["leases"]] == [("process", 1)] * 3
    assert all(0 < lease["expires_in_seconds"] <= 30 for lease in view["leases"])
    assert "3 leases" in text.output


def test_inspect_without_a_run_says_where_to_look(service: Service) -> None:
    ended = service.command("inspect", "--pid", "1")
    assert ended.code == 5
    assert "kubectl exec" in ended.errors


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (["/opt/bin/python", "/opt/bin/spottmee-worker", "run"], []),
        (["spottmee-worker", "run", "--max-jobs", "3"], ["--max-jobs", "3"]),
        (["python3", "-m", "runner", "run", "--queues=compare"], ["--queues=compare"]),
        (["python3", "/opt/bin/spottmee-worker", "inspect"], None),
        (["vi", "runner", "run"], None),
        (["sh"], None),
    ],
)
def test_a_run_is_recognised_by_its_command_line(command: list[str], arguments: list[str] | None) -> None:
    assert run_arguments(command) == arguments


def test_the_settings_of_a_run_are_its_own() -> None:
    settings = settings_of(
        ["--max-jobs", "3", "--queues=compare"],
        {"REDIS_URL": "redis://a/0", "DATABASE_URL": "postgres://b/c", "RUNNER_MAX_JOBS": "9"},
    )
    assert (settings.max_jobs, settings.queues) == (3, ("compare",))
