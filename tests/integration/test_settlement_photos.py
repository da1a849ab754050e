"""Photos that PostgreSQL rejects, settled by the real handler on real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from redis import Redis

from runner.images.fetch import Fetcher
from runner.queue.dead_letters import DeadLetters
from runner.queue.heartbeat import Heartbeat
from runner.settings import load
from runner.store.repository import Repository
from runner.store.results import ResultStore
from runner.worker.kinds import PHOTO, Services
from runner.worker.settlement import Settlement
from runner.worker.summary import Summary
from runner.worker.task import AnyTask
from tests.support.queue_tools import LEASE_SECONDS, pass_time, places, push, queue_of
from tests.support.store_tools import (
    MODEL,
    UNSTORABLE_FACTORS,
    Face,
    Runner,
    add_photos,
    faces,
    statuses,
    stored_faces,
    unstorable_face,
)

ATTEMPTS = 3


class PhotoBench:
    """The settlement of photos, and a `runner` with access to the same tables."""

    def __init__(self, redis: Redis, runner: Runner) -> None:
        self.redis, self.runner = redis, runner
        settings = load(
            {
                "REDIS_URL": "redis://h/0",
                "DATABASE_URL": runner.api_url,
                "EMBEDDINGS_DATABASE_URL": runner.faces_url,
                "RUNNER_MAX_ATTEMPTS": str(ATTEMPTS),
            }
        )
        self.queue = queue_of(redis, "here/1", max_attempts=ATTEMPTS)
        self.heartbeat = Heartbeat([self.queue])
        self.repository = Repository(settings, MODEL, application_name="test")
        self.fetcher = Fetcher.from_settings(settings)
        self.summary = Summary({PHOTO.queue: PHOTO})
        services = Services(
            settings,
            ResultStore(redis),
            lambda: self.repository,
            self.fetcher,
            self.heartbeat.still_owned,
            self.heartbeat.owned_until,
        )
        self.settlement = Settlement(
            settings,
            kinds={PHOTO.queue: PHOTO},
            queues={PHOTO.queue: self.queue},
            handlers={PHOTO.queue: PHOTO.handler(services)},
            heartbeat=self.heartbeat,
            summary=self.summary,
        )

    def computed(self, found: dict[str, Sequence[Face]]) -> list[AnyTask]:
        """Return a claimed task for each photo, with the faces that were found."""
        payloads = [json.dumps({"id": photo_id, "imageUrl": "https://h/a.jpg"}).encode() for photo_id in found]
        push(self.redis, payloads)
        tasks = self.settlement.accept(self.queue.claim(len(found)))
        for task, faces_of_photo in zip(tasks, found.values(), strict=True):
            task.faces = list(faces_of_photo)  # type: ignore[arg-type]  # made-up faces have the engine's attributes
        return tasks

    def outcomes(self) -> dict[str, int]:
        return {str(outcome): count for outcome, count in self.summary.outcomes.items() if count}


@pytest.fixture(params=["one database", "two databases"])
def bench(request: pytest.FixtureRequest, redis: Redis, database_url: str) -> Iterator[PhotoBench]:
    faces_url = database_url if request.param == "one database" else f"{database_url}?schema=public"
    with Runner(database_url, faces_url) as runner:
        bench = PhotoBench(redis, runner)
        with bench.heartbeat, bench.repository:
            yield bench
        bench.fetcher.close()


def dead_letters(redis: Redis) -> dict[str, tuple[str, int]]:
    """Return the error code and the number of attempts of each photo that is a dead letter."""
    payloads = places(redis).dead
    letters = DeadLetters(redis, PHOTO.queue).all()
    return {json.loads(payloads[letter.id])["id"]: (letter.code, letter.attempts) for letter in letters}


@pytest.mark.parametrize("factor", UNSTORABLE_FACTORS)
def test_photos_that_the_database_rejects_fail_alone_and_at_once(bench: PhotoBench, factor: float) -> None:
    ids = [f"p{number}" for number in range(8)]
    add_photos(bench.runner.api, ids, "PROCESSING")
    add_photos(bench.runner.api, ["was ready"], "READY")
    bench.runner.embeddings.replace({"was ready": faces(1)})
    bad = unstorable_face(factor)
    found: dict[str, Sequence[Face]] = {photo_id: faces(2, seed) for seed, photo_id in enumerate(ids)}
    tasks = bench.computed({**found, "p3": [*faces(1), bad], "p6": [bad], "was ready": [bad], "gone": [bad]})
    bench.settlement.conclude(tasks)
    refused = {"p3", "p6", "was ready"}
    assert bench.outcomes() == {"succeeded": 6, "dead_lettered": 3, "photo_gone": 1}
    assert dead_letters(bench.redis) == dict.fromkeys(refused, ("embeddings_rejected", 1))
    assert places(bench.redis).leased == {}
    assert statuses(bench.runner.api) == {
        **{photo_id: "FAILED" if photo_id in refused else "READY" for photo_id in ids},
        "was ready": "READY",
    }
    good = [photo_id for photo_id in ids if photo_id not in refused]
    assert stored_faces(bench.runner.faces) == [*((p, i) for p in good for i in range(2)), ("was ready", 0)]


def test_a_lease_that_is_lost_after_its_check_does_not_replace_a_failure(bench: PhotoBench) -> None:
    add_photos(bench.runner.api, ["a"], "FAILED")
    tasks = bench.computed({"a": faces(1)})
    bench.settlement.begin(tasks)
    assert statuses(bench.runner.api) == {"a": "PROCESSING"}, "its job was pushed again"
    bench.repository.store({"a": None}, lambda _: True)  # by the run that has taken the job over
    bench.heartbeat.remove(tasks[0].lease)
    bench.settlement._handlers[PHOTO.queue].begin(tasks)
    assert statuses(bench.runner.api) == {"a": "FAILED"}


def test_a_rejected_photo_whose_lease_is_lost_is_not_changed(bench: PhotoBench) -> None:
    add_photos(bench.runner.api, ["a", "b"], "PROCESSING")
    tasks = bench.computed({"a": [unstorable_face(3.0)], "b": faces(1)})
    pass_time(bench.redis, LEASE_SECONDS + 1)
    assert len(queue_of(bench.redis, "there/1").claim(2)) == 2
    bench.heartbeat.beat()
    before = places(bench.redis)
    bench.settlement.conclude(tasks)
    assert bench.outcomes() == {"lease_lost": 2}
    assert statuses(bench.runner.api) == {"a": "PROCESSING", "b": "PROCESSING"}
    assert places(bench.redis) == before
