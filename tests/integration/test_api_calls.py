"""The API's calls in their own order and timing, over HTTP: upload, push, late INITIATED, poll, delete.

`make test` plays them in seconds; `make acceptance` with INITIATED up to 60 s late, as the contract allows.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.scaler import ScaledJob, Scaler
from runner.queue import keys
from tests.support.api_server import ApiServer, Client, cleaned
from tests.support.samples import encoded, jpeg, scene

if TYPE_CHECKING:
    from demo.album import Album, Selfie
    from tests.support.run_tools import Service

LONGEST = float(os.environ.get("SPOTTMEE_INITIATED_SECONDS", "3"))
WATCHED = min(10.0, LONGEST / 3)
SWEEP_SECONDS = 2.0  # the chart's CronJob: every 15 minutes
PATIENCE = 60 + 3 * LONGEST
NAMES = ("Everyone (1).jpg", "office.png", "姚明.jpg", "Cleo & friends.jpg", "Yao 1.jpg", "right side?.jpg")


@dataclass
class Guest:
    """A person with a browser, who sends a selfie and polls until the first final answer."""

    selfie: Selfie
    initiated_delay: float
    stored_ids: list[str] = field(default_factory=list)
    job: str = ""
    answer: list[str] | None = None
    seconds: float = 0.0
    words: list[Any] = field(default_factory=list)


class Play:
    """An album, its guests, and runs that are started by KEDA's formula."""

    def __init__(self, service: Service, server: ApiServer, album: Album, folder: Path) -> None:
        self.service = service
        self.server = server
        self.album = album
        self.client = Client(server.port)
        self.photos: dict[str, str] = {}  # id → name
        self.guests: list[Guest] = []
        self._threads: list[threading.Thread] = []
        self._swept = time.monotonic()
        environment = {**service.environment, "RUNNER_RESULT_WATCH_SECONDS": f"{WATCHED:g}"}
        jobs = [ScaledJob("compare", 20, 2), ScaledJob("process", 20, 1)]
        self.scaler = Scaler(
            service.redis, jobs, environment={**environment, "RUNNER_THREADS": "1"}, folder=folder, polling_seconds=0.5
        )

    def upload(self, name: str) -> str:
        data = next(photo.data for photo in self.album.photos if photo.name == name)
        status, photo = self.client.call("POST", "albums", "party", "photos", name, body=data)
        assert status == 201
        self.photos[photo["id"]] = name
        return str(photo["id"])

    def arrive(self, person: str, initiated_delay: float) -> None:
        """Let a guest send a selfie in a thread, because the response comes only after INITIATED."""
        selfie = next(selfie for selfie in self.album.selfies if selfie.person == person)
        guest = Guest(selfie, initiated_delay)
        self.guests.append(guest)
        self.server.initiated_delay = initiated_delay
        pushed = self._pushes()
        thread = threading.Thread(target=self._wait_for_answer, args=(guest,), daemon=True)
        self._threads.append(thread)
        thread.start()
        self.until(lambda: self._pushes() > pushed)

    def _pushes(self) -> int:
        return int(self.service.redis.info("commandstats").get("cmdstat_rpush", {"calls": 0})["calls"])

    def _wait_for_answer(self, guest: Guest) -> None:
        status, created = self.client.call("POST", "albums", "party", "comparisons", body=guest.selfie.data)
        assert status == 201
        guest.job, guest.stored_ids = created["jobId"], created["storedIds"]
        started = time.monotonic()
        while time.monotonic() < started + PATIENCE:
            status, result = self.client.call("GET", "comparisons", guest.job)
            guest.words.append((status, result["status"] if status == 200 else None))
            if status == 200 and result["status"] == "done":
                guest.answer, guest.seconds = result["photos"], time.monotonic() - started
                return
            time.sleep(0.2)

    def until(self, done: Callable[[], bool], *, works: bool = True) -> None:
        """Wait until `done`; meanwhile runs and sweeps work, unless `works` is false."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, self.service.leftovers()
            if works:
                self.scaler.step()
            if works and time.monotonic() > self._swept + SWEEP_SECONDS:
                assert self.service.command("sweep").code == 0
                self._swept = time.monotonic()
            time.sleep(0.05)

    def finish(self) -> None:
        """Let everything in progress finish."""
        self.until(lambda: not any(thread.is_alive() for thread in self._threads) and self.scaler.idle())

    def is_answered_and_settled(self, job: str) -> bool:
        """Return whether a comparison has its answer and no runner watches it any more."""
        value = self.service.redis.get(keys.match_result(job))
        return value not in (None, b"PROCESSING") and not self.service.redis.zcard(keys.leases("compare"))

    def expected(self, guest: Guest, deleted: str = "") -> list[str]:
        names = self.album.expectation(guest.selfie)
        return [photo for photo in guest.stored_ids if self.photos[photo] in names and photo != deleted]


@pytest.fixture
def play(service: Service, redis_url: str, database_url: str, album: Album, tmp_path: Path) -> Iterator[Play]:
    with ApiServer(redis_url, database_url) as server:
        found = Play(service, server, album, tmp_path)
        yield found
        found.scaler.stop()


@pytest.mark.timeout(300 + 4 * LONGEST)
def test_every_guest_gets_the_whole_answer_however_late_initiated_is(play: Play) -> None:
    """Uploads one after the other, guests in between and afterwards, and a photo deleted in between."""
    for number, name in enumerate(NAMES):
        photo = play.upload(name)
        if name == "Yao 1.jpg":
            deleted = photo
        if number in (2, 4):  # while the album is being uploaded and processed
            play.arrive("Cleo", 0.0)
    assert play.client.call("DELETE", "photos", deleted) == (200, {"deleted": 1})
    for person, share in (("Ada", 0.0), ("Yao", 0.1), ("Cleo", 0.25), ("Gil", 0.5), ("Hal", 1.0)):
        play.arrive(person, LONGEST * share)
    play.server.initiated_when = play.is_answered_and_settled  # the worst moment, however quick this machine is
    play.arrive("Ivo", 0.0)
    play.finish()
    for guest in play.guests:
        assert guest.answer == play.expected(guest, deleted), (guest.selfie.name, guest.initiated_delay, guest.words)
        assert all(status == 200 for status, _ in guest.words)
    assert play.expected(play.guests[-1]) != []
    details = [play.service.api.detail(guest.job) for guest in play.guests]
    assert {detail["complete"] for detail in details} == {True}
    assert details[-1]["initiated"] is False  # it came after the lease had ended, and the answer was restored

    # The first final answer is the last: it can be read again, and expires.
    for guest in play.guests:
        assert play.client.call("GET", "comparisons", guest.job) == (200, {"status": "done", "photos": guest.answer})
        assert 0 < play.service.redis.ttl(f"match-result:{guest.job}") <= 3600
    assert play.service.leftovers() == {}
    assert {runner.exit_code for runner in play.scaler.runners} == {0}

    assert play.client.call("DELETE", "albums", "party") == (200, {"deleted": len(NAMES) - 1})
    assert play.service.command("sweep", "--force").code == 0
    assert play.service.connection.execute("SELECT count(*) FROM faces").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "AVIF", "SVG", "a truncated JPEG"])
def test_uploads_that_the_api_does_not_decode_fail_in_the_api(play: Play, kind: str) -> None:
    files = {"SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a truncated JPEG": jpeg()[:-200]}
    data = files.get(kind) or encoded(scene(), kind)
    assert play.client.call("POST", "albums", "a", "photos", "x", body=data)[0] == 500
    assert play.service.api.statuses() == {}
    assert play.service.leftovers() == {}


def test_the_simulated_api_follows_the_contract(play: Play) -> None:
    """Checks the stand-in, not the worker: otherwise the other tests would prove nothing."""
    redis, connection = play.service.redis, play.service.connection
    assert cleaned("my party (1).final.J P#G?") == "my_party_1_final.J P#G?"
    assert play.client.call("GET", "comparisons", "unknown")[0] == 404
    assert play.server.handle("GET", ["bucket", "albums", "a", "missing.jpg"], b"")[0] == 403
    photos = [play.upload("office.png"), play.upload("Cleo & friends.jpg")]
    connection.execute("UPDATE \"Photo\" SET status = 'READY' WHERE id = %s", (photos[0],))
    assert dict(connection.execute('SELECT status::text, type FROM "Photo"').fetchall()) == {
        "READY": "image/png",
        "UPLOADED": "image/jpeg",
    }
    jobs = [json.loads(job) for job in redis.lrange("face_embeddings:process", 0, -1)]
    assert [job["id"] for job in jobs] == photos
    assert jobs[1]["imageUrl"].endswith("/albums/party/Cleo_friends.jpg")

    play.server.initiated_delay = 0.5
    answers: list[Any] = []
    call = threading.Thread(
        target=lambda: answers.append(play.client.call("POST", "albums", "party", "comparisons", body=b"no image")[1])
    )
    call.start()
    play.until(lambda: redis.llen("face_embeddings:compare") == 1, works=False)
    (job,) = (json.loads(payload) for payload in redis.lrange("face_embeddings:compare", 0, -1))
    assert redis.get(f"match-result:{job['jobId']}") is None  # pushed, and not INITIATED yet
    call.join()
    assert answers == [{"jobId": job["jobId"], "storedIds": photos}]
    assert (set(job["storedIds"]), job["threshold"]) == (set(photos), 0.5)
    assert base64.b64decode(job["selfie"]) == b"no image"  # unchecked
    result = f"match-result:{job['jobId']}"
    assert (redis.get(result), redis.ttl(result)) == (b"INITIATED", -1)
    for value, shown in (("PROCESSING", None), ('["a"]', ["a"]), ("[]", [])):
        redis.set(result, value)
        expected = {"status": "processing"} if shown is None else {"status": "done", "photos": shown}
        assert play.client.call("GET", "comparisons", job["jobId"]) == (200, expected)
    assert play.client.call("DELETE", "albums", "party") == (200, {"deleted": 2})
    assert play.service.api.statuses() == {}
