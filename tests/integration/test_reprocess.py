"""`spottmee-worker reprocess`, on real servers: which photos are selected, and that none gets a second job."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from runner.faces.pack import read_manifest
from runner.queue import keys
from runner.queue.databases import KnownDatabases
from runner.settings import load
from runner.store.embeddings import EmbeddingStore
from runner.store.schema import migrate
from runner.store.unprocessed import count_missing
from tests.support.forked import Fork
from tests.support.odd_server import OddServer
from tests.support.queue_tools import push, queue_of
from tests.support.run_tools import wait_for
from tests.support.store_tools import faces as made_up_faces
from tests.support.store_tools import opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from redis import Redis

    from demo.album import Album
    from demo.images import ImageServer
    from tests.support.run_tools import Ended, Service

URL = "https://h/B/albums/{album_id}/{normalized_name}"
CLEO = "Cleo & friends.jpg"
MODEL = read_manifest(load({}, required=()).model_dir).model
PROCESS = keys.list_key("process")


def add(service: Service, *ids: str, status: str = "UPLOADED", age: str = "1h", album: str = "a1") -> None:
    """Add rows that were uploaded some time ago, each with its own name."""
    with service.connection.cursor() as cursor:
        cursor.executemany(
            'INSERT INTO "Photo" (id, album_id, normalized_name, status, created_at) VALUES (%s, %s, %s,'
            " %s::\"PhotoStatus\", (now() AT TIME ZONE 'UTC') - %s::interval)",
            [(photo_id, album, f"{photo_id}.jpg", status, age) for photo_id in ids],
        )


def payload(photo_id: str) -> bytes:
    return json.dumps({"imageUrl": f"https://h/{photo_id}?signature=hunter2", "id": photo_id}).encode()


def add_dead_letter(redis: Redis, photo_id: str, reason: str) -> None:
    queue = queue_of(redis, "other/pod/1")
    push(redis, [payload(photo_id)])
    (lease,) = queue.claim(1)
    assert queue.dead_letter(lease, reason, "detail")


def embed(service: Service, photo_id: str, model: str) -> None:
    with opened(service.environment["DATABASE_URL"]) as connection:
        EmbeddingStore(connection, model).replace({photo_id: made_up_faces(1)})


def waiting(service: Service) -> list[str]:
    """Return the ids of the jobs in the list."""
    redis: Any = service.redis
    return [json.loads(job)["id"] for job in redis.lrange(PROCESS, 0, -1)]


def reprocess(service: Service, *arguments: str, **more: str) -> dict[str, Any]:
    ended = service.command("reprocess", "--json", "--url", URL, *arguments, **more)
    assert ended.code == 0, ended.errors
    assert "hunter2" not in ended.output + ended.errors
    document: dict[str, Any] = json.loads(ended.output)
    return document


def drain(service: Service, until: Callable[[], object]) -> list[str]:
    """Take jobs off the list as runs do, one after the other, until a condition holds; return their ids."""
    redis: Any = service.redis
    taken = []
    end = time.monotonic() + 60
    while not until() or redis.llen(PROCESS):
        assert time.monotonic() < end, "it has not come about in time"
        if (job := redis.lpop(PROCESS)) is not None:
            taken.append(json.loads(job)["id"])
        time.sleep(0.005)
    return taken


# Selection


def test_a_stuck_photo_is_pushed_as_the_api_pushes_it(service: Service) -> None:
    add(service, "p1", status="PROCESSING")
    service.connection.execute("UPDATE \"Photo\" SET album_id = 'a b', normalized_name = E'é #1?%20\\t.JPG'")
    document = reprocess(service)
    assert (document["pushed"], document["requeued"], document["chosen"]["orphaned"]) == (1, 0, 1)
    expected = '{"imageUrl":"https://h/B/albums/a b/é #1?%20\\t.JPG","id":"p1"}'.encode()
    assert service.redis.lrange(PROCESS, 0, -1) == [expected]


def test_photos_with_a_job_and_young_photos_are_skipped(service: Service) -> None:
    add(service, "waiting", "leased", "put off", "released", "dead", "orphan", "orphan of a deleted row")
    add(service, "young", age="10 min")
    add(service, "of unknown reason", status="FAILED")
    add_dead_letter(service.redis, "dead", "image_missing")
    queue = queue_of(service.redis, "other/pod/1")
    push(service.redis, map(payload, ["leased", "put off", "released"]))
    _, put_off, released = queue.claim(3)
    queue.retry(put_off, 3600, "fetch_failed")
    queue.release(released)
    push(service.redis, [payload("waiting")])
    service.api.delete("orphan of a deleted row")
    document = reprocess(service)
    assert document["skipped"] == {
        "has_job": 4, "other_code": 1, "unknown_code": 1, "no_url": 0, "moved": 0,
    }  # fmt: skip
    assert waiting(service) == ["waiting", "orphan"]
    assert reprocess(service)["pushed"] == 0, "it has a job now"
    assert reprocess(service, "--older-than", "5m")["pushed"] == 1
    assert waiting(service) == ["waiting", "orphan", "young"]


@pytest.mark.parametrize(
    ("arguments", "pushed", "requeued"),
    [
        ([], {"uploaded", "processing", "old model"}, {"slow"}),
        (["--status", "UPLOADED"], {"uploaded"}, set()),
        (["--status", "PROCESSING", "--status", "UPLOADED"], {"uploaded", "processing"}, set()),
        (["--status", "FAILED"], set(), {"slow"}),
        (["--status", "NO_FACES_FOUND"], {"nobody"}, set()),
        (["--code", "image_missing"], set(), {"missing"}),
        (["--code", "image_missing", "--code", "fetch_timeout"], set(), {"missing", "slow"}),
        (["--code", "unknown"], {"failed"}, set()),
        (["--model", MODEL], {"old model"}, set()),
        (["--model", "older"], {"current"}, set()),
        (["--album", "a2"], {"processing"}, set()),
        (["--album", "nothing"], set(), set()),
        (["--older-than", "2h"], {"processing"}, set()),
        (["--limit", "1", "--status", "UPLOADED", "--status", "PROCESSING"], {"processing"}, set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_photos_are_selected_by_status_code_and_model(
    service: Service, arguments: list[str], pushed: set[str], requeued: set[str]
) -> None:
    add(service, "uploaded")
    add(service, "processing", status="PROCESSING", age="3h", album="a2")
    add(service, "missing", "slow", "failed", status="FAILED")
    add(service, "old model", "current", status="READY")
    add(service, "nobody", status="NO_FACES_FOUND")
    embed(service, "old model", "older")
    embed(service, "current", MODEL)
    add_dead_letter(service.redis, "missing", "image_missing")
    add_dead_letter(service.redis, "slow", "fetch_timeout")
    dry = reprocess(service, "--dry-run", *arguments)
    assert (dry["pushed"], dry["requeued"], waiting(service)) == (0, 0, [])
    done = reprocess(service, *arguments)
    assert dry["chosen"] == done["chosen"]
    assert (done["pushed"], done["requeued"]) == (len(pushed), len(requeued))
    assert Counter(waiting(service)) == Counter(pushed | requeued)
    kept = {"missing", "slow"} - requeued
    assert service.redis.zcard(keys.dead_index("process")) == len(kept)
    for job in service.redis.lrange(PROCESS, 0, -1):
        assert (json.loads(job)["id"] in requeued) == (b"signature" in job), "a dead letter keeps its payload"


def test_reprocessed_photos_are_processed_and_then_skipped(service: Service, images: ImageServer) -> None:
    photos = service.api.upload({name: images.url(name) for name in (CLEO, "office.png")})
    service.run()
    service.connection.execute("UPDATE faces SET model = 'older'")
    photos |= service.api.upload({"lost": images.url(CLEO)})
    service.redis.delete(PROCESS)
    service.connection.execute("UPDATE \"Photo\" SET normalized_name = %s WHERE original_name = 'lost'", (CLEO,))
    arguments = ("--older-than", "0s", "--url", images.url("{normalized_name}"))
    assert reprocess(service, *arguments)["chosen"] == {"orphaned": 1, "failed": 0, "no_embeddings": 2}
    service.run()
    assert set(service.api.statuses().values()) <= {"READY", "NO_FACES_FOUND"}
    assert (service.faces(photos["lost"]), service.faces(photos[CLEO])) == (2, 4), "of both models"
    assert reprocess(service, *arguments)["chosen"] == {"orphaned": 0, "failed": 0, "no_embeddings": 0}


def test_a_photo_that_failed_temporarily_is_processed_after_all(service: Service, album: Album) -> None:
    files: dict[str, bytes] = {}
    data = next(photo.data for photo in album.photos if photo.name == CLEO)
    with OddServer(files) as server:
        photos = service.api.upload({"x": server.url("status/503")})
        service.run()
        assert service.status(photos["x"]) == "FAILED"
        files["x"] = data
        document = reprocess(service, "--older-than", "0s")
        assert (document["requeued"], document["chosen"]["failed"]) == (1, 1)
        service.redis.delete(PROCESS)
        # Its dead letter is gone with the job, and with it the reason why it failed.
        assert reprocess(service, "--older-than", "0s")["skipped"]["unknown_code"] == 1
        url = server.url("{normalized_name}")
        assert reprocess(service, "--older-than", "0s", "--code", "unknown", "--url", url)["pushed"] == 1
        service.run()
    assert (service.status(photos["x"]), service.faces(photos["x"])) == ("READY", 2)


def test_embeddings_may_be_in_a_database_of_their_own(service: Service, empty_database_url: str) -> None:
    add(service, "p1", "p2", status="READY")
    place = f"{empty_database_url}?schema=app"
    with opened(place) as session:
        migrate(session)
        session.locate()
        EmbeddingStore(session, MODEL).replace({"p1": made_up_faces(1)})
    assert reprocess(service, EMBEDDINGS_DATABASE_URL=place)["chosen"]["no_embeddings"] == 1
    assert waiting(service) == ["p2"]


# No photo gets a second job


def test_no_more_jobs_wait_than_allowed(service: Service) -> None:
    ids = [f"p{number:03}" for number in range(40)]
    add(service, *ids)
    push(service.redis, [payload("other")] * 3)
    process = service.start("reprocess", "--url", URL, "--max-waiting", "5", "--json")
    longest = 0

    def ended() -> bool:
        nonlocal longest
        longest = max(longest, service.redis.llen(PROCESS))
        return process.poll() is not None

    taken = drain(service, ended)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(output)["pushed"] == 40
    assert (longest, taken) == (5, ["other"] * 3 + ids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_it_can_be_stopped_at_any_time_and_started_again(service: Service, number: signal.Signals) -> None:
    ids = [f"p{number:03}" for number in range(30)]
    add(service, *ids[:20])
    add(service, *ids[20:], status="FAILED")
    for photo_id in ids[20:]:
        add_dead_letter(service.redis, photo_id, "fetch_failed")
    first = service.start("reprocess", "--url", URL, "--max-waiting", "25", RUNNER_LEASE_SECONDS="2")
    wait_for(lambda: service.redis.llen(PROCESS) == 25)
    first.send_signal(number)
    output, errors = first.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert (first.returncode, "start it again" in output) == (130, True), errors
        assert not service.redis.exists(keys.reprocess("process"))
    document = reprocess(service, RUNNER_LEASE_SECONDS="2")
    assert (document["pushed"] + document["requeued"], document["skipped"]["has_job"]) == (5, 25)
    assert sorted(waiting(service)) == ids


def test_a_second_reprocess_at_the_same_time_is_refused(service: Service) -> None:
    add(service, *(f"p{number}" for number in range(20)))
    with service.start("reprocess", "--url", URL, "--max-waiting", "5", RUNNER_LEASE_SECONDS="3") as first:
        wait_for(lambda: service.redis.llen(PROCESS) == 5)
        second = service.command("reprocess", "--url", URL, RUNNER_LEASE_SECONDS="3")
        assert second.code == 5
        assert "another reprocess is running" in second.errors
        assert service.command("reprocess", "--url", URL, "--dry-run").code == 0, "a look is allowed"
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    assert len(waiting(service)) == 5


def test_a_suspended_reprocess_pushes_nothing_after_another_took_the_lock(service: Service) -> None:
    ids = [f"p{number:02}" for number in range(20)]
    add(service, *ids)
    with service.start("reprocess", "--url", URL, "--max-waiting", "5", RUNNER_LEASE_SECONDS="1") as first:
        wait_for(lambda: service.redis.llen(PROCESS) == 5)
        first.send_signal(signal.SIGSTOP)
        assert reprocess(service)["pushed"] == 15
        service.redis.ltrim(PROCESS, 0, 0)
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 5
    assert "start reprocess again" in errors
    assert len(waiting(service)) == 1


def test_an_operator_may_requeue_dead_letters_at_the_same_time(service: Service) -> None:
    ids = [f"p{number:03}" for number in range(60)]
    add(service, *ids, status="FAILED")
    for photo_id in ids:
        add_dead_letter(service.redis, photo_id, "fetch_failed")
    with (
        service.start("reprocess", "--url", URL, "--code", "fetch_failed", "--code", "unknown") as one,
        service.start("dead", "requeue", "--all") as other,
    ):
        for process in (one, other):
            process.communicate(timeout=60)
    assert one.returncode == 0
    assert sorted(waiting(service)) == ids


def test_uploads_and_runs_at_the_same_time_get_no_photo_a_second_job(service: Service, album: Album) -> None:
    data = next(photo.data for photo in album.photos if photo.name == "office.png")
    names = [f"{number}.png" for number in range(24)]
    with OddServer(dict.fromkeys(names, data)) as server:
        photos = service.api.upload({name: server.url(name) for name in names[:12]})
        service.connection.execute("UPDATE \"Photo\" SET created_at = created_at - interval '1 day'")
        service.redis.ltrim(PROCESS, 0, 5)  # six of them are stuck
        with (
            service.start("run", RUNNER_CLAIM_SIZE="1", RUNNER_IDLE_SECONDS="8") as run,
            service.start("reprocess", "--url", server.url("{normalized_name}"), "--max-waiting", "2") as one,
        ):
            for name in names[12:]:
                photos |= service.api.upload({name: server.url(name)})
                time.sleep(0.1)
            for process in (one, run):
                _, errors = process.communicate(timeout=90)
                assert process.returncode == 0, errors
        assert Counter(server.requests) == Counter(f"/{name}" for name in names)
    assert {service.status(photo_id) for photo_id in photos.values()} <= {"READY", "NO_FACES_FOUND"}
    assert service.leftovers() == {}


# Output


def test_a_dry_run_prints_counts_and_an_estimate(service: Service) -> None:
    add(service, *(f"p{number}" for number in range(1300)))
    add(service, "failed", status="FAILED")
    ended = service.command("reprocess", "--dry-run")
    assert ended.code == 0, ended.errors
    counts = "1300 UPLOADED or PROCESSING without a job, 0 FAILED, 0 without embeddings of the model"
    assert ended.output.splitlines() == [
        f"1300 photos to reprocess: {counts}",
        "  1 skipped: FAILED, and no dead letter says why (--code unknown)",
        "nothing was pushed; 1300 photos take one run with two cores about 1m05s, and more runs less",
    ]


def test_photos_without_a_url_are_counted_and_the_others_pushed(service: Service) -> None:
    add(service, "p1", "p2", "x" * 257)
    service.connection.execute("UPDATE \"Photo\" SET normalized_name = NULL WHERE id = 'p1'")
    ended = service.command("reprocess", "--url", URL)
    assert ended.code == 5
    assert "2 photos have no valid URL" in ended.errors
    assert waiting(service) == ["p2"]


def test_a_bar_is_drawn_on_a_terminal(service: Service) -> None:
    add(service, *(f"p{number}" for number in range(7)))
    master, terminal = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                shown.extend(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with Fork(
        ["runner.cli", "reprocess", "--url", URL],
        env={**service.environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        output, _ = process.communicate(timeout=60)
    os.close(terminal)
    reader.join()
    os.close(master)
    assert process.returncode == 0
    assert b"7 pushed" in output
    assert re.search(rb"photos pushed.*7/7.*7 waiting", bytes(shown), re.DOTALL)


def test_the_url_may_be_a_setting(service: Service) -> None:
    add(service, "p1")
    ended = service.command("reprocess", RUNNER_PHOTO_URL="https://h/{id}")
    assert ended.code == 0, ended.errors
    assert service.redis.lrange(PROCESS, 0, -1) == [b'{"imageUrl":"https://h/p1","id":"p1"}']


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_status_and_doctor_count_photos_without_embeddings_of_the_model(
    service: Service, command: str, tmp_path: Path
) -> None:
    add(service, "current", "older", "none", status="READY")
    add(service, "uploaded")
    add(service, "nobody", status="NO_FACES_FOUND")
    embed(service, "current", MODEL)
    embed(service, "older", "older")
    away = {"KUBECONFIG": str(tmp_path / "none")}
    expected = f"2 photos are READY without embeddings of {MODEL}: spottmee-worker reprocess"
    assert expected in service.command(command, **away).output
    service.connection.execute("DELETE FROM \"Photo\" WHERE id IN ('older', 'none')")
    assert "spottmee-worker reprocess" not in service.command(command, **away).output


def test_status_reports_an_unreachable_postgresql_and_shows_the_rest(service: Service, tmp_path: Path) -> None:
    away = {"KUBECONFIG": str(tmp_path / "none"), "RUNNER_CONNECT_TIMEOUT_SECONDS": "0.2"}
    ended = service.command("status", DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x", **away)
    assert (ended.code, "WAITING" in ended.output, "photos: PostgreSQL" in ended.output) == (0, True, True)
    assert "hunter2" not in ended.output + ended.errors
    assert json.loads(service.command("status", "--json", RUNNER_MODEL_DIR="/nonexistent").output)["photos"] is None


def test_a_count_ends_when_its_time_is_up(service: Service) -> None:
    add(service, *(f"p{number}" for number in range(3)), status="READY")
    with opened(service.environment["DATABASE_URL"]) as session:
        clock = iter((0.0, 2.0))
        found = count_missing(session, session, MODEL, seconds=1, clock=lambda: next(clock))
        assert (found.count, found.complete) == (3, False)
        found = count_missing(session, session, MODEL, seconds=60)
        assert (found.count, found.complete) == (3, True)


# Refusals


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", ""], ["--url", "https://u:hunter2@h/{id}"], ["--url", "https://h/{nothing}"], ["--url", "https://h/"],
        ["--status", "GONE"], ["--older-than", "soon"], ["--older-than", "-1s"], ["--code", "hunger"], ["--code", ""],
        ["--model", ""], ["--model", "buffalo_typo"], ["--max-waiting", "0"], ["--max-waiting", "x"],
        ["--limit", "-1"], ["--limit", "9" * 20], ["--album", ""], ["--album", "\udcff"], ["--model", "\udcff"], ["p1"],
    ],
)  # fmt: skip
def test_invalid_input_is_rejected(service: Service, arguments: list[str]) -> None:
    add(service, "p1")
    url = [] if "--url" in arguments else ["--url", URL]
    ended = service.command("reprocess", *url, *arguments)
    assert (ended.code, ended.output) == (2, "")
    assert "Traceback" not in ended.errors
    assert "hunter2" not in ended.errors
    assert ended.errors.splitlines()[-1].startswith("spottmee-worker")
    assert waiting(service) == []


def one_line(ended: Ended, code: int, *expected: str) -> None:
    assert (ended.code, ended.output) == (code, ""), ended.errors
    assert len(ended.errors.splitlines()) == 1
    for text in expected:
        assert text in ended.errors
    assert "hunter2" not in ended.errors


def test_invalid_settings_and_unusable_servers_are_reported(service: Service, empty_database_url: str) -> None:
    add(service, "p1")
    away = {"RUNNER_CONNECT_TIMEOUT_SECONDS": "0.2"}

    def run(*arguments: str, **more: str) -> Ended:
        return service.command("reprocess", *arguments, **away, **more)

    one_line(run(), 2, "RUNNER_PHOTO_URL")
    one_line(run("--url", URL, REDIS_URL=""), 2, "REDIS_URL")
    one_line(run("--url", URL, DATABASE_URL=""), 2, "DATABASE_URL")
    one_line(run("--url", URL, REDIS_URL="redis://u:hunter2@127.0.0.1:1"), 75, "REDIS_URL")
    one_line(run("--url", URL, EMBEDDINGS_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x"), 75, "EMBEDDINGS")
    one_line(run("--url", URL, DATABASE_URL=empty_database_url), 2, '"Photo"')
    one_line(run("--url", URL, EMBEDDINGS_DATABASE_URL=empty_database_url), 3, "migrate")
    one_line(run("--url", URL, RUNNER_MODEL_DIR="/nonexistent"), 4, "--model")
    assert reprocess(service, "--status", "UPLOADED", RUNNER_MODEL_DIR="/nonexistent")["pushed"] == 1


def test_the_database_of_another_deployment_is_refused(service: Service) -> None:
    add(service, "p1")
    KnownDatabases(service.redis, "process").add("of another deployment")
    ended = service.command("reprocess", "--url", URL)
    one_line(ended, 7, "only in other databases", "--any-database")
    assert waiting(service) == []
    assert reprocess(service, "--any-database")["pushed"] == 1


def test_the_columns_are_named_when_one_is_unknown(service: Service) -> None:
    ended = service.command("reprocess", "--url", "https://h/{albumId}")
    one_line(ended, 2, "albumId", "album_id", "normalized_name")
