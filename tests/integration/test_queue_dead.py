"""`spottmee-worker dead`, as a person or a script would use it: through its command line, on a real server."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from demo.servers import EmbeddedRedis
from runner.queue import keys
from tests.support import forked
from tests.support.forked import Fork
from tests.support.queue_tools import places, push, queue_of
from tests.support.terminal import answered

if TYPE_CHECKING:
    from redis import Redis

Dead = Callable[..., "subprocess.CompletedProcess[bytes]"]
SELFIE = base64.b64encode(random.Random(2).randbytes(3000)).decode()


def process_payload(number: int) -> bytes:
    return json.dumps({"imageUrl": f"https://h/{number}.jpg?signature=hunter2", "id": f"p{number}"}).encode()


def compare_payload(number: int) -> bytes:
    return json.dumps({"jobId": f"j{number}", "storedIds": ["p1"], "selfie": SELFIE}).encode()


@pytest.fixture
def dead(redis_url: str) -> Dead:
    """Run `spottmee-worker dead …` without a terminal, and return the result."""

    def run(*arguments: str, url: str = redis_url, **more: str) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": os.environ["PATH"], "REDIS_URL": url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1", **more}
        return forked.run(
            ["dead", *arguments],
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.fixture
def letters(redis: Redis) -> dict[str, list[str]]:
    """Three dead letters of photos and two of comparisons, created 100 s apart; their ids, oldest first."""
    found = {}
    for name, make, reasons in (
        ("process", process_payload, ["image_missing", "fetch_timeout", "image_missing"]),
        ("compare", compare_payload, ["image_undecodable", "too_many_attempts"]),
    ):
        push(redis, [make(number) for number in range(len(reasons))], name)
        queue = queue_of(redis, "job/pod/1", name=name)
        leases = queue.claim(10)
        for lease, reason in zip(leases, reasons, strict=True):
            assert queue.dead_letter(lease, reason, f"detail of {reason}")
        found[name] = [lease.id for lease in leases]
        for age, letter_id in enumerate(reversed(found[name])):
            redis.zincrby(keys.dead_index(name), -100_000.0 * age - 50_000, letter_id)
    return found


def listed(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_list_prints_a_table(dead: Dead, letters: dict[str, list[str]]) -> None:
    done = dead("list")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["ID", "QUEUE", "CODE", "ATTEMPTS", "FAILED", "BYTES", "MESSAGE"]
    assert len(lines) == 6
    assert {line.split()[0] for line in lines[1:]} == {*letters["process"], *letters["compare"]}
    assert b"2 image_missing" in done.stderr
    assert b"hunter2" not in done.stdout
    assert (
        dead("list", "--queue", "process", "--limit", "1").stdout.decode().splitlines()[1].split()[0]
        == (letters["process"][-1])
    ), "newest first"


def test_list_prints_json(dead: Dead, letters: dict[str, list[str]]) -> None:
    (first, *_) = listed(dead("list", "--json", "--queue", "compare"))
    assert first["id"] == letters["compare"][-1]
    assert {name: first[name] for name in ("queue", "error", "attempts", "runner")} == {
        "queue": "compare", "attempts": 1,
        "error": {"code": "too_many_attempts", "message": "detail of too_many_attempts"},
        "runner": "job/pod/1",
    }  # fmt: skip
    assert first["bytes"] == len(compare_payload(1))
    assert 3000 < first["payload_expires_in_seconds"] <= 3540
    assert first["dead_lettered_at"].endswith("Z")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], 5), (["--queue", "process"], 3), (["--code", "image_missing"], 2), (["--code", "embeddings_rejected"], 0),
        (["--code", "image_missing", "--code", "fetch_timeout"], 3), (["--newer-than", "100s"], 2),
        (["--older-than", "100s"], 3), (["--older-than", "2m", "--newer-than", "0.1h"], 3), (["--older-than", "7d"], 0),
        (["--limit", "0"], 5), (["--limit", "2"], 2), (["--queue", "compare", "--newer-than", "1m"], 1),
    ],
)  # fmt: skip
def test_filters_select_dead_letters(
    dead: Dead, letters: dict[str, list[str]], filters: list[str], expected: int
) -> None:
    assert len(letters) == 2
    assert len(listed(dead("list", "--json", *filters))) == expected


@pytest.mark.parametrize("action", ["list", "requeue", "purge"])
def test_an_unknown_error_code_is_a_usage_error(dead: Dead, letters: dict[str, list[str]], action: str) -> None:
    assert letters
    done = dead(action, "--code", "image_missing", "--code", "fetch_timeuot")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'fetch_timeuot' is not an error code; known are " in done.stderr
    assert b" fetch_timeout, " in done.stderr


def test_the_code_of_a_dead_letter_of_another_version_can_be_selected(dead: Dead, redis: Redis) -> None:
    push(redis, [process_payload(0)])
    queue = queue_of(redis, "job/pod/1")
    (lease,) = queue.claim(1)
    assert queue.dead_letter(lease, "of_an_older_version", "")
    assert len(listed(dead("list", "--json", "--code", "of_an_older_version"))) == 1
    none = dead("list", "--json", "--code", "of_an_older_version", "--older-than", "1d")
    assert (none.returncode, listed(none)) == (0, [])
    assert dead("requeue", "--code", "of_an_older_version").stdout == b"1 of 1 dead letters requeued\n"


def test_an_empty_list_says_so(dead: Dead) -> None:
    assert listed(dead("list", "--json")) == []
    done = dead("list")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"none" in done.stderr


def test_show_prints_everything_but_the_selfie(dead: Dead, letters: dict[str, list[str]]) -> None:
    for arguments in (["--json"], []):
        done = dead("show", letters["compare"][0], letters["process"][0], *arguments)
        assert done.returncode == 0
        for secret in (SELFIE[:40], SELFIE[-40:], "hunter2"):
            assert secret.encode() not in done.stdout + done.stderr
        assert b"4000 characters, not shown" in done.stdout
        assert b"https://h/0.jpg (more, not shown)" in done.stdout
    compare, process = listed(dead("show", letters["compare"][0], letters["process"][0], "--json"))
    assert compare["payload"]["storedIds"] == ["p1"]
    assert process["payload"]["id"] == "p0"


def test_show_payload_writes_the_payload_byte_for_byte(dead: Dead, redis: Redis, letters: dict[str, list[str]]) -> None:
    done = dead("show", "--payload", letters["process"][0])
    assert (done.returncode, done.stdout) == (0, process_payload(0))
    refused = dead("show", "--payload", letters["compare"][0])
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"may contain a selfie" in refused.stderr
    push(redis, [compare_payload(9), b"\xff\x00 not JSON"])
    queue = queue_of(redis, "a")
    misplaced, broken = queue.claim(2)
    queue.dead_letter(misplaced, "invalid_job", "")
    queue.dead_letter(broken, "invalid_job", "")
    assert dead("show", "--payload", misplaced.id).returncode == 2, "a comparison on the wrong list"
    assert dead("show", "--payload", broken.id).stdout == b"\xff\x00 not JSON"
    assert b"bytes, not a JSON object" in dead("show", broken.id).stdout


def test_show_reports_unknown_ids(dead: Dead, letters: dict[str, list[str]]) -> None:
    done = dead("show", "nothing", letters["process"][0])
    assert done.returncode == 5
    assert b"there is no dead letter nothing" in done.stderr
    assert letters["process"][0].encode() in done.stdout, "the others are shown all the same"


def test_requeue_by_id_appends_the_job(dead: Dead, redis: Redis, letters: dict[str, list[str]]) -> None:
    push(redis, [b"already here"])
    done = dead("requeue", letters["process"][1], letters["process"][0], "--json")
    assert json.loads(done.stdout) == {
        "requeued": 2, "dry_run": False, "dead_letters": dict.fromkeys(letters["process"][:2], "requeued"),
    }  # fmt: skip
    assert places(redis).waiting == [b"already here", process_payload(0), process_payload(1)]
    assert list(places(redis).dead) == [letters["process"][2]]
    assert [lease.attempts for lease in queue_of(redis, "b").claim(5)] == [1, 1, 1]


def test_requeue_by_filter_or_all_appends_every_match(dead: Dead, redis: Redis, letters: dict[str, list[str]]) -> None:
    dry = dead("requeue", "--code", "image_missing", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, b"2 of 2 dead letters would be requeued\n")
    assert len(places(redis).dead) == 3
    assert dead("requeue", "--code", "image_missing", "--limit", "1").stdout == b"1 of 1 dead letters requeued\n"
    assert places(redis).waiting == [process_payload(0)], "oldest first"
    assert dead("requeue", "--all", "--queue", "process").stdout == b"2 of 2 dead letters requeued\n"
    assert places(redis).dead == {}
    assert len(places(redis, "compare").dead) == len(letters["compare"])
    assert dead("requeue", "--all").stdout == b"2 of 2 dead letters requeued\n"
    assert dead("requeue", "--all").stdout == b"0 of 0 dead letters requeued\n"


def test_a_dead_letter_without_a_payload_cannot_be_requeued(
    dead: Dead, redis: Redis, letters: dict[str, list[str]]
) -> None:
    gone, kept = letters["compare"]
    redis.delete(keys.dead_payload("compare", gone))
    for arguments in (["--dry-run"], []):
        done = dead("requeue", gone, kept, "nothing", *arguments)
        assert done.returncode == 5
        assert f"{gone}: its payload has expired".encode() in done.stderr
        assert b"nothing: no such dead letter" in done.stderr
        assert b"1 of 3 dead letters" in done.stdout
    assert b"expired" in dead("show", gone).stdout
    assert places(redis, "compare").waiting == [compare_payload(1)]
    assert dead("show", gone, "--payload").returncode == 5


def test_purge_without_a_terminal_requires_yes(dead: Dead, redis: Redis, letters: dict[str, list[str]]) -> None:
    refused = dead("purge", "--all")
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"5 dead letters would be deleted" in refused.stderr
    assert len(places(redis).dead) == 3
    assert dead("purge", "--all", "--dry-run").stdout == b"5 of 5 dead letters would be purged\n"
    done = dead("purge", "--yes", "--json", letters["process"][0], "nothing")
    assert done.returncode == 5
    assert json.loads(done.stdout)["dead_letters"] == {letters["process"][0]: "purged", "nothing": "not_found"}
    assert dead("purge", "--yes", "--all").stdout == b"4 of 4 dead letters purged\n"
    assert not list(redis.scan_iter("*:dead*")), "nothing is left of them"


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("YES\n", 0), ("n\n", 5), ("\n", 5)])
def test_purge_asks_on_a_terminal(
    redis: Redis, redis_url: str, letters: dict[str, list[str]], answer: str, left: int
) -> None:
    environment = {"PATH": os.environ["PATH"], "REDIS_URL": redis_url}
    code, errors = answered(["dead", "purge", "--all"], environment, answer)
    assert code == 0
    assert b"Delete 5 dead letters and their payloads permanently? [y/N]" in errors
    assert sum(len(places(redis, name).dead) for name in letters) == left


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nonsense"], ["list", "--queue", "other"], ["list", "--older-than", "soon"],
        ["list", "--older-than", "-1s"], ["list", "--newer-than", "5"], ["list", "--limit", "-1"],
        ["list", "--limit", "x"], ["list", "--limit", "99999999999999999999"], ["show"], ["requeue"], ["purge"],
        ["purge", "--queue", "process"], ["requeue", "--all", "some-id"], ["requeue", "--limit", "5"],
        ["requeue", "--all", "--code", "x"], ["requeue", "some-id", "--older-than", "1s"],
        ["show", "a", "b", "--payload"], ["show", "a", "--payload", "--json"],
    ],
)  # fmt: skip
def test_bad_input_is_refused_without_a_traceback(
    dead: Dead, letters: dict[str, list[str]], redis: Redis, arguments: list[str]
) -> None:
    done = dead(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("spottmee-worker"), last
    assert sum(len(places(redis, name).dead) for name in letters) == 5


@pytest.mark.parametrize("action", ["requeue", "purge"])
def test_arguments_are_checked_before_redis_is_queried(dead: Dead, action: str) -> None:
    for arguments in ([], ["--all", "some-id"], ["--all", "--code", "x"], ["some-id", "--older-than", "1s"]):
        assert dead(action, *arguments, url="redis://127.0.0.1:1").returncode == 2


def test_an_unusable_server_is_reported(dead: Dead) -> None:
    for url, code in (
        ("redis://u:hunter2@127.0.0.1:1", 75),
        ("redis://u:hunter2@127.0.0.1:port", 2),
        ("http://u:hunter2@h", 2),
        ("", 2),
    ):
        done = dead("list", url=url)
        assert (done.returncode, done.stdout) == (code, b""), url
        assert b"Traceback" not in done.stderr
        assert b"hunter2" not in done.stderr
        assert b"REDIS_URL" in done.stderr
    with EmbeddedRedis(password="hunter2") as server:
        done = dead("list", url=server.url.replace("hunter2", "hunter3"))
        assert done.returncode == 2
        assert b"hunter" not in done.stderr


def test_a_closed_pipe_is_not_an_error(redis: Redis, redis_url: str) -> None:
    push(redis, [b"%d" % number for number in range(3000)])
    queue = queue_of(redis, "a")
    for lease in queue.claim(3000):
        queue.dead_letter(lease, "invalid_job", "x" * 200)
    with Fork(
        ["runner.cli", "dead", "list", "--limit", "0"],
        env={"PATH": os.environ["PATH"], "REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_dead_letters_are_requeued_safely_while_runners_work(dead: Dead, redis: Redis) -> None:
    """Dead letters are requeued while two runners dead-letter and finish jobs: every job exists exactly once."""
    payloads = [b"job-%d" % number for number in range(300)]
    push(redis, payloads)
    finished: list[bytes] = []
    stop = threading.Event()

    def work(owner: str, seed: int) -> None:
        queue, chance = queue_of(redis, owner), random.Random(seed)
        while not stop.is_set():
            for lease in queue.claim(4):
                if chance.random() < 0.5:
                    assert queue.dead_letter(lease, "image_missing", "")
                else:
                    assert queue.acknowledge(lease)
                    finished.append(lease.payload)

    threads = [threading.Thread(target=work, args=(f"w{number}", number)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            done = dead("requeue", "--code", "image_missing")
            assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sorted([*finished, *places(redis).all]) == sorted(payloads)
