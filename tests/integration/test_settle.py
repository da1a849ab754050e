"""The settler on a real list: every lease that is held ends in one way, and no job decides over another's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from runner.errors import (
    DatabaseUnreachableError,
    FetchError,
    ImageMissingError,
    JobError,
    PhotoGoneError,
    UnexpectedJobError,
)
from runner.queue.dead_letters import DeadLetters
from runner.queue.heartbeat import Heartbeat
from runner.settings import Settings, load
from runner.worker.settlement import Settler
from runner.worker.summary import Summary
from runner.worker.task import Conclusion, Task
from tests.support.queue_tools import LEASE_SECONDS, NAME, pass_time, places, push, queue_of

if TYPE_CHECKING:
    from redis import Redis

AnyTask = Task[Any]


class Recorder:
    """A handler that does what it is told: `refuse` raises for the payloads that a batch must not contain."""

    def __init__(self) -> None:
        self.refuse: Callable[[AnyTask], Exception | None] = lambda _: None
        self.conclusion = Conclusion.DONE
        self.batches: list[list[bytes]] = []
        self.stored: dict[bytes, str | None] = {}
        self.watched: list[AnyTask] = []

    def _meet(self, tasks: Sequence[AnyTask]) -> None:
        self.batches.append([task.lease.payload for task in tasks])
        for task in tasks:
            if (error := self.refuse(task)) is not None:
                raise error

    def decode(self, payload: bytes) -> bytes:
        """Every payload is a job."""
        return payload

    def begin(self, tasks: Sequence[AnyTask]) -> None:
        self._meet(tasks)

    def read(self, task: AnyTask) -> bytes:
        return task.lease.payload

    def conclude(self, tasks: Sequence[AnyTask]) -> dict[AnyTask, Conclusion]:
        self._meet(tasks)
        self.stored |= {task.lease.payload: task.error.word if task.error else None for task in tasks}
        if self.conclusion is Conclusion.UNCONFIRMED:
            self.watched += tasks
        return dict.fromkeys(tasks, self.conclusion)

    def confirmed(self) -> list[AnyTask]:
        return []

    def stop_watching(self) -> list[AnyTask]:
        watched, self.watched = self.watched, []
        return watched


class Bench:
    """A settler with its list, as a run has it."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.queue = queue_of(redis, "here/1")
        self.handler = Recorder()
        self.summary = Summary()
        self.heartbeat = Heartbeat([self.queue])
        self.settler = Settler(
            settings,
            queues={NAME: self.queue},
            handlers={NAME: self.handler},
            heartbeat=self.heartbeat,
            summary=self.summary,
        )

    def held(self, *payloads: bytes, attempt: int = 1) -> list[AnyTask]:
        """Push the payloads and claim them as their `attempt`th."""
        push(self.redis, payloads)
        for _ in range(attempt - 1):
            for lease in self.queue.claim(len(payloads)):
                assert self.queue.retry(lease, 0, "earlier")
        return self.settler.hold(self.queue.claim(len(payloads)))

    def endings(self) -> dict[str, int]:
        assert self.summary.unsettled >= 0
        return {str(ending): count for ending, count in self.summary.endings.items() if count}

    def dead(self) -> dict[str, int]:
        """Return reason → attempts of the dead letters."""
        return {letter.reason: letter.attempts for letter in DeadLetters(self.redis, NAME).all()}


@pytest.fixture
def bench(redis: Redis) -> Iterator[Bench]:
    settings = load({"REDIS_URL": "redis://h/0", "DATABASE_URL": "postgresql://h/d"})
    bench = Bench(redis, settings)
    with bench.heartbeat:
        yield bench


def _bad(error: Exception) -> Callable[[AnyTask], Exception | None]:
    return lambda task: error if task.lease.payload == b"bad" else None


def test_one_job_that_cannot_be_begun_leaves_the_others_alone(bench: Bench) -> None:
    tasks = bench.held(b"a", b"bad", b"c")
    bench.handler.refuse = _bad(ValueError("secret"))
    bench.settler.begin(NAME, bench.settler.decode(NAME, tasks))
    assert [type(task.error) for task in tasks] == [type(None), UnexpectedJobError, type(None)]
    assert "secret" not in str(tasks[1].error)
    assert bench.handler.batches == [[b"a", b"bad", b"c"], [b"a"], [b"bad"], [b"c"]]


def test_one_job_that_cannot_be_stored_is_retried_and_the_others_are_done(bench: Bench) -> None:
    tasks = bench.held(b"a", b"bad", b"c")
    bench.handler.refuse = _bad(ValueError())
    bench.settler.conclude(tasks)
    assert bench.endings() == {"succeeded": 2, "retried": 1}
    assert list(places(bench.redis).leased.values()) == [b"bad"]
    assert bench.handler.stored == {b"a": None, b"c": None}


