"""Totals: every job, attempt, retry and run is counted once, in the step in which it happens."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from benchmarks import material
from demo.images import ImageServer
from runner.expire import expire_comparisons
from runner.queue import keys, totals
from runner.queue.client import connect
from runner.queue.leases import Lease, LeaseQueue
from runner.queue.parking import Parking
from runner.queue.search import JobSearch
from runner.queue.totals import read_totals
from runner.settings import load
from runner.worker.totals import RunTotals
from tests.support.queue_tools import NAME, closing_clients, pass_time, push, queue_of
from tests.support.redis_topologies import Relay

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.run_tools import Service


@pytest.fixture(autouse=True)
def _closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from closing_clients(monkeypatch, __name__)


@pytest.fixture
def relay(redis_url: str) -> Iterator[Relay]:
    port = urlsplit(redis_url).port
    assert port is not None
    with Relay(lambda: port) as opened:
        yield opened


@pytest.fixture
def lossy(relay: Relay, redis_url: str) -> Redis:
    """A client of the same Redis, whose replies `relay` can lose."""
    url = redis_url.replace(f":{urlsplit(redis_url).port}/", f":{relay.port}/")
    return connect(load({"REDIS_URL": url}, required=("redis_url",)))


def counted(redis: Any, name: str = NAME) -> dict[str, int]:
    """The totals without zeros; nothing else is in the hash."""
    raw = redis.hgetall(keys.totals(name))
    found = +read_totals(redis, name)
    assert {field.decode() for field, value in raw.items() if int(value)} == set(found)
    return dict(found)


def _park(queue: LeaseQueue, lease: Lease) -> object:
    assert Parking(queue._client, NAME).announce(lease, ["photo"], 600)
    return queue.park(lease, "album_pending", b"state")


SETTLEMENTS: dict[str, tuple[Callable[[LeaseQueue, Lease], object], str]] = {
    "acknowledge": (lambda queue, lease: queue.acknowledge(lease), "jobs:succeeded:"),
    "retry": (lambda queue, lease: queue.retry(lease, 5, "fetch_failed"), "retries:fetch_failed"),
    "release": (lambda queue, lease: queue.release(lease), "releases:released"),
    "park": (_park, "releases:album_pending"),
    "dead_letter": (lambda queue, lease: queue.dead_letter(lease, "expired", ""), "jobs:dead_lettered:expired"),
}


@pytest.mark.parametrize("name", SETTLEMENTS)
def test_a_settlement_is_counted_once_even_if_its_reply_is_lost(
    name: str, redis: Redis, relay: Relay, lossy: Redis
) -> None:
    settle, field = SETTLEMENTS[name]
    push(redis, [b"job"])
    queue = queue_of(lossy, "runner")
    relay.lose_replies = 1
    (lease,) = queue.claim(1)
    relay.lose_replies = 1
    assert settle(queue, lease)
    assert relay.lose_replies == 0
    assert counted(redis) == {"taken": 1, "attempts": 1, field: 1}


def test_a_runner_that_lost_a_lease_counts_nothing(redis: Redis) -> None:
    push(redis, [b"job"])
    dead, heir = queue_of(redis, "dead"), queue_of(redis, "heir")
    (lost,) = dead.claim(1)
    pass_time(redis, 31)
    (lease,) = heir.claim(1)
    assert dead.acknowledge(lost) is False
    assert dead.retry(lost, 1, "fetch_failed") is False
    assert dead.dead_letter(lost, "expired", "") is False
    assert counted(redis) == {"taken": 1, "attempts": 2, "leases_expired": 1}
    assert heir.acknowledge(lease) is True
    assert counted(redis) == {"taken": 1, "attempts": 2, "leases_expired": 1, "jobs:succeeded:": 1}


def test_pending_counts_are_counted_once_even_if_replies_are_lost(redis: Any, relay: Relay, lossy: Redis) -> None:
    queue = queue_of(lossy, "runner")
    run = RunTotals([queue])
    relay.lose_replies = 1
    assert queue.claim(1) == []  # the list is empty
    relay.lose_replies = 1
    run.ended("empty", {"claimed": 0})
    run.ended("signal", {})
    (summary,) = redis.zrange(keys.runs(NAME), 0, -1)
    assert json.loads(summary) == {"claimed": 0, "exit_reason": "empty", "runner": "runner"}
    assert counted(redis) == {"runs_started": 1, "runs:empty": 1}


def test_unknown_labels_are_counted_as_other_so_that_the_fields_are_bounded(redis: Redis) -> None:
    push(redis, [b"job"] * 3)
    queue = queue_of(redis, "runner")
    first, second, third = queue.claim(3)
    assert queue.retry(first, 5, "a code of a later version")
    assert queue.release(second, reason="because")
    assert queue.dead_letter(third, "selfie of Alice", "")
    found = counted(redis)
    assert found == {
        "taken": 3, "attempts": 3, "retries:other": 1, "releases:other": 1, "jobs:dead_lettered:other": 1,
    }  # fmt: skip
    assert len(totals.all_fields()) == len(set(totals.all_fields())) < 400


def test_expired_and_forgotten_jobs_end_in_the_totals(redis: Redis) -> None:
    push(redis, [b"in the list", b"claimed", b"forgotten"], "compare")
    queue = queue_of(redis, "runner", name="compare")
    (lease,) = queue.claim(1)
    search = JobSearch(redis, "compare")
    assert search.erase(next(search.waiting())) == (1, False)
    assert search.erase(next(search.claimed())) == (1, True)
    assert queue.acknowledge(lease) is False
    assert expire_comparisons(redis, seconds=0) == 1
    assert counted(redis, "compare") == {
        "taken": 3, "attempts": 1, "jobs:forgotten:": 2, "jobs:dead_lettered:expired": 1,
    }  # fmt: skip


def test_a_malformed_counter_restarts_and_does_not_stop_work(redis: Redis) -> None:
    push(redis, [b"job"])
    redis.hset(keys.totals(NAME), "taken", "many")
    queue = queue_of(redis, "runner")
    assert queue.acknowledge(queue.claim(1)[0]) is True
    assert counted(redis) == {"taken": 1, "attempts": 1, "jobs:succeeded:": 1}


def test_a_run_counts_its_jobs_their_stages_and_itself(service: Service) -> None:
    photo = material.first_photo()
    with ImageServer({"a.jpg": photo, "b.jpg": photo, "broken.jpg": b"no image"}) as images:
        ids = service.api.upload({name: images.url(name) for name in ("a.jpg", "b.jpg", "broken.jpg", "missing.jpg")})
        gone = service.api.upload({"gone.jpg": images.url("a.jpg")})
        service.api.delete(gone["gone.jpg"])
        service.connection.execute("UPDATE \"Photo\" SET created_at = now() AT TIME ZONE 'UTC' - interval '8 seconds'")
        service.run("--queues", "process")
        service.api.compare(photo, [ids["a.jpg"]])
        service.run()
    found = read_totals(service.redis, "process")
    jobs = {field: number for field, number in found.items() if field.startswith("jobs:") and number}
    assert jobs == {
        "jobs:succeeded:": 2, "jobs:photo_gone:photo_gone": 1, "jobs:dead_lettered:image_undecodable": 1,
        "jobs:dead_lettered:image_missing": 1,
    }  # fmt: skip
    row = service.connection.execute("SELECT count(*) FROM faces").fetchone()
    assert row is not None
    assert found[totals.FACES] == row[0] > 0
    assert (found[totals.TAKEN], found[totals.ATTEMPTS]) == (5, 5)
    assert sum(totals.buckets(found, totals.JOB)) == 5
    assert sum(totals.buckets(found, "decode")) in (3, 4)  # a deleted photo may be fetched before its row is looked up
    assert sum(totals.buckets(found, "store")) == 5
    assert sum(totals.buckets(found, totals.PHOTO_READY)) == 2
    assert 16 <= totals.sum_seconds(found, totals.PHOTO_READY) < 2 * 60
    guests = read_totals(service.redis, "compare")
    assert (guests["jobs:succeeded:"], sum(totals.buckets(guests, "match"))) == (1, 1)
    assert 0 < totals.sum_seconds(guests, totals.JOB) < 60
    # The first run served one queue, the second both.
    assert (found[totals.RUNS_STARTED], found["runs:empty"], found["providers:cpu"]) == (2, 2, 2)
    assert (guests[totals.RUNS_STARTED], guests["runs:empty"], guests["providers:cpu"]) == (1, 1, 1)
    assert sum(totals.buckets(found, totals.START_UP)) == 2
    assert 0.02 < totals.sum_seconds(found, totals.START_UP) / 2 < 60  # from a fork, nothing is imported


def test_a_photo_that_was_ready_before_does_not_count_as_waiting_since_its_upload(service: Service) -> None:
    with ImageServer({"a.jpg": material.first_photo()}) as images:
        photo_id = service.api.upload({"a.jpg": images.url("a.jpg")})["a.jpg"]
        service.run()
        payload = json.dumps({"id": photo_id, "imageUrl": images.url("a.jpg")})
        service.redis.rpush(keys.list_key("process"), payload)
        service.run()
    found = read_totals(service.redis, "process")
    assert (found["jobs:succeeded:"], sum(totals.buckets(found, totals.PHOTO_READY))) == (2, 1)


def test_a_run_that_fails_counts_its_reason(service: Service) -> None:
    service.connection.execute('DROP TABLE "Photo"')
    ended = service.command("run")
    assert ended.code == 2
    found = read_totals(service.redis, "process")
    assert (found[totals.RUNS_STARTED], found["runs:settings"]) == (1, 1)


def test_a_run_without_a_model_counts_its_reason(service: Service, tmp_path: Path) -> None:
    assert service.command("run", "--model-dir", str(tmp_path)).code == 4
    found = read_totals(service.redis, "process")
    assert (found[totals.RUNS_STARTED], found["runs:model"]) == (1, 1)


def test_a_role_that_may_not_read_created_at_stores_photos_without_their_age(
    service: Service, database_url: str
) -> None:
    role = f"narrow_{os.getpid()}"
    service.command("migrate")
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f'GRANT SELECT (id, status), UPDATE (status) ON "Photo" TO {role}',
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f'REVOKE SELECT ON "Photo" FROM {role}',
        f'GRANT SELECT (id, status) ON "Photo" TO {role}',
    ):
        service.connection.execute(statement.encode())
    parts = urlsplit(database_url)
    url = database_url.replace(f"//{parts.netloc.rpartition('@')[0]}@", f"//{role}@")
    try:
        with psycopg.connect(url) as narrow, pytest.raises(psycopg.errors.InsufficientPrivilege):
            narrow.execute('SELECT created_at FROM "Photo"')
        with ImageServer({"a.jpg": material.first_photo()}) as images:
            service.api.upload({"a.jpg": images.url("a.jpg")})
            service.run(DATABASE_URL=url)
    finally:
        service.connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
    found = Counter(read_totals(service.redis, "process"))
    assert (found["jobs:succeeded:"], sum(totals.buckets(found, totals.PHOTO_READY))) == (1, 0)
