"""`spottmee-worker forget`, on real servers: jobs in every state, embeddings, answers, and active runs."""

from __future__ import annotations

import base64
import json
import os
import pty
import socket
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runner import forget
from runner.cli import main
from runner.expire import expire_comparisons
from runner.forget import forget_jobs, forget_result, has_id
from runner.queue import keys
from runner.queue.heartbeat import ASK_SECONDS, FRESH_SECONDS, Heartbeat
from runner.queue.leases import Parked
from runner.queue.parking import Parking
from runner.store.embeddings import EmbeddingStore
from runner.store.results import ResultStore, ResultWatch
from runner.store.schema import migrate
from runner.worker.comparison import ComparisonHandler
from runner.worker.kinds import COMPARISON
from runner.worker.messages import decode_compare
from runner.worker.task import Task
from tests.support.queue_tools import push, queue_of
from tests.support.run_tools import wait_for
from tests.support.store_tools import faces, opened
from tests.support.terminal import answered
from tests.support.web import Web, ok

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from demo.album import Album
    from demo.images import ImageServer
    from tests.support.run_tools import Ended, Service

CLEO = "Cleo & friends.jpg"
SELFIE = base64.b64encode(b"hunter2" * 50_000).decode()


@pytest.fixture(autouse=True)
def _redis_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `forget` wait for runs whose Redis answers quickly, as these do; `test_queue_heartbeat` has a slow one."""
    monkeypatch.setattr(forget, "SETTLE_SECONDS", ASK_SECONDS + 2 * FRESH_SECONDS)


def photo_job(photo_id: str, album: str = "a1") -> bytes:
    url = f"https://h/albums/{album}/{photo_id}.jpg?signature=hunter2"
    return json.dumps({"imageUrl": url, "id": photo_id}).encode()


def comparison_job(job_id: str, *, last: bool = False) -> bytes:
    rest = {"storedIds": ["p1"], "selfie": SELFIE}
    return json.dumps({**rest, "jobId": job_id} if last else {"jobId": job_id, **rest}).encode()


def scatter(service: Service, name: str, make: Callable[[str], bytes], *ids: str) -> None:
    """Create jobs that are waiting, leased, deferred and dead-lettered, one per id."""
    queue = queue_of(service.redis, "other/pod/1", name=name)
    for identifier in ids:
        push(service.redis, [make(identifier)] * 3, name)
        _, put_off, dead = queue.claim(3)
        queue.retry(put_off, 3600, "fetch_failed")
        assert queue.dead_letter(dead, "fetch_failed", "no answer")
    push(service.redis, [make(identifier) for identifier in ids], name)


def where(service: Service, text: bytes) -> set[str]:
    """Return every key of Redis whose name or value mentions `text`."""
    redis: Any = service.redis
    readers: dict[bytes, Callable[[bytes], object]] = {
        b"string": redis.get, b"hash": redis.hgetall, b"list": lambda key: redis.lrange(key, 0, -1),
        b"zset": lambda key: redis.zrange(key, 0, -1), b"set": redis.smembers,
    }  # fmt: skip
    found = set()
    for key in redis.scan_iter():
        if text in key or text in str(readers[redis.type(key)](key)).encode():
            found.add(key.decode())
    return found


def letters_of(service: Service, name: str) -> set[str]:
    """Return the keys of the payloads that dead letters have."""
    redis: Any = service.redis
    return {keys.dead_payload(name, letter.decode()) for letter in redis.zrange(keys.dead_index(name), 0, -1)}


def removed(ended: Ended) -> dict[str, int]:
    assert ended.code == 0, ended.errors
    found: dict[str, int] = json.loads(ended.output)["removed"]
    return found


def test_a_photo_is_removed_wherever_its_job_is(service: Service) -> None:
    scatter(service, "process", photo_job, "p1", "p2")
    service.connection.execute("INSERT INTO \"Photo\" (id, status) VALUES ('p1', 'PROCESSING')")
    ended = service.command("forget", "--photo", "p1", "--yes", "--json")
    assert removed(ended) == {"waiting_jobs": 1, "leases": 2, "dead_letters": 1, "faces": 0}
    document = json.loads(ended.output)
    assert (document["photo"], document["interrupted_runs"], document["api_rows"]) == ("p1", 1, 1)
    assert any("append-only file" in place for place in document["may_remain"])
    assert any("backups" in place for place in document["may_remain"])
    assert where(service, b'"p1"') == set()
    assert "hunter2" not in ended.output + ended.errors
    assert where(service, b'"p2"') == {
        keys.list_key("process"), keys.claimed("process"), *letters_of(service, "process"),
    }  # fmt: skip


def test_forgetting_again_finds_nothing(service: Service) -> None:
    scatter(service, "process", photo_job, "p1")
    service.command("forget", "--photo", "p1", "--yes")
    for arguments in (["--photo", "p1"], ["--comparison", "p1"], ["--album", "p1"]):
        assert set(removed(service.command("forget", *arguments, "--yes", "--json")).values()) == {0}


@pytest.mark.parametrize("last", [False, True], ids=["jobId first", "jobId behind the selfie"])
def test_a_comparison_is_removed_wherever_its_job_is(service: Service, last: bool) -> None:
    scatter(service, "compare", lambda job_id: comparison_job(job_id, last=last), "guest-1", "guest-2")
    for key in (keys.match_result("guest-1"), keys.match_result_detail("guest-1"), keys.match_result("guest-2")):
        service.redis.set(key, "[]")
    service.redis.zadd(keys.unconfirmed(), {"guest-1": 2**40, "guest-2": 2**40})
    assert expire_comparisons(service.redis) == 0  # which records when the waiting jobs were first seen
    before: Any = service.redis.get(keys.seen("compare"))
    ended = service.command("forget", "--comparison", "guest-1", "--yes", "--json", DATABASE_URL="")
    assert removed(ended) == {"waiting_jobs": 1, "leases": 2, "dead_letters": 1, "results": 2}
    assert where(service, b"guest-1") == set()
    assert service.redis.get(keys.seen("compare")) == b"".join(before.splitlines(keepends=True)[1:])
    assert where(service, b'"guest-2"') == {
        keys.list_key("compare"), keys.claimed("compare"), *letters_of(service, "compare"),
    }  # fmt: skip
    assert service.redis.exists(keys.match_result("guest-2"))
    assert service.redis.zrange(keys.unconfirmed(), 0, -1) == [b"guest-2"]


def parked(service: Service, job_id: str, photo_id: str) -> None:
    """Let a comparison wait for a photo."""
    queue = queue_of(service.redis, "other/pod/1", name="compare")
    push(service.redis, [comparison_job(job_id)], "compare")
    (lease,) = queue.claim(1)
    assert Parking(service.redis).announce(lease, [photo_id], 600)
    assert queue.park(lease, "album", b"the face of guest-1") is Parked.DONE


def test_a_comparison_that_waits_for_its_album_is_removed(service: Service) -> None:
    parked(service, "guest-1", "p1")
    assert removed(service.command("forget", "--comparison", "guest-1", "--yes", "--json"))["leases"] == 1
    assert where(service, b"guest-1") == set()
    assert [key for key in service.redis.scan_iter() if not key.endswith(b":totals") and b":last:" not in key] == []


def test_a_comparison_does_not_wait_for_a_photo_that_is_forgotten(service: Service) -> None:
    push(service.redis, [photo_job("p1")])
    parked(service, "guest-1", "p1")
    assert removed(service.command("forget", "--photo", "p1", "--yes", "--json"))["waiting_jobs"] == 1
    assert not service.redis.exists(keys.parked("compare"))
    assert service.redis.zcard(keys.leases("compare")) == 1


def test_every_copy_in_a_long_list_is_removed(service: Service) -> None:
    jobs = [photo_job("wanted" if number % 7 == 3 else f"p{number}") for number in range(2000)]
    push(service.redis, jobs)
    assert removed(service.command("forget", "--photo", "wanted", "--yes", "--json"))["waiting_jobs"] == 286
    assert service.redis.lrange(keys.list_key("process"), 0, -1) == [job for job in jobs if b'"wanted"' not in job]


def test_an_album_is_removed_with_its_embeddings(service: Service, images: ImageServer) -> None:
    kept = service.api.upload({CLEO: images.url(CLEO)}, album_id="other")
    gone = service.api.upload({CLEO: images.url(CLEO)}, album_id="a1")
    service.run()
    service.api.upload({"waiting": images.url(CLEO)}, album_id="a1")
    push(service.redis, [photo_job("without a row", "a1"), photo_job("of another album", "a1x")])
    dry = service.command("forget", "--album", "a1", "--dry-run", "--json")
    assert removed(dry) == {"waiting_jobs": 2, "leases": 0, "dead_letters": 0, "faces": 2}
    assert service.faces(gone[CLEO]) == 2
    ended = service.command("forget", "--album", "a1", "--yes", "--json")
    assert removed(ended) == removed(dry)
    assert (json.loads(ended.output)["photos"], json.loads(ended.output)["api_rows"]) == (3, 2)
    assert (service.faces(gone[CLEO]), service.faces(kept[CLEO])) == (0, 2)
    assert service.leftovers() == {"process waiting": 1}


def test_embeddings_in_a_database_of_their_own_and_in_a_named_schema(service: Service, empty_database_url: str) -> None:
    with opened(f"{empty_database_url}?schema=Its%20own") as embeddings:
        migrate(embeddings)
        embeddings.locate()
        EmbeddingStore(embeddings, "m").replace({"p1": faces(2), "p2": faces(1)})
        service.connection.execute("INSERT INTO \"Photo\" (id, status) VALUES ('p1', 'READY')")
        place = f"{empty_database_url}?schema=Its%20own"
        ended = service.command("forget", "--photo", "p1", "--yes", "--json", EMBEDDINGS_DATABASE_URL=place)
        assert removed(ended)["faces"] == 2
        assert embeddings.query("SELECT DISTINCT photo_id FROM {faces}.faces").fetchall() == [("p2",)]


def test_a_run_stores_nothing_for_a_photo_that_is_forgotten_during_processing(
    service: Service, images: ImageServer, album: Album
) -> None:
    data = next(photo.data for photo in album.photos if photo.name == CLEO)
    checked, forgotten = threading.Event(), threading.Event()

    def slow(connection: socket.socket, _: str) -> None:
        checked.set()
        forgotten.wait(60)
        connection.sendall(ok(data))

    with Web({"/slow": slow}) as web:
        photos = service.api.upload({"slow": web.url("/slow"), "quick": images.url(CLEO)})
        run = service.start("run", RUNNER_FETCH_READ_TIMEOUT_SECONDS="60", RUNNER_FETCH_TIMEOUT_SECONDS="60")
        assert checked.wait(60)
        ended = service.command("forget", "--photo", photos["slow"], "--yes", "--json")
        assert removed(ended)["leases"] == 1
        assert json.loads(ended.output)["interrupted_runs"] == 1
        forgotten.set()
        output, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    summary = json.loads(output)
    assert (summary["lease_lost"], summary["succeeded"]) == (1, 1)
    assert (service.faces(photos["slow"]), service.faces(photos["quick"])) == (0, 2)
    assert service.leftovers() == {}
    assert where(service, photos["slow"].encode()) == set()


def test_a_run_that_watches_an_answer_does_not_write_it_again(
    service: Service, images: ImageServer, album: Album
) -> None:
    photos = service.api.upload({CLEO: images.url(CLEO)})
    service.run()
    selfie = base64.b64encode(album.selfies[0].data).decode()
    payload = {"jobId": "guest-1", "storedIds": list(photos.values()), "selfie": selfie}
    push(service.redis, [json.dumps(payload).encode()], "compare")  # and no INITIATED: the run waits for it
    run = service.start("run", RUNNER_RESULT_WATCH_SECONDS="5")
    wait_for(lambda: service.redis.exists(keys.match_result_detail("guest-1")))
    ended = service.command("forget", "--comparison", "guest-1", "--yes", "--json")
    assert (removed(ended)["leases"], removed(ended)["results"]) == (1, 2)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert json.loads(output)["lease_lost"] == 1
    assert where(service, b"guest-1") == set()


def test_an_answer_that_is_forgotten_while_another_is_written_stays_forgotten(redis: Redis) -> None:
    queue, results = queue_of(redis, "here/1", name="compare"), ResultStore(redis)
    push(redis, [comparison_job("guest-1"), comparison_job("guest-2")], "compare")
    tasks = [Task(lease, decode_compare(lease.payload), faces=[]) for lease in queue.claim(2)]

    asked_for: list[object] = []

    def repository() -> Any:
        asked_for.append(None)
        if len(asked_for) == 2:  # once for each comparison: the first has its answer
            forget_jobs(redis, COMPARISON, has_id(redis, COMPARISON, {"guest-1"}))
            forget_result(redis, "guest-1")
        return SimpleNamespace(model="model")

    with Heartbeat([queue]) as heartbeat:
        heartbeat.add(task.lease for task in tasks)
        watch = ResultWatch(results, seconds=1)
        handler = ComparisonHandler(results, watch, repository, heartbeat.still_owned, None)
        for job_id in ("guest-1", "guest-2"):
            redis.set(keys.match_result(job_id), "INITIATED")
        handler.begin(tasks)
        handler.conclude(tasks)
    assert not redis.exists(keys.match_result("guest-1"), keys.match_result_detail("guest-1"))
    assert redis.get(keys.match_result("guest-2")) == b"[]"


def test_a_late_initiated_is_all_that_is_left_of_a_forgotten_comparison(service: Service, album: Album) -> None:
    payload = {"jobId": "guest-1", "storedIds": [], "selfie": base64.b64encode(album.selfies[0].data).decode()}
    push(service.redis, [json.dumps(payload).encode()], "compare")
    run = service.start("run", RUNNER_RESULT_WATCH_SECONDS="4")
    wait_for(lambda: service.redis.exists(keys.match_result_detail("guest-1")))
    assert service.command("forget", "--comparison", "guest-1", "--yes").code == 0
    service.redis.set(keys.match_result("guest-1"), "INITIATED")
    run.communicate(timeout=60)
    service.run()
    assert service.redis.get(keys.match_result("guest-1")) == b"INITIATED"
    assert where(service, b"guest-1") == {keys.match_result("guest-1")}


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_forget_asks_for_confirmation_on_a_terminal(service: Service, answer: str, left: int) -> None:
    push(service.redis, [comparison_job("guest-1")], "compare")
    code, errors = answered(["forget", "--comparison", "guest-1"], service.environment, answer)
    assert code == 0
    assert b"Remove all data of comparison guest-1 permanently? [y/N]" in errors
    assert service.redis.llen(keys.list_key("compare")) == left


def test_a_terminal_shows_what_forget_waits_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    leader, terminal = pty.openpty()
    os.set_blocking(leader, False)
    with os.fdopen(leader, "rb", buffering=0) as shown, os.fdopen(terminal, "w") as errors:
        monkeypatch.setattr(sys, "stderr", errors)
        for owner in ("", "other/pod/1"):  # a waiting job, and one that a run owns
            push(service.redis, [comparison_job("guest-1")], "compare")
            if owner:
                queue_of(service.redis, owner, name="compare").claim(1)
            assert main(["forget", "--comparison", "guest-1", "--yes"]) == 0
        text = (shown.read(4096) or b"").decode()
    assert text.count("waiting 1 s until the run that owned a job can no longer store anything for it") == 1, text


def test_forget_requires_yes_without_a_terminal(service: Service) -> None:
    push(service.redis, [comparison_job("guest-1")], "compare")
    ended = service.command("forget", "--comparison", "guest-1")
    assert (ended.code, ended.output) == (2, "")
    assert "--yes" in ended.errors
    assert service.redis.llen(keys.list_key("compare")) == 1


def test_the_text_names_what_was_removed_and_what_may_remain(service: Service) -> None:
    scatter(service, "process", photo_job, "p1")
    service.connection.execute("CREATE TABLE face_embeddings (id int, name text, embedding text)")
    lines = service.command("forget", "--photo", "p1", "--yes").output.splitlines()
    assert lines[0] == "photo p1"
    assert [line.split() for line in lines[1:3]] == [
        ["waiting", "jobs", "1", "removed"], ["leases", "2", "removed"],
    ]  # fmt: skip
    rest = "\n".join(lines)
    for expected in ("BGREWRITEAOF", "VACUUM", "face_embeddings", "owned by a run"):
        assert expected in rest


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--photo"], ["--photo", ""], ["--photo", "a" * 257], ["--photo", "a", "--album", "b"], ["a"],
        ["--comparison", "\udcff"], ["--album", "a", "--nonsense"], ["--yes"],
    ],
)  # fmt: skip
def test_invalid_input_is_rejected(service: Service, arguments: list[str]) -> None:
    ended = service.command("forget", *arguments)
    assert (ended.code, ended.output) == (2, "")
    assert "Traceback" not in ended.errors
    assert ended.errors.splitlines()[-1].startswith("spottmee-worker")


def test_unusable_servers_are_reported(service: Service) -> None:
    away = {"RUNNER_CONNECT_TIMEOUT_SECONDS": "0.2"}
    push(service.redis, [photo_job("p1")])
    for more, code in (
        ({"REDIS_URL": "redis://u:hunter2@127.0.0.1:1"}, 75), ({"REDIS_URL": ""}, 2), ({"DATABASE_URL": ""}, 2),
        ({"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x"}, 75),
    ):  # fmt: skip
        ended = service.command("forget", "--photo", "p1", "--yes", **away, **more)
        assert (ended.code, ended.output) == (code, ""), ended.errors
        assert "hunter2" not in ended.errors
        assert len(ended.errors.splitlines()) == 1
    assert service.redis.llen(keys.list_key("process")) == 1, "nothing was removed"
