"""An outage of an image server costs time, not photos: real servers that fail, limit the rate, or do not exist."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from demo.scaler import ScaledJob, Scaler
from runner.queue import keys
from runner.queue.hosts import LONGEST_SECONDS, Failure, Hosts
from tests.faults.pictures import kinds
from tests.support.forked import Fork
from tests.support.queue_tools import NAME, push, queue_of
from tests.support.web import Web, hang, ok

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.run_tools import Service

PEOPLE = ("Ada", "Ben", "Yao")
UNAVAILABLE = ok(b"later", status="503 Service Unavailable")
QUICK = {
    "RUNNER_OUTAGE_SECONDS": "1800",
    "RUNNER_RETRY_BASE_SECONDS": "0.5",
    "RUNNER_RETRY_MAX_SECONDS": "4",
    "RUNNER_THREADS": "1",
}
CLAIMED = "{face_embeddings:process}:claimed"
# Requests in flight when an outage begins: those after which a run takes a server to fail, and one for each reader.
BEFORE_A_RUN_KNOWS = 3 + 4


@pytest.fixture(scope="module")
def photo() -> bytes:
    return ok(kinds()["Ada"].data)


@pytest.fixture
def web(photo: bytes) -> Iterator[Web]:
    with Web({"*": photo}) as server:
        yield server


class Storage:
    """An image server that fails until it is repaired, an album on it, and runs started by KEDA's formula."""

    def __init__(self, service: Service, folder: Path, **more: str) -> None:
        self.service = service
        self.scaler = Scaler(
            service.redis,
            [ScaledJob("process", 20, 3)],
            environment={**service.environment, **QUICK, **more},
            folder=folder,
            polling_seconds=0.4,
            command=("runner.cli",),
            start=Fork,
        )

    def upload(self, count: int, web: Web, name: str = "photo") -> list[str]:
        names = [f"{name}-{number}.jpg" for number in range(count)]
        return list(self.service.api.upload({one: web.url(f"/{one}") for one in names}).values())

    def play(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.scaler.step()
            time.sleep(0.05)

    def finish(self, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not self.scaler.idle():
            assert time.monotonic() < until, self.service.leftovers()
            self.play(0.1)

    def statuses(self) -> Counter[str]:
        return Counter(self.service.api.statuses().values())

    def running(self) -> int:
        return len(self.scaler.running("process"))


@pytest.fixture
def storage(service: Service, tmp_path: Path) -> Iterator[Storage]:
    found = Storage(service, tmp_path)
    yield found
    found.scaler.stop()


def test_503_for_20_seconds_costs_no_photo(storage: Storage, web: Web, photo: bytes) -> None:
    web.answers["*"] = UNAVAILABLE
    began = time.monotonic()
    storage.upload(53, web)
    most = 0
    while time.monotonic() - began < 20:
        storage.play(0.2)
        most = max(most, storage.running()) if time.monotonic() - began > 12 else 0
    runs = len(storage.scaler.runners)
    sent = len(web.requests)
    web.answers["*"] = photo
    storage.finish()
    assert storage.statuses() == {"READY": 53}
    assert storage.service.leftovers() == {}
    # The probe is tried after 0.25 to 0.5 s, then with up to twice the delay, and finally every 2 to 4 s.
    assert sent <= 3 * BEFORE_A_RUN_KNOWS + 12, "the failing server is not hammered"
    assert most == 1, "one run waits for the server"
    assert runs <= 15, "KEDA would start one Job after the other"


def test_retry_after_of_a_rate_limit_is_honoured(storage: Storage, web: Web, photo: bytes) -> None:
    limited: list[float] = []
    served: list[float] = []

    def limit(connection: socket.socket, _request: str) -> None:
        now = time.monotonic()
        if not limited or now - limited[0] < 5:
            limited.append(now)
            connection.sendall(ok(b"", "Retry-After: 5", status="429 Too Many Requests"))
        else:
            served.append(now)
            connection.sendall(photo)

    web.answers["*"] = limit
    storage.upload(12, web)
    storage.finish()
    assert storage.statuses() == {"READY": 12}
    assert len(limited) <= 4 * 3, "the requests that were in flight"
    assert max(limited) - min(limited) < 3
    assert min(served) - limited[0] >= 4.9


def test_a_dead_server_does_not_delay_the_photos_of_another(storage: Storage, web: Web) -> None:
    with Web() as dead:
        pass  # its port is closed now
    with Web({"*": hang()}) as silent:
        for number in range(6):
            storage.upload(4, dead, f"dead-{number}")
            storage.upload(2, silent, f"silent-{number}")
            storage.upload(3, web, f"live-{number}")
        began = time.monotonic()
        while storage.statuses()["READY"] < 18:
            assert time.monotonic() - began < 20, (storage.statuses(), storage.service.leftovers())
            storage.play(0.1)
        assert storage.statuses()["FAILED"] == 0
        assert len(silent.requests) <= 3 * BEFORE_A_RUN_KNOWS
        counts = storage.service.leftovers()
        assert counts.get("process parked", 0) > 0


def test_an_outage_longer_than_the_setting_fails_the_photos(service: Service, web: Web, tmp_path: Path) -> None:
    storage = Storage(service, tmp_path, RUNNER_OUTAGE_SECONDS="6")
    web.answers["*"] = UNAVAILABLE
    photos = storage.upload(30, web)
    try:
        storage.play(4)
        assert storage.statuses()["FAILED"] == 0
        storage.finish()
    finally:
        storage.scaler.stop()
    assert storage.statuses() == {"FAILED": 30}
    assert service.leftovers() == {"process dead": 30}
    redis: Any = service.redis
    letters = [json.loads(raw.partition(b" ")[2]) for raw in redis.hvals("{face_embeddings:process}:dead")]
    assert {letter["error"]["code"] for letter in letters} == {"fetch_failed"}
    assert all("127.0.0.1" in letter["error"]["message"] for letter in letters)
    assert len(web.requests) <= 3 * BEFORE_A_RUN_KNOWS + 12, len(photos)


def test_a_photo_that_has_failed_thousands_of_times_still_waits(storage: Storage, web: Web, photo: bytes) -> None:
    web.answers["*"] = UNAVAILABLE
    storage.upload(1, web)
    quick = {"RUNNER_OUTAGE_SECONDS": "1800", "RUNNER_RETRY_BASE_SECONDS": "0.001", "RUNNER_RETRY_MAX_SECONDS": "0.1"}
    storage.service.run("--max-seconds", "1", **quick)
    redis: Any = storage.service.redis
    ((field, state),) = redis.hscan_iter(CLAIMED, "*:state")
    first_at, _, *last = json.loads(state)
    redis.hset(CLAIMED, field, json.dumps([first_at, 5000, *last]))
    sent = len(web.requests)
    storage.service.run("--idle-seconds", "3", "--max-seconds", "3", **quick)
    assert len(web.requests) > sent, "the photo was tried again"
    assert storage.statuses() == {"PROCESSING": 1}
    web.answers["*"] = photo
    storage.finish()
    assert storage.statuses() == {"READY": 1}


def test_kill_9_during_an_outage_loses_nothing(storage: Storage, web: Web, photo: bytes) -> None:
    web.answers["*"] = UNAVAILABLE
    storage.scaler.environment["RUNNER_LEASE_SECONDS"] = "2"
    storage.upload(30, web)
    for _ in range(3):
        storage.play(1.5)
        for runner in storage.scaler.running("process"):
            os.kill(runner.process.pid, signal.SIGKILL)
    web.answers["*"] = photo
    storage.finish()
    assert storage.statuses() == {"READY": 30}
    assert storage.service.leftovers() == {}


def test_one_bad_object_does_not_pause_its_server(storage: Storage, web: Web) -> None:
    web.answers["/bad-0.jpg"] = UNAVAILABLE
    bad = storage.upload(1, web, "bad")[0]
    storage.play(2)
    storage.upload(12, web, "good")
    began = time.monotonic()
    while storage.statuses()["READY"] < 12:
        assert time.monotonic() - began < 15
        storage.play(0.1)
    assert storage.service.redis.exists("{face_embeddings:process}:hosts") == 0
    assert storage.service.status(bad) == "PROCESSING"
    web.answers["/bad-0.jpg"] = web.answers["*"]
    storage.finish()
    assert storage.statuses() == {"READY": 13}


@pytest.mark.parametrize("replaced", [False, True])
def test_what_is_known_about_a_failing_server_outlives_the_photos_that_wait_for_it(redis: Any, replaced: bool) -> None:
    push(redis, [b"%d" % number for number in range(6)])
    hosts = Hosts(redis, owner="a", base_seconds=1, cap_seconds=1)
    failure = Failure(is_first=True, pause_seconds=0, delay_seconds=1)
    for lease in queue_of(redis, "a").claim(6):
        hosts.wait(lease, "h:1", failure=failure, timeout_seconds=LONGEST_SECONDS, state=b"", tally={})
    if replaced:
        assert hosts.replace_probe("h:1", ending=redis.hget(keys.host(NAME, "h:1"), "probe").decode())
    latest = max(deadline for _, deadline in redis.zrange(keys.parked(NAME), 0, -1, withscores=True))
    seconds = latest / 1000 - redis.time()[0]
    assert seconds > LONGEST_SECONDS - 600, "they wait for a day"
    names = [keys.hosts(NAME), keys.host(NAME, "h:1"), keys.host_parked(NAME, "h:1")]
    assert [name for name in names if redis.ttl(name) < seconds] == []


def test_guests_wait_for_the_photos_of_a_failing_server_without_a_run(storage: Storage, web: Web, photo: bytes) -> None:
    web.answers["*"] = UNAVAILABLE
    photos = storage.upload(8, web)
    storage.play(3)
    guest = storage.service.api.compare(kinds()["selfie Ada"].data, photos)
    ended = storage.service.run("--queues", "compare")
    assert ended.summary["parked"] == 1
    assert storage.service.redis.zcard("{face_embeddings:compare}:leases") == 0
    web.answers["*"] = photo
    storage.finish()
    storage.service.run("--queues", "compare")
    assert storage.service.api.result(guest) == photos
    assert storage.service.api.detail(guest)["complete"] is True
