"""Hostile ids, owners and names from outside, through every command that shows them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from runner import cli, logs
from runner.cluster.objects import job_state, pod_state, scaled_job_state
from runner.cluster.status import ClusterState, Status, lines
from runner.queue import keys
from tests.support.queue_tools import push, queue_of

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.run_tools import Service

# Sets a title, clears the screen, forges a line, turns text around, hides it, ends a line for Unicode.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\r\nFORGED outcome=succeeded\x85FORGED\u2028FORGED\u202egpj.exe\u2066\u200f\x9b31m\x7f"
)


def assert_safe(text: str, *, shows: bool = True) -> None:
    """Nothing in `text` controls a terminal, and no line of it begins where an id says so."""
    bad = {ascii(one) for one in text if one != "\n" and unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert bad == set()
    assert not any(line.lstrip().startswith("FORGED") for line in text.splitlines())
    assert not shows or "FORGED" in text, "the id was not shown: the test checks nothing"


@pytest.fixture
def hostile(service: Service) -> Service:
    """Jobs whose every field is hostile, in both lists."""
    process: list[dict[str, object]] = [
        {"id": HOSTILE, "imageUrl": f"https://{HOSTILE}/x.jpg"},
        {"id": HOSTILE.replace("=", " is ") + "2", "imageUrl": f"http://127.0.0.1:1/{HOSTILE}.jpg"},
        {"id": HOSTILE + "3", "imageUrl": 5, HOSTILE: HOSTILE},
        {"id": "\ud800FORGED", "imageUrl": "http://127.0.0.1:1/x"},
        {"id": "u", "imageUrl": "FORGED\ud83d://\udc80\x1b[31m"},
    ]
    compare: list[dict[str, object]] = [
        {"jobId": HOSTILE, "storedIds": [HOSTILE], "selfie": "AAAA"},
        {"jobId": HOSTILE + "2", "storedIds": 5, "selfie": "AAAA", HOSTILE: {HOSTILE: [HOSTILE]}},
    ]
    for photo in process[:2]:
        service.connection.execute(
            'INSERT INTO "Photo" (id, album_id, original_name, normalized_name, size, type) VALUES (%s,%s,%s,%s,1,%s)',
            (photo["id"], "a", "n", "n", "t"),
        )
    push(service.redis, [json.dumps(job).encode() for job in process])
    push(service.redis, [json.dumps(job).encode() for job in compare], name="compare")
    return service


@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_text_of_a_run_and_its_dead_letters_is_escaped(hostile: Service, form: str, tmp_path: Path) -> None:
    log = tmp_path / "termination"
    given = {"RUNNER_LOG_FORMAT": form, "RUNNER_LOG_LEVEL": "debug", "RUNNER_MAX_ATTEMPTS": "1",
             "RUNNER_RESULT_WATCH_SECONDS": "0", "RUNNER_TERMINATION_LOG": str(log),
             "POD_NAME": HOSTILE}  # fmt: skip
    ended = hostile.run(**given)
    assert ended.summary["claimed"] == 7
    assert_safe(ended.errors)
    assert_safe(ended.output + log.read_text(), shows=False)
    if form == "json":
        assert {HOSTILE, HOSTILE.replace("=", " is ") + "2"} <= {line.get("photo") for line in ended.log}
    else:
        assert len(ended.errors.splitlines()) < 20
    listed = hostile.command("dead", "list")
    shown = hostile.command("dead", "show", *(letter["id"] for letter in _letters(hostile)))
    assert_safe(listed.output + listed.errors, shows=False)
    assert_safe(shown.output + shown.errors)
    as_json = hostile.command("dead", "show", "--json", *(letter["id"] for letter in _letters(hostile)))
    assert_safe(as_json.output)
    payloads = [letter["payload"] for letter in json.loads(as_json.output) if letter["payload"]]
    assert any(HOSTILE in str(payload.get("id") or payload.get("jobId")) for payload in payloads)


def _letters(service: Service) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = json.loads(service.command("dead", "list", "--json", "--limit", "0").output)
    assert len(letters) > 3
    return letters


def test_hostile_owners_and_dead_letters_are_escaped_in_lists(hostile: Service) -> None:
    queue = queue_of(hostile.redis, HOSTILE + "/x", max_attempts=3)
    lease, other, *_ = queue.claim(3)
    queue.dead_letter(other, HOSTILE, HOSTILE)
    hostile.redis.hset(keys.claimed("process"), f"{lease.id}:reason", HOSTILE)
    for arguments in (["status"], ["status", "--json"], ["dead", "list"], ["dead", "list", "--json"],
                      ["dead", "show", other.id], ["dead", "show", HOSTILE], ["dead", "purge", "--yes", HOSTILE],
                      ["dead", "requeue", HOSTILE], ["debug", "--local", "--photo", HOSTILE],
                      ["debug", "--local", "--dead", HOSTILE], ["dead", "list", "--older-than", HOSTILE],
                      ["debug", "--job", "{}", HOSTILE], ["migrate", HOSTILE]):  # fmt: skip
        ended = hostile.command(*arguments)
        assert_safe(ended.output + ended.errors)


def test_hostile_text_from_kubernetes_is_escaped(tmp_path: Path) -> None:
    """The objects of a cluster, as plain lines and as `status --watch` draws them."""
    meta = {"name": HOSTILE, "labels": {}, "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    condition = {"type": "Ready", "status": "False", "reason": HOSTILE, "message": HOSTILE}
    state = ClusterState(
        HOSTILE,
        HOSTILE,
        scaled_jobs=[scaled_job_state({"metadata": meta, "status": {"conditions": [condition]}})],
        jobs=[job_state({"metadata": meta, "status": {"conditions": [{**condition, "type": "Failed"}]}})],
        pods=[pod_state({"metadata": meta, "spec": {"nodeName": HOSTILE}, "status": {"reason": HOSTILE}})],
        notes=[HOSTILE],
    )
    from rich.console import Console

    from runner.cli.live_status import draw
    from runner.output import printable

    assert_safe("\n".join(map(printable, lines(Status(cluster=state)))))
    with (tmp_path / "screen").open("w+") as file:
        Console(file=file, width=500).print(draw(Status(cluster=state)))
        file.seek(0)
        assert_safe(file.read())


def test_a_message_about_arguments_never_repeats_a_payload(service: Service) -> None:
    for words in (['{"jobId":', '"j",', '"selfie":', f'"{"QUJD" * 500}"}}'], ["{", f"{'QUJD' * 500}"]):
        ended = service.command("debug", "--job", *words)
        assert ended.code == 2
        assert "QUJD" not in ended.errors
        assert "one quoted argument" in ended.errors


def test_log_lines_of_libraries_are_not_printed() -> None:
    program = (
        "import logging, sys, runner.cli\n"
        "runner.cli.main(['models', 'list'])\n"
        "logging.getLogger('urllib3.connectionpool').warning('S3cret %s', sys.argv)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_defect_is_one_line_without_its_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from runner import settings

    def fail(*_: object, **__: object) -> None:
        raise ValueError("S3cret" + HOSTILE)

    monkeypatch.setattr(settings, "load", fail)
    assert cli.main(["dead", "list"]) == 1
    shown = capfd.readouterr().err
    assert "S3cret" not in shown
    assert len(shown.splitlines()) == 1
    assert "ValueError" in shown


@pytest.fixture
def dead_letter(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a dead letter in the Redis that commands of this process use."""
    push(redis, [b'{"id": "p", "imageUrl": "https://h/a.jpg"}'])
    queue = queue_of(redis, "job/pod/1")
    (lease,) = queue.claim(1)
    assert queue.dead_letter(lease, "image_missing", "")
    monkeypatch.setenv("REDIS_URL", redis_url)
    for name, value in (("handlers", []), ("propagate", True), ("level", logging.NOTSET)):  # `metrics` changes them
        monkeypatch.setattr(logs.logger(), name, value)
    return lease.id


