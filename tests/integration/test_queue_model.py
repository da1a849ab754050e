"""The protocol against a model: random interleavings of runners, crashes, expiries and clock steps.

Every rule does one thing to the real server and to the model, and after every step the keys in Redis must be what
the model says. `make queue-model` runs many more of them than `make test`.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runner.logs import LOGGER_NAME
from runner.queue import keys
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.heartbeat import Heartbeat
from runner.queue.leases import HORIZON_SECONDS, LeaseQueue, Parked
from runner.queue.parking import Parking
from runner.queue.totals import read_totals
from tests.support.queue_tools import NAME, pass_time, places, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from redis import Redis

    from runner.queue.leases import Lease

# Times of the model are multiples of 50 s, and an example takes a few seconds: what really passes meanwhile changes
# no comparison.
LEASE = 1000.0
STEPS = (50.0, 400.0, 500.0, 1000.0, 4000.0)
CLOCK_STEPS = (-100_000.0, -5000.0, -500.0, 500.0, 1000.0, 100_000.0)
MAX_ATTEMPTS = 3
DELAYS = (0.0, 250.0, 1500.0)
TIMEOUTS = (500.0, 2000.0)
PHOTOS = st.sampled_from(["photo-1", "photo-2", "photo-3"])
# Two pods of one Job, and a third runner that belongs to no Job.
PLACES = ("job/pod-a", "job/pod-b", "elsewhere")
WHICH = st.integers(0, 30)  # one of as many as there are
EXAMPLES = int(os.environ.get("SPOTTMEE_QUEUE_EXAMPLES", "200"))
STEP_COUNT = int(os.environ.get("SPOTTMEE_QUEUE_STEPS", "40"))


class Twice:
    """A client that sends scripts twice if requested, as after a lost reply."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.twice = False

    def eval(self, *args: Any) -> Any:
        if self.twice:
            self._client.eval(*args)
        return self._client.eval(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@dataclass(eq=False)
class Job:
    """A job in the model. `holder` is the claim that has it, empty after a retry or a release and while it is parked.

    `photos` is what it waits for until the moment `until`, once that is announced.
    """

    payload: bytes
    place: str = "waiting"  # leased, parked, dead, done, purged
    lease_id: str = ""
    attempts: int = 0
    holder: str = ""
    due: float = 0.0
    uncounted: bool = False
    alone: bool = False
    expired_letter: bool = False
    stored: int = 0
    since: float = 0.0
    until: float = 0.0
    photos: set[str] = field(default_factory=set)
    state: bytes = b""


@dataclass(eq=False)
class Process:
    """One process of a runner, and the leases it believes to hold. One that counts as dead may still be alive."""

    place: str
    queue: LeaseQueue
    heartbeat: Heartbeat
    owned: list[tuple[Lease, Job]] = field(default_factory=list)


class QueueMachine(RuleBasedStateMachine):
    """Runners that share one list."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self.redis: Any = redis
        self.client = Twice(redis)
        self.now = 0.0
        self.local = 0.0
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []
        self.totals = Counter[str]()
        self.orderly = True  # no step of Redis' clock, and no live process was replaced
        self.numbers = iter(range(10**9))
        self.processes = [self._process(place) for place in PLACES]
        self.zombies: list[Process] = []
        self.parking = Parking(self.client, NAME)  # type: ignore[arg-type]  # it forwards everything
        self.letters = DeadLetters(self.client, NAME)  # type: ignore[arg-type]  # it forwards everything

    def _process(self, place: str) -> Process:
        owner = f"{place}/{next(self.numbers)}"
        queue = queue_of(self.client, owner, lease_seconds=LEASE, max_attempts=MAX_ATTEMPTS)  # type: ignore[arg-type]  # it forwards everything
        return Process(place, queue, Heartbeat([queue], clock=lambda: self.local))

    # Events around the runners

    @initialize(count=st.integers(1, 6))
    def some_jobs(self, count: int) -> None:
        self.push(count)

    @rule(count=st.integers(1, 3))
    def push(self, count: int) -> None:
        for _ in range(count):
            job = Job(b"job-%d \xff" % next(self.numbers))
            self.jobs.append(job)
            self.waiting.append(job)
            self.redis.rpush(keys.list_key(NAME), job.payload)

    @rule(seconds=st.sampled_from(STEPS))
    def time_passes(self, seconds: float) -> None:
        self.local += seconds
        self.now += seconds
        pass_time(self.redis, seconds)

    @rule(seconds=st.sampled_from(CLOCK_STEPS))
    def the_clock_of_redis_steps(self, seconds: float) -> None:
        self.orderly = False
        self.now += seconds
        pass_time(self.redis, seconds)

    @rule(number=st.integers(0, 2))
    def crash(self, number: int) -> None:
        """A process dies with all its leases, and another replaces it."""
        dead = self.processes[number]
        self.zombies.append(dead)
        self.processes[number] = self._process(dead.place)

    # Actions of runners

    @rule(
        number=st.integers(0, 2),
        limit=st.integers(1, 4),
        in_flight=st.sampled_from([None, 0, 0, 2]),
        twice=st.booleans(),
    )
    def claim(self, number: int, limit: int, in_flight: int | None, twice: bool) -> None:
        process = self.processes[number]
        expected = self._expected(limit, in_flight)
        self.client.twice = twice
        leases = process.queue.claim(limit, in_flight=in_flight)
        self.client.twice = False
        process.heartbeat.add(leases, claimed_at=self.local)
        assert [lease.payload for lease in leases] == [job.payload for job in expected]
        for lease, job in zip(leases, expected, strict=True):
            if job.place == "leased":
                assert lease.id == job.lease_id
                alone = in_flight is not None and self._may_have_killed(job)
                assert lease.alone is alone
                job.attempts += 0 if job.uncounted or (alone and job.attempts == MAX_ATTEMPTS) else 1
                job.alone = alone
                self.totals.update(leases_expired=int(bool(job.holder)), attempts=int(not job.uncounted))
            else:
                assert self.waiting.pop(0) is job
                self.totals.update(taken=1, attempts=1)
                job.place, job.lease_id, job.attempts, job.since = "leased", lease.id, 1, self.now
            assert lease.state == job.state
            assert abs(lease.age_seconds - max(0.0, self.now - job.since)) < 45
            self._take(process, job, lease)

    def _expected(self, limit: int, in_flight: int | None) -> list[Job]:
        """Return the jobs that a claim must return, in order."""
        for job in self._leased():
            if job.due > self.now + HORIZON_SECONDS:
                job.due = self.now + LEASE
        expected: list[Job] = []
        due = [job for job in self._leased() if job.due <= self.now]
        for job in sorted(due, key=lambda job: (job.due, job.lease_id))[:limit]:
            alone = in_flight is not None and self._may_have_killed(job)
            if alone and (expected or in_flight):
                return expected
            expected.append(job)
            if alone:
                return expected
        return [*expected, *self.waiting[: limit - len(expected)]]

    @staticmethod
    def _may_have_killed(job: Job) -> bool:
        """Whether the next attempt is the last one, of a job whose runner died, and did not have it alone."""
        return job.attempts in {MAX_ATTEMPTS - 1, MAX_ATTEMPTS} and bool(job.holder) and not job.alone

    def _take(self, process: Process, job: Job, lease: Lease) -> None:
        assert lease.attempts == job.attempts
        assert lease.holder.startswith(f"{process.queue.owner}#")
        assert lease.holder != job.holder
        job.holder, job.due, job.uncounted = lease.holder, self.now + LEASE, False
        process.owned.append((lease, job))

    @rule(number=st.integers(0, 2))
    def beat(self, number: int) -> None:
        process = self.processes[number]
        process.heartbeat.beat()
        self._renewed(process)

    def _renewed(self, process: Process) -> None:
        """The model of a heartbeat: it renews the leases that the process has not lost."""
        for lease, job in process.owned:
            if self._owns(lease, job):
                job.due = self.now + LEASE

    @rule(number=st.integers(0, 2))
    def take_over(self, number: int) -> None:
        process = self.processes[number]
        if process.place.startswith("job/"):
            for job in self._leased():
                if job.holder.startswith("job/") and not job.holder.startswith(f"{process.queue.owner}#"):
                    self.orderly = False  # that process may live
                    job.due = min(job.due, self.now)
        process.queue.take_over()

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH)
    def store(self, which: int) -> None:
        """Something is stored if and only if the heartbeat says that the process still owns the lease."""
        process, lease, job = self._pick(which)
        self.local += 0.1
        known = (lease.id, lease.holder) in process.heartbeat._leases
        owned = process.heartbeat.still_owned(lease)
        note(f"store {lease.id} by {process.queue.owner}: {owned}")
        if known:
            self._renewed(process)  # it has queried Redis, for all its leases
        if owned:
            assert self._owns(lease, job), "something is stored after the lease was lost"
            job.stored += 1

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, twice=st.booleans())
    def acknowledge(self, which: int, twice: bool) -> None:
        process, lease, job = self._pick(which)
        if self._settled(process, lease, job, twice, lambda: process.queue.acknowledge(lease)):
            job.place, job.photos = "done", set()
            self.totals["jobs:succeeded:"] += 1

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, delay=st.sampled_from(DELAYS), twice=st.booleans())
    def retry(self, which: int, delay: float, twice: bool) -> None:
        process, lease, job = self._pick(which)
        if self._settled(process, lease, job, twice, lambda: process.queue.retry(lease, delay, "fetch_failed")):
            job.due, job.uncounted = self.now + delay, False
            self.totals["retries:fetch_failed"] += 1

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, twice=st.booleans())
    def release(self, which: int, twice: bool) -> None:
        process, lease, job = self._pick(which)
        if self._settled(process, lease, job, twice, lambda: process.queue.release(lease)):
            job.due, job.uncounted = self.now, True
            self.totals["releases:released"] += 1

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, delay=st.sampled_from(DELAYS), twice=st.booleans())
    def defer(self, which: int, delay: float, twice: bool) -> None:
        process, lease, job = self._pick(which)
        state = b"state %d \xff\n" % next(self.numbers)
        settle = lambda: process.queue.release(lease, delay, reason="album_pending", state=state)  # noqa: E731 - one of several
        if self._settled(process, lease, job, twice, settle):
            job.due, job.uncounted, job.state = self.now + delay, True, state
            self.totals["releases:album_pending"] += 1

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, photos=st.sets(PHOTOS, min_size=1), seconds=st.sampled_from(TIMEOUTS), twice=st.booleans())
    def announce(self, which: int, photos: set[str], seconds: float, twice: bool) -> None:
        _, lease, job = self._pick(which)
        self.client.twice = twice
        done = self.parking.announce(lease, sorted(photos), seconds)
        self.client.twice = False
        assert done is self._owns(lease, job)
        if done:
            job.photos, job.until = set(photos), job.since + seconds

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, twice=st.booleans())
    def park(self, which: int, twice: bool) -> None:
        process, lease, job = self._pick(which)
        state = b"state %d" % next(self.numbers)
        expected = Parked.LOST
        if self._owns(lease, job):
            expected = Parked.DONE if job.photos else Parked.WOKEN
        self.client.twice = twice
        assert process.queue.park(lease, "album_pending", state) is expected
        self.client.twice = False
        if expected is Parked.WOKEN:
            return
        process.heartbeat.remove(lease)
        process.owned.remove((lease, job))
        if expected is Parked.DONE:
            job.place, job.holder, job.uncounted, job.state = "parked", "", True, state
            self.totals["releases:album_pending"] += 1

    @rule(photos=st.sets(PHOTOS))
    def photos_are_done(self, photos: set[str]) -> None:
        """A process job is settled somewhere, or (with no photo) a run wakes comparisons that have timed out."""
        woken = set()
        for job in self._announced():
            job.photos -= photos
            left = job.until - self.now
            if not job.photos or left <= 0 or left > HORIZON_SECONDS:
                woken |= self._woken(job)
        assert set(self.parking.photos_done(sorted(photos))) == woken

    @rule()
    def wake_stranded(self) -> None:
        """Nothing is stranded while there are process jobs, as the parked ones of this model are."""
        assert self.parking.wake_stranded() == []

    def _woken(self, job: Job) -> set[str]:
        job.photos = set()
        if job.place != "parked":
            return set()
        job.place, job.due = "leased", self.now
        return {job.lease_id}

    @precondition(lambda self: self._all_owned())
    @rule(which=WHICH, twice=st.booleans())
    def dead_letter(self, which: int, twice: bool) -> None:
        process, lease, job = self._pick(which)
        if self._settled(
            process, lease, job, twice, lambda: process.queue.dead_letter(lease, "image_missing", "\ud800")
        ):
            job.place, job.photos = "dead", set()
            self.totals["jobs:dead_lettered:image_missing"] += 1

    def _settled(self, process: Process, lease: Lease, job: Job, twice: bool, settle: Callable[[], bool]) -> bool:
        owned = self._owns(lease, job)
        self.client.twice = twice
        done = settle()
        self.client.twice = False
        note(f"{lease.id} by {process.queue.owner}: {done}")
        assert done is owned, "only the holder of the lease settles it"
        process.heartbeat.remove(lease)
        process.owned.remove((lease, job))
        if owned:
            job.holder = ""
        return owned

    # Actions of operators

    @precondition(lambda self: self._dead())
    @rule(which=WHICH, what=st.sampled_from(["requeue", "purge", "expire"]), twice=st.booleans())
    def letter(self, which: int, what: str, twice: bool) -> None:
        job = self._dead()[which % len(self._dead())]
        self.client.twice = twice
        if what == "expire":
            self.redis.delete(keys.dead_payload(NAME, job.lease_id))
            job.expired_letter = True
        elif what == "purge":
            assert self.letters.purge(job.lease_id) is True
            job.place = "purged"
        else:
            found = self.letters.requeue(job.lease_id)
            assert found is (Requeued.EXPIRED if job.expired_letter else Requeued.DONE)
            if found is Requeued.DONE:
                fresh = Job(job.payload, stored=job.stored)
                self.jobs[self.jobs.index(job)] = fresh
                self.waiting.append(fresh)
                job.place, job.holder = "requeued", ""
                self.totals["requeues"] += 1
        self.client.twice = False

    # Invariants

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        found = places(self.redis)
        assert found.waiting == [job.payload for job in self.waiting]
        assert found.leased == {job.lease_id: job.payload for job in self._leased()}
        assert found.parked == {job.lease_id: job.payload for job in self._parked()}
        assert found.dead == {job.lease_id: b"" if job.expired_letter else job.payload for job in self._dead()}
        ended = [job.payload for job in self.jobs if job.place in ("done", "purged")]
        kept = [job.payload for job in self._dead() if job.expired_letter]
        assert sorted([*(one for one in found.all if one), *kept, *ended]) == sorted(job.payload for job in self.jobs)

    @invariant()
    def attempts_and_holders_are_the_models(self) -> None:
        """The model's attempts only grow, so those in Redis never fall."""
        claimed = self.redis.hgetall(keys.claimed(NAME))
        for job in [*self._leased(), *self._parked()]:
            names = ("attempts", "holder", "uncounted", "alone", "state")
            stored = {name: claimed.get(f"{job.lease_id}:{name}".encode()) for name in names}
            assert stored == {
                "attempts": b"%d" % job.attempts,
                "holder": job.holder.encode(),
                "uncounted": b"1" if job.uncounted else None,
                "alone": b"1" if job.alone else None,
                "state": job.state or None,
            }

    @invariant()
    def everything_is_counted_once(self) -> None:
        assert +read_totals(self.redis, NAME) == +self.totals

    @invariant()
    def a_job_waits_for_the_photos_of_the_model(self) -> None:
        scores = dict(self.redis.zrange(keys.parked(NAME), 0, -1, withscores=True))
        assert {raw.decode() for raw in scores} == {job.lease_id for job in self._announced()}
        moment = time.time()
        for job in self._announced():
            found = {raw.decode() for raw in self.redis.smembers(keys.pending(NAME, job.lease_id))}
            assert found == job.photos
            assert abs(scores[job.lease_id.encode()] / 1000 - moment - (job.until - self.now)) < 45

    @invariant()
    def leases_end_when_the_model_says(self) -> None:
        scores = dict(self.redis.zrange(keys.leases(NAME), 0, -1, withscores=True))
        moment = time.time()
        for job in self._leased():
            left = scores[job.lease_id.encode()] / 1000 - moment
            assert abs(left - (job.due - self.now)) < 45, (left, job.due - self.now)
            # Real time that has passed is subtracted: it would decide which of two leases comes first.
            due = round((moment + job.due - self.now) * 1000) - 5
            self.redis.zadd(keys.leases(NAME), {job.lease_id: due})

    @invariant()
    def the_queue_tells_the_same(self) -> None:
        counts = self.processes[0].queue.counts()
        due = [job for job in self._leased() if job.due <= self.now]
        actual = (counts.waiting, counts.in_flight, counts.expired, counts.dead_letters, counts.parked)
        assert actual == (
            len(self.waiting), len(self._leased()), len(due), len(self._dead()), len(self._announced()),
        )  # fmt: skip

    @invariant()
    def where_clocks_agree_the_local_one_is_enough(self) -> None:
        """Without Redis, a lease counts as lost before another process can claim the job."""
        if not self.orderly:
            return
        for process in [*self.processes, *self.zombies]:
            for entry in process.heartbeat._leases.values():
                if self.local < entry.until:
                    job = next(job for lease, job in process.owned if lease == entry.lease)
                    assert self._owns(entry.lease, job)

    def teardown(self) -> None:
        """Every runner dies: a later one claims every unfinished job."""
        pass_time(self.redis, 10 * HORIZON_SECONDS)
        heir, found = queue_of(self.redis, "heir", lease_seconds=LEASE), []
        heir.claim(1)  # repairs expiries that are far ahead because the clock was set back
        pass_time(self.redis, 10 * HORIZON_SECONDS)
        self.parking.wake_overdue()
        while leases := heir.claim(3):
            found += [lease.payload for lease in leases]
            assert heir.acknowledge_many(leases) == set()
        left = [job.payload for job in self.jobs if job.place in ("waiting", "leased", "parked")]
        assert sorted(found) == sorted(left)

    def _leased(self) -> list[Job]:
        return [job for job in self.jobs if job.place == "leased"]

    def _parked(self) -> list[Job]:
        return [job for job in self.jobs if job.place == "parked"]

    def _announced(self) -> list[Job]:
        return [job for job in self.jobs if job.photos]

    def _dead(self) -> list[Job]:
        return [job for job in self.jobs if job.place == "dead"]

    def _all_owned(self) -> list[tuple[Process, Lease, Job]]:
        every = [*self.processes, *self.zombies]
        return [(process, lease, job) for process in every for lease, job in process.owned]

    def _pick(self, which: int) -> tuple[Process, Lease, Job]:
        owned = self._all_owned()
        return owned[which % len(owned)]

    @staticmethod
    def _owns(lease: Lease, job: Job) -> bool:
        return job.place == "leased" and job.holder == lease.holder


def test_the_queue_behaves_as_its_model(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = iter(
        f"{number:012d}" for number in range(10**9)
    )  # of two leases that expire together, the smaller id is first
    monkeypatch.setattr("runner.queue.leases._request_id", lambda: next(requests))
    caplog.set_level(logging.CRITICAL, LOGGER_NAME)  # thousands of lost leases
    run_state_machine_as_test(
        lambda: QueueMachine(redis),  # type: ignore[arg-type]  # any factory does
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEP_COUNT,
            deadline=None,
            # The short run is the same each time; the long one differs each time.
            derandomize="SPOTTMEE_QUEUE_EXAMPLES" not in os.environ,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
