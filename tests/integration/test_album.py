"""The album gate: when a comparison is answered, parked or deferred; no order of events leaves it parked."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from runner.faces.engine import Face
from runner.queue.leases import Lease, Parked, age
from runner.queue.parking import WAITED_FOR, Parking, PhotosAtWork, ProcessJobs
from runner.settings import load
from runner.store.repository import Repository
from runner.worker.album import STATE_BYTES, AlbumGate, Checks, Readiness, dump_state, load_faces
from runner.worker.messages import CompareJob
from runner.worker.task import Task
from tests.support.queue_tools import pass_time, places, push, queue_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

MODEL = "w600k_mbf"
TIMEOUT = 600.0


class Hooked:
    """Forwards everything, and calls `before` before each call to a server."""

    def __init__(self, target: Any, before: Callable[[], None]) -> None:
        self._target = target
        self._before = before

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._target, name)
        if not callable(real):
            return real

        def call(*args: Any, **more: Any) -> Any:
            self._before()
            return real(*args, **more)

        return call


class World:
    """Photos with statuses and process jobs, and comparisons that wait for them."""

    def __init__(self, redis: Redis, connection: psycopg.Connection, repository: Repository) -> None:
        self.redis = redis
        self.connection = connection
        self.before: Callable[[], None] = lambda: None
        self.repository = self._hooked(repository)
        self.client = self._hooked(redis)
        self.process = queue_of(redis, "process/1")
        self.compare = queue_of(self.client, "compare/1", name="compare")
        self.parking = Parking(self.client)
        self.gate = self.gate_of(self.parking)

    def _hooked(self, target: Any) -> Any:
        def before() -> None:
            self.before()

        return Hooked(target, before)

    def gate_of(self, parking: Parking | None, timeout_seconds: float = TIMEOUT) -> AlbumGate:
        jobs = ProcessJobs(self.client)
        return AlbumGate(lambda: self.repository, jobs, parking, model=MODEL, timeout_seconds=timeout_seconds)

    def photos(self, *ids: str, status: str = "UPLOADED") -> None:
        for photo_id in ids:
            self.connection.execute('INSERT INTO "Photo" (id, status) VALUES (%s, %s)', (photo_id, status))

    def set_status(self, photo_id: str, status: str) -> None:
        self.connection.execute('UPDATE "Photo" SET status = %s WHERE id = %s', (status, photo_id))

    def push(self, *ids: str) -> None:
        push(self.redis, [json.dumps({"id": one, "imageUrl": "http://h/x.jpg"}).encode() for one in ids])

    def comparison(self, *ids: str) -> Task[CompareJob]:
        push(self.redis, [b"selfie"], "compare")
        return self.claimed(*ids)

    def claimed(self, *ids: str) -> Task[CompareJob]:
        (lease,) = self.compare.claim(1)
        return Task(lease, CompareJob("job", ids, b"", 0.5))

    def decide(self, task: Task[CompareJob]) -> tuple[Readiness, int]:
        decision = self.gate.decide([task])[task]
        return decision.readiness, decision.pending

    def park(self, task: Task[CompareJob]) -> None:
        assert self.decide(task)[0] is Readiness.PARK
        assert self.compare.park(task.lease, "album_pending", b"state") is Parked.DONE


@pytest.fixture
def world(redis: Redis, redis_url: str, database_url: str) -> Iterator[World]:
    settings = load({"REDIS_URL": redis_url, "DATABASE_URL": database_url})
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        Repository(settings, MODEL, application_name="test") as repository,
    ):
        yield World(redis, connection, repository)


@pytest.mark.parametrize("status", ["READY", "FAILED", "NO_FACES_FOUND"])
def test_an_album_of_final_photos_is_answered_after_one_query(world: World, status: str) -> None:
    world.photos("a", status=status)
    task = world.comparison("a", "deleted")
    calls: list[None] = []
    world.before = lambda: calls.append(None)
    assert world.decide(task) == (Readiness.ANSWER, 0)
    assert len(calls) == 1


def test_photos_in_progress_park_a_comparison_until_the_last_is_reported(world: World) -> None:
    world.photos("a", "b", "c")
    world.set_status("a", "READY")
    world.push("b", "c", "other")
    world.process.claim(1)  # b is leased, c waits
    world.park(world.comparison("a", "b", "c"))
    assert (world.compare.counts().in_flight, world.compare.counts().parked) == (0, 1)
    assert world.compare.claim(1) == []
    assert world.parking.photos_done(["b", "x"]) == []
    (woken,) = world.parking.photos_done(["c"])
    (lease,) = world.compare.claim(1)
    assert (lease.id, lease.attempts, lease.state) == (woken, 1, b"state")


def test_photos_without_a_job_are_waited_for_during_two_checks_only(world: World) -> None:
    world.photos("a", "b")
    task = world.comparison("a", "b")
    first = world.gate.decide([task])[task]
    assert (first.readiness, first.pending, first.seconds) == (Readiness.DEFER, 2, 2.0)
    assert world.compare.release(
        task.lease, first.seconds, reason="album_pending", state=dump_state([_face(1)], first.checks, MODEL)
    )
    pass_time(world.redis, 2, "compare")
    again = world.claimed("a", "b")
    assert again.lease.attempts == 1
    assert world.decide(again) == (Readiness.ANSWER, 2)


def test_a_job_pushed_between_two_checks_is_waited_for(world: World) -> None:
    world.photos("a")
    world.push("other")
    world.process.claim(1)
    task = world.comparison("a")
    first = world.gate.decide([task])[task]
    world.compare.release(
        task.lease, first.seconds, reason="album_pending", state=dump_state([_face(1)], first.checks, MODEL)
    )
    pass_time(world.redis, 2, "compare")
    world.push("a")
    world.park(world.claimed("a"))


def test_without_a_live_runner_of_photos_a_comparison_is_deferred_with_growing_delays(world: World) -> None:
    world.photos("a")
    world.push("a")
    task = world.comparison("a")
    pauses = []
    for _ in range(6):
        decision = world.gate.decide([task])[task]
        assert decision.readiness is Readiness.DEFER
        pauses.append(decision.seconds)
        world.compare.release(
            task.lease, decision.seconds, reason="x", state=dump_state([_face(1)], decision.checks, MODEL)
        )
        pass_time(world.redis, decision.seconds, "compare")
        task = world.claimed("a")
    assert pauses == [2, 4, 8, 15, 15, 15]
    world.process.claim(1)
    world.park(task)


def test_after_its_timeout_a_comparison_is_answered_with_photos_pending(world: World) -> None:
    world.photos("a", "b")
    world.push("a", "b")
    world.process.claim(1)
    world.park(world.comparison("a", "b"))
    assert world.parking.wake_overdue() == []
    pass_time(world.redis, TIMEOUT - 1, "compare")
    assert world.parking.wake_overdue() == []
    pass_time(world.redis, 1, "compare")
    assert len(world.parking.wake_overdue()) == 1
    assert world.decide(world.claimed("a", "b")) == (Readiness.ANSWER, 2)


def test_a_timeout_of_zero_disables_waiting(world: World) -> None:
    world.photos("a")
    world.push("a")
    task = world.comparison("a")
    decision = world.gate_of(world.parking, 0.0).decide([task])[task]
    assert (decision.readiness, decision.pending) == (Readiness.ANSWER, 1)


def test_a_comparison_that_cannot_be_parked_is_deferred(world: World) -> None:
    world.photos("a")
    world.push("a")
    world.process.claim(1)
    task = world.comparison("a")
    assert world.gate_of(None).decide([task])[task].readiness is Readiness.DEFER


def test_a_comparison_whose_lease_is_lost_is_not_parked(world: World) -> None:
    world.photos("a")
    world.push("a")
    world.process.claim(1)
    task = world.comparison("a")
    pass_time(world.redis, 31, "compare")
    (other,) = queue_of(world.redis, "compare/2", name="compare").claim(1)
    assert world.decide(task) == (Readiness.LOST, 0)
    assert world.compare.park(task.lease, "album_pending", b"") is Parked.LOST
    assert world.compare.counts().parked == 0
    assert other.attempts == 2


def test_without_process_jobs_every_parked_comparison_is_woken(world: World) -> None:
    world.photos("a")
    world.push("a")
    (photo,) = world.process.claim(1)
    world.park(world.comparison("a"))
    assert world.parking.wake_stranded() == []
    world.process.acknowledge(photo)  # not reported: a failover has lost that write
    assert len(world.parking.wake_stranded()) == 1
    assert world.parking.wake_stranded() == []


def test_a_parked_comparison_waits_for_the_last_photos_of_a_large_album(world: World) -> None:
    ids = [f"photo-{number:04d}" for number in range(2500)]
    world.photos(*ids)
    world.push(*ids)
    world.process.claim(5)
    world.park(world.comparison(*ids))
    assert world.parking.photos_done(ids[-WAITED_FOR:-1]) == []
    assert len(world.parking.photos_done([ids[-1]])) == 1


@pytest.mark.parametrize("popped", [0, 1, 700, 1000, 2400])
def test_claims_and_pushes_during_a_scan_hide_no_job(world: World, popped: int) -> None:
    ids = [f"photo-{number:04d}" for number in range(2500)]
    world.push(*ids)
    steps = itertools.count()

    def move() -> None:
        if next(steps) == 1:  # between the first page and the second
            world.before = lambda: None
            world.process.claim(popped)
            world.push(*(f"new-{number}" for number in range(300)))

    world.before = move
    found = ProcessJobs(world.client).at_work(ids)
    assert found == PhotosAtWork(found.ids, is_alive=popped > 0)
    assert sorted(found.ids) == ids


def test_payloads_that_are_not_photo_jobs_are_skipped(world: World) -> None:
    payloads = [b"\xff", b"[1]", b"[" * 5000, b'{"id": 7}', b'{"id": "big", "x": "' + b"x" * 70_000 + b'"}', b"null"]
    push(world.redis, payloads)
    world.push("a")
    world.process.claim(3)
    assert ProcessJobs(world.redis).at_work(["a", "big", "7"]).ids == ("a",)


def test_no_order_of_events_leaves_a_comparison_waiting_for_a_final_photo(world: World) -> None:
    """A photo is stored, reported and acknowledged at any moment while a comparison checks its album."""
    calls = _calls_of_a_look(world)
    assert calls == 9
    seen = set()
    for moments in itertools.combinations_with_replacement(range(calls + 1), 3):
        outcome, at_work = _play(world, moments)
        seen.add(outcome)
        assert not places(world.redis, "compare").parked, (moments, outcome)
        assert at_work == [], moments
    assert seen == {"answered", "woken"}


def _calls_of_a_look(world: World) -> int:
    calls: list[None] = []
    _reset(world)
    task = world.comparison("a")
    world.before = lambda: calls.append(None)
    world.park(task)
    return len(calls)


def _reset(world: World) -> Lease:
    world.before = lambda: None
    world.redis.flushall()
    world.connection.execute('DELETE FROM "Photo"')
    world.photos("a")
    world.push("a")
    (photo,) = world.process.claim(1)
    return photo


def _play(world: World, moments: tuple[int, ...]) -> tuple[str, list[str]]:
    photo = _reset(world)
    steps: list[Callable[[], object]] = [
        lambda: world.set_status("a", "READY"),
        lambda: Parking(world.redis).photos_done(["a"]),
        lambda: world.process.acknowledge(photo),
    ]
    calls = itertools.count()

    def before() -> None:
        number = next(calls)
        for moment, step in zip(moments, steps, strict=True):
            if moment == number:
                step()

    task = world.comparison("a")
    world.before = before
    outcome = _look(world, task)
    done = next(calls)
    world.before = lambda: None
    for moment, step in zip(moments, steps, strict=True):
        if moment >= done:
            step()
    woken = world.compare.claim(1)
    if outcome == "parked":
        assert len(woken) == 1, "nobody has woken it"
        outcome = "woken"
    return outcome, list(ProcessJobs(world.redis).at_work(["a"]).ids)


def _look(world: World, task: Task[CompareJob]) -> str:
    while True:
        readiness, _ = world.decide(task)
        if readiness is Readiness.ANSWER:
            assert world.compare.acknowledge(task.lease)
            return "answered"
        if readiness is Readiness.DEFER:
            assert world.compare.release(task.lease, 0, reason="album_pending", state=b"")
            return "deferred"
        parked = world.compare.park(task.lease, "album_pending", b"")
        if parked is Parked.DONE:
            return "parked"
        assert parked is Parked.WOKEN


# The state of a waiting comparison


def _face(seed: int) -> Face:
    random = np.random.default_rng(seed)
    embedding = random.standard_normal(512).astype(np.float32)
    return Face(
        box=random.random(4).astype(np.float32),
        score=float(random.random(dtype=np.float32)),
        landmarks=random.random((5, 2)).astype(np.float32),
        embedding=embedding / np.linalg.norm(embedding),
    )


def test_faces_are_restored_bit_for_bit() -> None:
    faces = [_face(seed) for seed in range(5)]
    restored = load_faces(dump_state(faces, Checks(3, 1.5), MODEL), MODEL)
    assert restored is not None
    for before, after in zip(faces, restored, strict=True):
        assert after.score == before.score
        for name in ("box", "landmarks", "embedding"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def _damaged(state: bytes) -> Sequence[bytes]:
    header, _, data = state.partition(b"\n")
    return [
        b"", b"\n", b"\xff\n", b"[]\n", b"{}\n" + data, header, state[:-1], state + b"x",
        header.replace(b'"faces": 1', b'"faces": 0') + b"\n",
        header.replace(b'"width": 527', b'"width": 0') + b"\n",
        header.replace(b'"width": 527', b'"width": "x"') + b"\n" + data,
        b"[" * 100_000 + b"\n" + data,
    ]  # fmt: skip


def test_faces_from_a_malformed_state_or_another_model_are_computed_again() -> None:
    state = dump_state([_face(1)], Checks(1, 0.0), MODEL)
    assert load_faces(state, "another") is None
    for damaged in _damaged(state):
        assert load_faces(damaged, MODEL) is None


def test_the_size_of_a_state_is_bounded() -> None:
    state = dump_state([_face(1)] * 300, Checks(2, 0.5), MODEL)
    assert len(state) < 1000
    assert load_faces(state, MODEL) is None
    assert len(dump_state([_face(1)] * 248, Checks(), MODEL)) <= STATE_BYTES + 1000


def test_the_age_of_a_job_grows_after_its_claim() -> None:
    lease = Lease("id", "compare", b"", 1, claimed_at=time.monotonic() - 5, age_seconds=7)
    assert 11.9 < age(lease) < 13