def test_at_its_last_attempt_it_is_stored_as_failed_and_buried(bench: Bench) -> None:
    tasks = bench.held(b"a", b"bad", attempt=3)
    bench.handler.refuse = lambda task: ValueError() if task.lease.payload == b"bad" and task.error is None else None
    bench.settler.conclude(tasks)
    assert bench.endings() == {"succeeded": 1, "buried": 1}
    assert bench.handler.stored == {b"a": None, b"bad": "unexpected"}
    assert bench.dead() == {"unexpected": 3}


def test_what_cannot_even_be_stored_as_failed_is_buried_all_the_same(bench: Bench) -> None:
    tasks = bench.held(b"bad", attempt=3)
    bench.handler.refuse = _bad(ValueError())
    bench.settler.conclude(tasks)
    assert bench.endings() == {"buried": 1}
    assert places(bench.redis).leased == {}


@pytest.mark.parametrize(
    ("error", "attempt", "endings", "dead"),
    [
        (FetchError("500"), 1, {"retried": 1}, {}),
        (FetchError("500"), 2, {"retried": 1}, {}),
        (FetchError("500"), 3, {"buried": 1}, {"fetch_failed": 3}),
        (ImageMissingError(), 1, {"buried": 1}, {"image_missing": 1}),
        (PhotoGoneError(), 1, {"succeeded": 1}, {}),
    ],
)
def test_what_becomes_of_a_failure(
    bench: Bench, error: JobError, attempt: int, endings: dict[str, int], dead: dict[str, int]
) -> None:
    (task,) = bench.held(b"job", attempt=attempt)
    task.error = error
    bench.settler.conclude([task])
    assert bench.endings() == endings
    assert bench.dead() == dead
    assert bench.handler.stored == ({} if "retried" in endings else {b"job": error.word})


def test_a_job_that_has_ended_its_runners_is_not_begun_again(bench: Bench) -> None:
    (task,) = bench.held(b"job", attempt=4)
    assert bench.settler.decode(NAME, [task]) == []
    assert task.error is not None
    assert task.error.word == "too_many_attempts"


def test_an_error_that_ends_the_run_leaves_everything_to_be_given_back(bench: Bench) -> None:
    tasks = bench.held(b"a", b"b", b"c", b"d")
    bench.handler.conclusion = Conclusion.UNCONFIRMED
    bench.settler.conclude(tasks[:1])  # an answer under watch: it is done, and its lease is not given back
    bench.handler.refuse = lambda _: DatabaseUnreachableError("gone")
    with pytest.raises(DatabaseUnreachableError):
        bench.settler.conclude(tasks[1:3])
    with pytest.raises(DatabaseUnreachableError):
        bench.settler.begin(NAME, tasks[3:])
    bench.settler.abandon()
    assert bench.endings() == {"succeeded": 1, "released": 3}
    assert bench.summary.unsettled == 0
    again = queue_of(bench.redis, "there/1").claim(5)
    assert sorted((lease.payload, lease.attempts) for lease in again) == [(b"b", 1), (b"c", 1), (b"d", 1)]


def test_a_lease_that_another_runner_has_is_lost_and_nothing_of_it_changed(bench: Bench) -> None:
    tasks = bench.held(b"a", b"b", b"c")
    pass_time(bench.redis, LEASE_SECONDS + 1)
    assert len(queue_of(bench.redis, "there/1").claim(3)) == 3
    tasks[1].error, tasks[2].error = FetchError("500"), ImageMissingError()
    before = places(bench.redis)
    bench.settler.conclude(tasks)
    assert bench.endings() == {"lost": 3}
    assert places(bench.redis) == before


def test_what_is_known_to_be_lost_is_not_begun(bench: Bench) -> None:
    kept, lost = bench.held(b"a", b"b")
    pass_time(bench.redis, LEASE_SECONDS + 1)
    while queue_of(bench.redis, "there/1").claim(1)[0].payload != b"b":
        pass
    bench.heartbeat.beat()
    assert bench.settler.dropped(lost)
    assert bench.endings()["lost"] == 1
    del kept


def test_given_back_from_another_thread_a_job_still_ends_once(bench: Bench) -> None:
    for round_ in range(20):
        tasks = bench.held(*(f"{round_}-{number}".encode() for number in range(8)))
        giving = threading.Thread(target=bench.settler.abandon)
        giving.start()
        bench.settler.conclude(tasks)
        giving.join()
        assert bench.summary.unsettled == 0
        for lease in bench.queue.claim(100):
            bench.queue.acknowledge(lease)


def test_due_retries_of_its_own_are_counted_once(bench: Bench) -> None:
    tasks = bench.held(b"a", b"b")
    for task in tasks:
        task.error = FetchError("500")
    bench.settler.conclude(tasks)
    assert bench.settler.take_due_retries() == 0
    waits = bench.settler.next_own_retry()
    assert waits is not None
    assert 0 < waits <= 2
    pass_time(bench.redis, 10)
    again = bench.settler.hold(bench.queue.claim(1))
    assert [task.again for task in again] == [True]
    bench.settler._own_retries = dict.fromkeys(bench.settler._own_retries, 0.0)  # the other is due now
    assert bench.settler.take_due_retries() == 1
    assert bench.settler.take_due_retries() == 0
