"""Unusual environments of the process: standard output, signals, optimised bytecode, old Python, misspelt variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from runner.cli import COMMANDS
from runner.errors import SpottmeeError
from tests.support.run_tools import Service

ROOT = ["-m", "runner"]
FURTHER = {"dead": ["list"], "models": ["list"]}


def _shell(service: Service, command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**service.environment, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1", **more}
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m runner {command}"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("where", [">&-", "> /dev/full", ">&- 2>&-", "> /dev/full 2> /dev/full"])
@pytest.mark.parametrize(
    ("command", "code"),
    [("run", 0), ("sweep --json", 0), ("status --json", 0), ("migrate --check", 0), ("dead show none", 5)],
)
def test_a_closed_or_full_standard_output_changes_no_exit_code(
    service: Service, command: str, code: int, where: str
) -> None:
    ended = _shell(service, f"{command} {where}")
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    if where == "> /dev/full" and code == 0:
        assert "cannot write to standard output: No space left on device" in ended.stderr


def test_messages_survive_bytecode_without_docstrings(service: Service) -> None:
    def errors(*flags: str) -> str:
        return subprocess.run(
            [sys.executable, *flags, *ROOT, "sweep"],
            env={**service.environment, "DATABASE_URL": ""}, capture_output=True, text=True, timeout=60, check=False,
        ).stderr  # fmt: skip

    assert "The settings are not valid" in errors()
    assert errors("-OO") == errors()


def test_every_error_has_its_docstring_as_message() -> None:
    from runner.errors import _docstrings

    def kinds(one: type[SpottmeeError]) -> list[type[SpottmeeError]]:
        return [one, *(further for kind in one.__subclasses__() for further in kinds(kind))]

    for kind in kinds(SpottmeeError):
        if kind.__module__ == "runner.errors":
            assert _docstrings()[kind.__name__]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_early_interrupt_ends_every_command_without_a_traceback(service: Service, command: str) -> None:
    for milliseconds in (0, 30, 150):
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", *ROOT, command, *FURTHER.get(command, ())],
            env={**service.environment, "DATABASE_URL": "postgresql://203.0.113.1/x"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        while "argparse" not in (line := process.stderr.readline()):  # before it, Python itself starts
            assert line
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        shown = [line for line in errors.splitlines() if not line.startswith("import time:")]
        assert "Traceback" not in errors, (command, milliseconds, shown)
        # Once a finished Python gives up its signal handlers, an interrupt kills it: a shell shows that as 130 as well.
        assert process.returncode in (0, 2, 130, -signal.SIGINT), (command, milliseconds, shown)


def test_an_old_python_is_named() -> None:
    old = "import sys, runpy; sys.version_info = (3, 10, 4); sys.version = '3.10.4 (main)'; runpy.run_module('runner')"
    ended = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (
        2, "spottmee-worker needs Python 3.11 or newer, and this is 3.10.4\n",
    )  # fmt: skip


@pytest.mark.parametrize("value", ["redis://user:QUJD@redis/0", "QUJD//" * 50])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("RUNNER_PROVIDERS", 2), ("RUNNER_MODEL_DIR", 4), ("RUNNER_ALLOWED_PRIVATE_HOSTS", 2), ("RUNNER_JOB", 2),
        ("RUNNER_TERMINATION_LOG", 0), ("RUNNER_MAX_JOBS", 2),
    ],
)  # fmt: skip
def test_a_run_repeats_no_value_of_a_variable_that_may_be_secret(
    service: Service, name: str, code: int, value: str
) -> None:
    ended = service.command("run", **{name: value})
    assert (ended.code, "QUJD" in ended.output + ended.errors) == (code, False)
    assert name in ended.output + ended.errors


def test_a_misspelt_variable_is_warned_about_with_the_nearest_name(service: Service) -> None:
    wrong = {"RUNNER_MAX_JOB": "3", "RUNNER_QUEUE": "process", "RUNNER_TEMP": "/tmp", "RUNNER_XYZ": "1"}
    ended = service.command("run", **wrong)
    assert ended.code == 0
    assert [line["detail"] for line in ended.lines(event="unknown variable", level="warning")] == [
        "RUNNER_MAX_JOB is not a setting and has no effect; did you mean RUNNER_MAX_JOBS?",
        "RUNNER_QUEUE is not a setting and has no effect; did you mean RUNNER_QUEUES?",
        "RUNNER_XYZ is not a setting and has no effect",
    ]
    ended = service.command("sweep", **wrong)
    assert (ended.code, "did you mean RUNNER_MAX_JOBS?" in ended.errors) == (0, True)
    assert "RUNNER_MAX_JOBS" not in service.command("sweep", **dict.fromkeys(os.environ, "")).errors