def _full() -> TextIO:
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


def _without_reader() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize(
    ("output", "reported"),
    [
        (_full, ["spottmee-worker: cannot write to standard output: No space left on device"]),
        (_without_reader, []),
        (lambda: nullcontext(None), []),
    ],
    ids=["full", "without a reader", "closed from the start"],
)
def test_a_standard_output_that_takes_nothing_does_not_change_the_exit_code(
    dead_letter: str,
    capsys: pytest.CaptureFixture[str],
    output: Callable[[], AbstractContextManager[TextIO | None]],
    reported: list[str],
) -> None:
    for arguments in (["metrics", "--once"], ["completion", "bash"], ["models", "list"], ["dead", "list"],
                      ["dead", "list", "--json"], ["dead", "show", dead_letter, "--json"],
                      ["dead", "show", dead_letter, "--payload"]):  # fmt: skip
        with output() as stream, pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            code = cli.main(arguments)
        shown = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("dead letters:")]
        # A command that prints line by line reports it once.
        assert (code, shown) == (0, reported), arguments


def test_streams_that_are_closed_from_the_start_are_no_terminals(
    dead_letter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for arguments, advice in (
        (["dead", "purge", dead_letter], "pass --yes"),
        (["debug", "--local", "--job", "-"], "there is no job on standard input"),
        (["exec", "--dry-run", "--template", "-", "--", "doctor"], "contains no CronJob"),
    ):
        assert cli.main(arguments) == 2
        assert advice in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["metrics", "--once"]) == 0
    assert "spottmee_redis_up 1" in capsys.readouterr().out
    assert cli.main(["dead", "show", "none"]) == 5
    assert capsys.readouterr().out == "", "errors do not go to standard output instead"
