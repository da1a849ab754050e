"""Totals: counters of all work so far, in one Redis hash per queue.

The scripts that claim and settle jobs also count them, in the same atomic step, so the totals are exact whatever is
killed, lost or repeated, and survive every pod. The fields are bounded: labels that are not known become "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from runner import errors
from runner.errors import JobError, PhotoGoneError, RunnerError
from runner.queue import keys
from runner.queue.scripts import refusals

if TYPE_CHECKING:  # `settings` imports this module
    from redis import Redis

# Field → its increment.
Tally: TypeAlias = Mapping[str, int]

OTHER = "other"
NO_CODE = ""
PHOTO_GONE = PhotoGoneError.code
SUCCEEDED, GONE, DEAD_LETTERED, FORGOTTEN = OUTCOMES = ("succeeded", "photo_gone", "dead_lettered", "forgotten")
RELEASED, ALBUM_PENDING, SERVER_FAILING = "released", "album_pending", "image_server_failing"
RELEASE_REASONS = (RELEASED, ALBUM_PENDING, SERVER_FAILING, OTHER)
STAGES = ("fetch", "decode", "faces", "match", "store")
PROVIDERS = ("cuda", "cpu", OTHER)
EXIT_REASONS = ("empty", "max_jobs", "max_seconds", "signal", "hung")

TAKEN, ATTEMPTS, LEASES_EXPIRED, LEASES_LOST = "taken", "attempts", "leases_expired", "leases_lost"
REQUEUES, FACES, RUNS_STARTED = "requeues", "faces", "runs_started"
SKIPPED = "skipped"  # jobs that left the list uncounted, as far as `sample.lua` has detected

# Upper bounds of the buckets in seconds; one more bucket has no bound.
_STAGE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
JOB, PHOTO_READY, START_UP = "job", "photo_ready", "start_up"
HISTOGRAMS: Mapping[str, tuple[float, ...]] = {
    JOB: (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
    PHOTO_READY: (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0),
    START_UP: (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
    **dict.fromkeys(STAGES, _STAGE_BOUNDS),
}
_MICROSECONDS = 1_000_000
_DIGITS = 19  # of the largest number that Redis can count to


def job_field(outcome: str, code: str = NO_CODE) -> str:
    """Return the field of jobs that have ended with an outcome and an error code."""
    return f"jobs:{outcome}:{_known(code, job_codes()) if code else NO_CODE}"


def retry_field(code: str) -> str:
    """Return the field of retries because of an error."""
    return f"retries:{_known(code, job_codes())}"


def release_field(reason: str) -> str:
    """Return the field of releases, deferrals and parkings for a reason."""
    return f"releases:{_known(reason, RELEASE_REASONS)}"


def run_field(reason: str) -> str:
    """Return the field of runs that have ended for a reason."""
    return f"runs:{_known(reason, exit_reasons())}"


def provider_field(provider: str) -> str:
    """Return the field of runs whose models run on an execution provider."""
    return f"providers:{_known(provider, PROVIDERS)}"


def observe(tally: Counter[str], histogram: str, seconds: float) -> None:
    """Add one observation of a histogram to `tally`. It is never negative, even if clocks disagree."""
    seconds = max(0.0, seconds)
    bounds = HISTOGRAMS[histogram]
    index = bisect_left(bounds, seconds)
    tally[bucket_field(histogram, bounds[index] if index < len(bounds) else None)] += 1
    tally[sum_field(histogram)] += round(seconds * _MICROSECONDS)


def bucket_field(histogram: str, bound: float | None) -> str:
    """Return the field of one bucket, which does not include the smaller ones; None is the bucket without a bound."""
    return f"{histogram}:le:{'inf' if bound is None else format(bound, 'g')}"


def sum_field(histogram: str) -> str:
    """Return the field with the sum of all observations, in microseconds."""
    return f"{histogram}:sum"


def sum_seconds(tally: Tally, histogram: str) -> float:
    """Return the sum of all observations of a histogram in seconds."""
    return tally.get(sum_field(histogram), 0) / _MICROSECONDS


def buckets(tally: Tally, histogram: str) -> list[int]:
    """Return the number of observations in each bucket of a histogram, the one without a bound last."""
    return [tally.get(bucket_field(histogram, bound), 0) for bound in (*HISTOGRAMS[histogram], None)]


@cache
def job_codes() -> tuple[str, ...]:
    """Return every error code with which a job can end, NO_CODE first and OTHER last."""
    return (NO_CODE, *dict.fromkeys(_codes(JobError)), OTHER)


@cache
def exit_reasons() -> tuple[str, ...]:
    """Return every reason for which a run can end, OTHER last."""
    return (*EXIT_REASONS, *dict.fromkeys(_codes(RunnerError)), OTHER)


@cache
def all_fields() -> tuple[str, ...]:
    """Return every field that a totals hash can have."""
    codes = job_codes()
    return (
        TAKEN, ATTEMPTS, LEASES_EXPIRED, LEASES_LOST, REQUEUES, FACES, RUNS_STARTED, SKIPPED,
        *(job_field(outcome, code) for outcome in OUTCOMES for code in codes),
        *(retry_field(code) for code in codes),
        *(release_field(reason) for reason in RELEASE_REASONS),
        *(run_field(reason) for reason in exit_reasons()),
        *(provider_field(provider) for provider in PROVIDERS),
        *(bucket_field(name, bound) for name, bounds in HISTOGRAMS.items() for bound in (*bounds, None)),
        *map(sum_field, HISTOGRAMS),
    )  # fmt: skip


@cache
def fault_codes() -> tuple[str, ...]:
    """Return the error codes with which jobs are dead-lettered."""
    return (*dict.fromkeys(_codes(JobError, lambda kind: kind.is_fault)), OTHER)


@cache
def transient_codes() -> tuple[str, ...]:
    """Return the error codes for which jobs are retried."""
    return tuple(dict.fromkeys(_codes(JobError, lambda kind: kind.transient)))


def decoded(values: Sequence[bytes | None]) -> Counter[str]:
    """Return the totals from values in the order of `all_fields`. Malformed values are ignored."""
    pairs = zip(all_fields(), values, strict=True)
    return Counter({field: int(value) for field, value in pairs if value and value.isdigit() and len(value) <= _DIGITS})


def read_totals(redis: Redis, name: str) -> Counter[str]:
    """Return the totals of a list. Raises `RedisRefusedError` if another program has written the key."""
    key = keys.totals(name)
    with refusals(f"reading {key}"):
        values = cast("list[bytes | None]", redis.hmget(key, list(all_fields())))
    return decoded(values)


def encode(tally: Tally) -> str:
    """Return a tally as the scripts take them: pairs of field and number, separated by spaces."""
    return " ".join(f"{field} {number}" for field, number in tally.items() if number)


def _known(label: str, known: tuple[str, ...]) -> str:
    return label if label in known else OTHER


def _codes(family: type[Any], chosen: Callable[[Any], bool] = lambda _: True) -> Iterator[str]:
    """Yield the chosen codes of a family of errors, without those of other modules, which may not be imported."""
    if family.__module__ != errors.__name__:
        return
    if ("code" in vars(family) or family is RunnerError) and chosen(family):
        yield family.code
    for below in family.__subclasses__():
        yield from _codes(below, chosen)
