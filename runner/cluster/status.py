"""The status that `spottmee-worker status` shows: the lists in Redis, and the objects in the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.cli.output import columns, duration
from runner.cluster.api import APP, NAME_LABEL, RELEASE_LABEL, Cluster, NotFoundError, Object
from runner.cluster.objects import JobState, PodState, ScaledJobState, job_state, pod_state, scaled_job_state
from runner.cluster.photos import PhotoState
from runner.cluster.queues import QueueState
from runner.errors import ClusterError, RunnerError


@dataclass
class ClusterState:
    """The objects of the releases in one namespace; `notes` says which could not be listed, and why."""

    name: str
    namespace: str
    scaled_jobs: list[ScaledJobState] = field(default_factory=list)
    jobs: list[JobState] = field(default_factory=list)
    pods: list[PodState] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Status:
    """The state of Redis and of the cluster; for one that is missing, the error that explains it."""

    queues: list[QueueState] = field(default_factory=list)
    redis_error: RunnerError | None = None
    photos: PhotoState | None = None
    photos_error: RunnerError | None = None
    cluster: ClusterState | None = None
    cluster_error: ClusterError | None = None

    def document(self) -> dict[str, object]:
        """Return what is printed with --json."""
        return {
            "queues": {state.name: {**asdict(state)} for state in self.queues},
            "redis_error": self.redis_error.document() if self.redis_error else None,
            "photos": asdict(self.photos) if self.photos else None,
            "photos_error": self.photos_error.document() if self.photos_error else None,
            "cluster": asdict(self.cluster) if self.cluster else None,
            "cluster_error": self.cluster_error.document() if self.cluster_error else None,
        }


def read_cluster(cluster: Cluster, release: str | None) -> ClusterState:
    """Return the objects of one release, or of all releases in the namespace.

    A kind of object that cannot be listed becomes a note. Raises `ClusterError` if none can be listed.
    """
    selector = {NAME_LABEL: APP, **({RELEASE_LABEL: release} if release else {})}
    state = ClusterState(cluster.name, cluster.namespace)
    errors: list[ClusterError] = []

    def listed(function: Callable[[dict[str, str]], list[Object]], convert: Callable[[Object], Any]) -> list[Any]:
        try:
            return [convert(item) for item in function(selector)]
        except NotFoundError:
            state.notes.append("KEDA is not installed in this cluster: there are no ScaledJobs")
        except ClusterError as error:
            errors.append(error)
            state.notes.append(error.detail)
        return []

    state.jobs = listed(cluster.jobs, job_state)
    if errors and "cannot be reached" in errors[0].detail:
        raise errors[0]
    state.pods = listed(cluster.pods, pod_state)
    state.scaled_jobs = listed(cluster.scaled_jobs, scaled_job_state)
    if len(errors) == len((state.jobs, state.pods, state.scaled_jobs)):
        raise errors[0]
    for items in (state.jobs, state.pods):
        items.sort(key=lambda item: item.age_seconds or 0.0)
    return state


def lines(status: Status) -> Iterator[str]:
    """Yield the status as plain text."""
    queues = ("QUEUE", "WAITING", "IN FLIGHT", "EXPIRED", "PARKED", "DEAD", "OLDEST LEASE", "RUNNERS")
    yield from columns([queues, *queue_rows(status)])
    if status.redis_error:
        yield f"queues: {status.redis_error}"
    if status.photos:
        yield str(status.photos)
    if status.photos_error:
        yield f"photos: {status.photos_error}"
    cluster = status.cluster
    if cluster is None:
        yield f"cluster: {status.cluster_error}"
        return
    yield ""
    yield f"namespace {cluster.namespace} of {cluster.name}"
    for heading, rows in sections(cluster):
        if rows:
            yield from columns([heading, *rows])
    if not (cluster.jobs or cluster.pods or cluster.scaled_jobs):
        yield f"  no object has the label {NAME_LABEL}={APP}: is the chart installed in this namespace?"
    yield from (f"  {note}" for note in cluster.notes)


def queue_rows(status: Status) -> list[Sequence[str]]:
    """Return a row for every queue."""
    return [
        (
            state.name,
            str(state.waiting),
            str(state.in_flight),
            str(state.expired),
            str(state.parked),
            str(state.dead_letters),
            duration(state.oldest_lease_seconds),
            ", ".join(f"{owner} ({count})" for owner, count in state.leases_by_runner.items()) or "-",
        )
        for state in status.queues
    ]


def sections(cluster: ClusterState) -> Iterator[tuple[Sequence[str], list[Sequence[str]]]]:
    """Yield heading and rows of ScaledJobs, Jobs and pods."""
    yield (
        ("SCALEDJOB", "CONDITIONS"),
        [(item.name, ", ".join(f"{k}={v}" for k, v in item.conditions.items()) or "none yet")
         for item in cluster.scaled_jobs],
    )  # fmt: skip
    yield (
        ("JOB", "PHASE", "PODS", "AGE", "REASON"),
        [(item.name, item.phase, f"{item.active} active, {item.succeeded} succeeded, {item.failed} failed",
          duration(item.age_seconds), item.reason)
         for item in cluster.jobs],
    )  # fmt: skip
    yield (
        ("POD", "PHASE", "NODE", "AGE", "REASON"),
        [(item.name, item.phase, item.node or "-", duration(item.age_seconds), item.reason) for item in cluster.pods],
    )
