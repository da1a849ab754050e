"""`spottmee-worker run` as a process: limits, signals, its last line, its exit codes."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.album import jpeg, landscape
from tests.support.odd_server import OddServer
from tests.support.queue_tools import queue_of

if TYPE_CHECKING:
    from tests.support.run_tools import Service

COUNTS = (
    "claimed",
    "succeeded",
    "retried",
    "dead_lettered",
    "released",
    "photos",
    "faces",
    "duration_seconds",
    "exit_reason",
)


@pytest.fixture(scope="module")
def server() -> Iterator[OddServer]:
    with OddServer({"lake.jpg": jpeg(landscape(320, 200))}) as found:
        yield found


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_empty_list_ends_at_once_and_says_so(service: Service) -> None:
    ended = service.run()
    assert set(COUNTS) <= set(ended.summary)
    assert ended.summary["exit_reason"] == "empty"
    assert ended.summary["claimed"] == 0
    assert len(ended.output.splitlines()) == 1


def test_limits_come_from_flags_and_environment(service: Service, server: OddServer) -> None:
    service.api.upload({f"{n}": server.url("lake.jpg") for n in range(7)})
    assert service.run("--max-jobs", "3").summary["claimed"] == 3
    by_environment = service.run(RUNNER_MAX_JOBS="2").summary
    assert (by_environment["claimed"], by_environment["exit_reason"]) == (2, "max_jobs")
    flag_first = service.run("--max-jobs", "1", RUNNER_MAX_JOBS="2").summary
    assert flag_first["claimed"] == 1
    assert service.run("--queues", "compare").summary["claimed"] == 0
    assert service.leftovers() == {"process waiting": 1}


def test_a_run_waits_for_idle_seconds_on_an_empty_list(service: Service, server: OddServer) -> None:
    process = service.start("run", "--idle-seconds", "3")
    time.sleep(1.5)
    service.api.upload({"late": server.url("lake.jpg")})
    output, _ = process.communicate(timeout=60)
    summary = json.loads(output)
    assert (summary["claimed"], summary["exit_reason"]) == (1, "empty")
    assert summary["duration_seconds"] >= 3


def test_a_run_stops_claiming_after_max_seconds(service: Service) -> None:
    started = time.monotonic()
    ended = service.run("--max-seconds", "1", "--idle-seconds", "60")
    assert ended.summary["exit_reason"] == "max_seconds"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_releases_jobs_that_have_not_begun_and_exits_0(
    service: Service, server: OddServer, number: signal.Signals
) -> None:
    service.api.upload({f"slow {n}": server.url("hang") for n in range(20)})
    process = service.start("run", RUNNER_CLAIM_SIZE="20", RUNNER_SHUTDOWN_SECONDS="1")
    while not server.requests or server.requests[-1] != "/hang":
        assert process.poll() is None
        time.sleep(0.05)
    sent = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    server.requests.clear()
    assert process.returncode == 0, errors
    assert time.monotonic() - sent < 10
    summary = json.loads(output.splitlines()[-1])
    assert summary["exit_reason"] == "signal"
    assert summary["released"] == summary["claimed"] == 20
    left = service.leftovers()
    assert left["process leased"] + left.get("process waiting", 0) == 20
    again = queue_of(service.redis, "another").claim(20)
    assert {lease.attempts for lease in again} == {1}  # a release is not counted


def test_begun_jobs_finish_after_a_signal(service: Service, server: OddServer) -> None:
    photos = service.api.upload({f"{n}": server.url("lake.jpg") for n in range(200)})
    process = service.start("run", "--max-jobs", "200")
    while "NO_FACES_FOUND" not in service.api.statuses().values():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    summary = json.loads(output.splitlines()[-1])
    assert summary["claimed"] == summary["succeeded"] + summary["released"] < 200
    assert service.run("--max-jobs", "200").summary["succeeded"] == 200 - summary["succeeded"]
    assert set(service.api.statuses().values()) == {"NO_FACES_FOUND"}
    assert len(photos) == 200
    assert service.leftovers() == {}


# How a run that cannot work ends


def test_all_invalid_settings_are_named_at_once(service: Service) -> None:
    ended = service.command(
        "run", "--max-jobs", "0", REDIS_URL="", DATABASE_URL="mysql://u:SECRET@h/d", RUNNER_QUEUES="all"
    )
    assert ended.code == 2
    assert ended.output == ""
    assert len(ended.errors.strip().splitlines()) == 1
    for name in ("REDIS_URL", "DATABASE_URL", "RUNNER_QUEUES", "--max-jobs"):
        assert name in ended.errors
    assert "SECRET" not in ended.errors


@pytest.mark.parametrize(
    ("variable", "url", "reason"),
    [
        ("REDIS_URL", "redis://:SECRET@127.0.0.1:{port}/0", "redis_unreachable"),
        ("DATABASE_URL", "postgresql://u:SECRET@127.0.0.1:{port}/d", "database_unreachable"),
        ("EMBEDDINGS_DATABASE_URL", "postgresql://u:SECRET@127.0.0.1:{port}/d", "database_unreachable"),
    ],
)
def test_an_unreachable_server_is_a_temporary_failure(service: Service, variable: str, url: str, reason: str) -> None:
    ended = service.command("run", **{variable: url.format(port=_closed_port())}, RUNNER_CONNECT_TIMEOUT_SECONDS="1")
    assert ended.code == 75
    assert ended.summary["exit_reason"] == reason
    assert "Traceback" not in ended.errors
    assert "SECRET" not in ended.errors


def test_a_run_without_a_model_does_not_start(service: Service, server: OddServer, tmp_path: Path) -> None:
    service.api.upload({"lake": server.url("lake.jpg")})
    ended = service.command("run", "--model-dir", str(tmp_path))
    assert ended.code == 4
    assert "models bake" in ended.errors
    assert service.leftovers() == {"process waiting": 1}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"RUNNER_MODEL_DIR": "/nonexistent"}, 4), ({"RUNNER_MAX_JOBS": "0"}, 2)],
    ids=["model", "settings"],
)
def test_a_run_that_cannot_work_says_so_and_waits_before_it_exits(
    service: Service, tmp_path: Path, wrong: dict[str, str], code: int
) -> None:
    message = tmp_path / "message"
    delay = {"RUNNER_FAILURE_DELAY_SECONDS": "60", "RUNNER_TERMINATION_LOG": str(message)}
    process = service.start("run", **wrong, **delay)
    assert process.stderr is not None
    assert next(iter(wrong))[7:].lower().split("_")[0] in process.stderr.readline().lower()
    time.sleep(1)
    assert process.poll() is None
    if code == 4:
        assert "model pack" in json.loads(message.read_text())["exit_message"]
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == code


def test_a_run_that_ends_for_an_unreachable_server_does_not_wait(service: Service) -> None:
    started = time.monotonic()
    url = f"redis://127.0.0.1:{_closed_port()}"
    ended = service.command("run", REDIS_URL=url, RUNNER_CONNECT_TIMEOUT_SECONDS="0", RUNNER_FAILURE_DELAY_SECONDS="60")
    assert ended.code == 75
    assert time.monotonic() - started < 30


def test_the_summary_is_also_the_termination_message(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    ended = service.run(RUNNER_TERMINATION_LOG=str(file))
    assert json.loads(file.read_text()) == ended.summary


def test_doctor_checks_everything_and_changes_nothing(service: Service, server: OddServer) -> None:
    service.api.upload({"lake": server.url("lake.jpg")})
    ended = service.command("doctor", "--json")
    checks = json.loads(ended.output)
    assert ended.code == 0
    assert [check["ok"] for check in checks] == [True] * len(checks)
    assert service.leftovers() == {"process waiting": 1}
    broken = service.command(
        "doctor", REDIS_URL=f"redis://127.0.0.1:{_closed_port()}", RUNNER_CONNECT_TIMEOUT_SECONDS="0"
    )
    assert broken.code == 75
    assert broken.output.count("FAIL") == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["doctor", "--help"], ["migrate", "--help"], ["models", "--help"]]
)
def test_help_explains_commands_and_settings(service: Service, arguments: list[str]) -> None:
    ended = service.command(*arguments)
    assert ended.code == 0
    assert len(ended.output.splitlines()) > 5


@pytest.mark.parametrize("arguments", [[], ["dance"], ["run", "--max-job", "x", "--nonsense"], ["models"]])
def test_wrong_arguments_exit_2(service: Service, arguments: list[str]) -> None:
    ended = service.command(*arguments)
    assert ended.code == 2
    assert "usage:" in ended.errors
    assert "Traceback" not in ended.errors
