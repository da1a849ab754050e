"""What a run reports to operators of Kubernetes: its termination message, its exit code, its log lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from demo.album import jpeg, landscape
from tests.support.odd_server import OddServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.run_tools import Service

# What the chart sets from the downward API.
PLACE = {"POD_NAME": "party-process-abcde-x1", "JOB_NAME": "party-process-abcde", "NODE_NAME": "node-a"}
LONGEST_MESSAGE = (
    4096  # of a container: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
)


def test_the_termination_message_is_the_summary(service: Service, tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    with OddServer({"lake.jpg": jpeg(landscape(320, 200))}) as server:
        service.api.upload({"lake": server.url("lake.jpg")})
        ended = service.run(**PLACE, RUNNER_TERMINATION_LOG=str(message), RUNNER_OWNER=PLACE["JOB_NAME"])
    assert json.loads(message.read_text()) == ended.summary
    assert message.stat().st_size < LONGEST_MESSAGE
    (line,) = ended.lines(outcome="succeeded")
    assert (line["pod"], line["job"], line["node"]) == tuple(PLACE.values())
    assert line["queue"] == "process"
    assert line["lease"]
    assert line["photo"]


def test_a_run_that_cannot_start_leaves_its_reason_too(service: Service, tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    ended = service.command("run", RUNNER_MODEL_DIR=str(tmp_path), RUNNER_TERMINATION_LOG=str(message), **PLACE)
    assert ended.code == 4
    assert json.loads(message.read_text())["exit_reason"] == "model"
    assert ended.lines(event="run ended", exit_code=4, pod=PLACE["POD_NAME"])


def test_a_termination_message_that_cannot_be_written_does_not_fail_the_run(service: Service, tmp_path: Path) -> None:
    ended = service.run(RUNNER_TERMINATION_LOG=str(tmp_path / "missing" / "log"), RUNNER_LOG_FORMAT="text")
    assert ended.summary["exit_reason"] == "empty"
    assert "cannot write" in ended.errors
