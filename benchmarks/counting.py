"""What counting the totals costs: the queue's scripts with and without it, as a share of an album's processing time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from redis import Redis

from benchmarks import material
from benchmarks.figures import Row, Spread, Target
from benchmarks.world import BenchmarkError, World, served
from runner.queue import keys, scripts, totals
from runner.queue.leases import LeaseQueue
from runner.worker.task import Outcome, Task
from runner.worker.totals import job_tally

PART = "counting"
JOBS = 2000
BATCH = 8  # as a run stores and acknowledges them
LARGEST_SHARE = 1.0
_HEAD = "local function count(totals, counts)\n"


def measure(world: World, rounds: int) -> list[Row]:
    """Return the row of this part."""
    images = {photo.name: photo.data for photo in material.album().photos}
    shares, each = [], []
    with served(images) as server:
        for _ in range(rounds):
            world.empty()
            world.api.upload({name: server.url(name) for name in images})
            a_job = world.run_ours(len(images)).seconds / len(images)
            with_it = min(_seconds_per_job(world.redis) for _ in range(3))
            with _without_counting():
                without = min(_seconds_per_job(world.redis, counted=False) for _ in range(3))
            each.append(1e6 * (with_it - without))
            shares.append(100 * (with_it - without) / a_job)
    world.empty()
    about = f"the totals: claims and acknowledgements of {JOBS:,} jobs with and without counting, per job"
    share = "the same, as a share of what the sample album takes per photo"
    return [
        Row(PART, about, "µs", Spread.of(each)),
        Row(PART, share, "%", Spread.of(shares), target=Target("≤", LARGEST_SHARE)),
    ]


def _seconds_per_job(redis: Redis, *, counted: bool = True) -> float:
    """Return the seconds per job that the queue alone takes, with or without the totals."""
    redis.flushall()
    for _ in range(JOBS // 100):
        redis.rpush(
            keys.list_key("process"), *[b'{"id": "photo", "imageUrl": "https://images.example/photo.jpg"}'] * 100
        )
    queue = LeaseQueue(redis, "process", owner="job/pod/process", lease_seconds=30, max_attempts=3)
    started = time.perf_counter()
    while leases := queue.claim(BATCH, in_flight=0):
        tasks: Sequence[Task[None]] = [Task(lease, stages=dict.fromkeys(totals.STAGES, 0.05)) for lease in leases]
        queue.acknowledge_many(leases, [job_tally(task, Outcome.SUCCEEDED) for task in tasks] if counted else ())
    return (time.perf_counter() - started) / JOBS


@contextmanager
def _without_counting() -> Iterator[None]:
    """Disable counting in the queue's scripts within the block."""
    source = scripts._source
    if _HEAD not in source("common"):
        raise BenchmarkError("the scripts no longer count as this benchmark expects: adapt it")

    def without(name: str) -> str:
        return source(name).replace(_HEAD, f"{_HEAD}    if totals then return end\n")

    scripts._source = without
    scripts._text.cache_clear()
    try:
        yield
    finally:
        scripts._source = source
        scripts._text.cache_clear()
