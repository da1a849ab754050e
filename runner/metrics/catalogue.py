"""All exposed metrics by name: their labels, and where their values come from. Nothing else may be exposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.queue import totals
from runner.queue.memory import POLICIES

PREFIX = "spottmee"
QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. `name` is without the suffix that its kind adds in the exposition (`_total`, `_bucket` …).

    Every metric has the label `queue`, unless `per_queue` is false. `labels` are the others.
    """

    name: str
    kind: str
    about: str
    labels: tuple[str, ...] = ()
    per_queue: bool = True

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of all labels, in the order of their values."""
        return ((QUEUE,) if self.per_queue else ()) + self.labels

    @property
    def sample(self) -> str:
        """Its name in queries."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _gauge(name: str, about: str, *labels: str, per_queue: bool = True) -> Metric:
    return Metric(f"{PREFIX}_{name}", "gauge", about, labels, per_queue)


def _counter(name: str, about: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}_{name}", "counter", about, labels)


def _histogram(name: str, about: str, *labels: str) -> Metric:
    return Metric(f"{PREFIX}_{name}", "histogram", about, labels)


UP = _gauge(
    "redis_up",
    "1 if Redis answered this scrape, else 0: then only this metric is exposed.",
    per_queue=False,
)
READ_SECONDS = _gauge("redis_read_seconds", "How long reading Redis took for this scrape.", per_queue=False)
MEMORY = _gauge(
    "redis_memory_used_bytes", "Memory that Redis uses; in a cluster, that of its fullest primary.", per_queue=False
)
MEMORY_LIMIT = _gauge(
    "redis_memory_limit_bytes", "maxmemory of Redis, 0 for none. Absent without +info, like the other two.",
    per_queue=False,
)  # fmt: skip
MEMORY_POLICY = _gauge("redis_eviction_policy", "1 for the maxmemory-policy of Redis.", "policy", per_queue=False)

WAITING = _gauge("jobs_waiting", "Jobs in the list, not yet claimed.")
LEASED = _gauge(
    "jobs_leased", "Jobs with a lease: claimed, or due again after a delay. KEDA counts these and the waiting jobs."
)
DUE = _gauge("leases_due", "Expired leases that no runner has claimed yet: retries, and jobs of dead runners.")
DEFERRED = _gauge(
    "jobs_deferred",
    "Leases without an owner: retries and comparisons that become due after a delay.",
)
PARKED = _gauge("jobs_parked", "Jobs that wait without a lease: for an album, or for an image server that fails.")
OLDEST = _gauge(
    "oldest_waiting_seconds",
    "How long the oldest job of the list has waited since it was first seen there; 0 without one.",
)
DEAD = _gauge("dead_letters", "Dead letters by error code.", "code")

ORPHANS = _gauge(
    "photos_without_job",
    "Photos that have been UPLOADED or PROCESSING for 15 minutes without a job, as counted by the last sweep.",
)

GAUGES = (WAITING, LEASED, DUE, DEFERRED, PARKED, OLDEST, DEAD, ORPHANS)

JOBS = _counter("jobs", "Jobs that have ended, by outcome and error code (empty for none).", "outcome", "code")
TAKEN = _counter("jobs_taken", "Jobs that have left the list.")
ATTEMPTS = _counter("attempts", "Attempts: claims that count towards RUNNER_MAX_ATTEMPTS.")
RETRIES = _counter("retries", "Retries after a delay, by error code.", "code")
RELEASES = _counter(
    "releases",
    "Jobs returned without counting the attempt, by reason; album_pending, image_server_failing: deferred or parked.",
    "reason",
)
EXPIRED = _counter(
    "leases_expired",
    "Leases that expired while a runner owned them: it died, or lost its connection.",
)
LOST = _counter("leases_lost", "Leases that a live runner lost to another one: its work was discarded.")
REQUEUES = _counter("requeues", "Dead letters whose jobs were returned to the list.")
FACES = _counter("faces", "Faces found in the images of succeeded jobs.")
RUNS_STARTED = _counter(
    "runs_started",
    "Runs that made their first claim. A run is counted in each queue that it serves.",
)
RUNS = _counter(
    "runs", "Runs that have ended, by reason: an exit reason or an error code. A killed run never ends.", "reason"
)
PROVIDERS = _counter("runs_loaded", "Runs that have loaded their models, by execution provider.", "provider")

# Metric → the field that holds its value, for those without labels.
PLAIN: Mapping[Metric, str] = {
    TAKEN: totals.TAKEN,
    ATTEMPTS: totals.ATTEMPTS,
    EXPIRED: totals.LEASES_EXPIRED,
    LOST: totals.LEASES_LOST,
    REQUEUES: totals.REQUEUES,
    FACES: totals.FACES,
    RUNS_STARTED: totals.RUNS_STARTED,
}

JOB_SECONDS = _histogram(
    "job_duration_seconds", "From when a job left the list to its end, including retries and waiting for the album."
)
PHOTO_SECONDS = _histogram(
    "photo_ready_seconds", "From the upload of a photo (created_at in the API's table) to READY."
)
STARTUP_SECONDS = _histogram(
    "startup_seconds", "From the start of a run's process until its model is loaded and the databases are checked."
)
STAGE_SECONDS = _histogram("stage_duration_seconds", "Time of one job in one stage.", "stage")

HISTOGRAMS: Mapping[Metric, str] = {
    JOB_SECONDS: totals.JOB,
    PHOTO_SECONDS: totals.PHOTO_READY,
    STARTUP_SECONDS: totals.START_UP,
}

METRICS = (
    UP, READ_SECONDS, MEMORY, MEMORY_LIMIT, MEMORY_POLICY, *GAUGES,
    JOBS, TAKEN, ATTEMPTS, RETRIES, RELEASES, EXPIRED, LOST, REQUEUES, FACES, RUNS_STARTED,
    RUNS, PROVIDERS, *HISTOGRAMS, STAGE_SECONDS,
)  # fmt: skip


def label_values(metric: Metric) -> Mapping[str, tuple[str, ...]]:
    """Return the possible values of each label, besides those of `queue`."""
    return {
        "outcome": totals.OUTCOMES,
        "code": totals.job_codes(),
        "reason": totals.RELEASE_REASONS if metric is RELEASES else totals.exit_reasons(),
        "provider": totals.PROVIDERS,
        "stage": totals.STAGES,
        "policy": POLICIES,
    }
