"""A Job made from the chart's suspended CronJob: created, followed to its end, and deleted."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Self

from runner.cluster.api import APP, COMPONENT_LABEL, JOB_NAME_LABEL, NAME_LABEL, RELEASE_LABEL, Cluster, Object
from runner.cluster.objects import JobState, PodState, job_state, pod_state, waiting_reason
from runner.errors import ClusterError

COMPONENT = "debug"
DEADLINE_SECONDS = 900
RETENTION_SECONDS = 600
POLL_SECONDS = 0.5
_NAME_BYTES = 63  # the Job's name becomes a label value of its pods

Say = Callable[[str], None]


def find_template(cluster: Cluster, release: str | None) -> Object:
    """Return the CronJob that the chart installed for debug runs. Raises `ClusterError` unless there is exactly one."""
    selector = {NAME_LABEL: APP, COMPONENT_LABEL: COMPONENT, **({RELEASE_LABEL: release} if release else {})}
    found = cluster.cron_jobs(selector)
    place = f"namespace {cluster.namespace} of {cluster.name}"
    if not found:
        wanted = f" of release {release}" if release else ""
        raise ClusterError(
            f"there is no CronJob for debug runs{wanted} in {place}: check that the chart is installed in this "
            "namespace (--namespace) and that its value debug.enabled is true"
        )
    if len(found) > 1:
        names = ", ".join(sorted(item["metadata"]["labels"].get(RELEASE_LABEL, "?") for item in found))
        raise ClusterError(f"{place} has several releases: choose one with --release ({names})")
    return found[0]


def job_from(template: Object, change: Callable[[Object, Object], None]) -> Object:
    """Return a Job made from the CronJob `template`, after `change` of its pod's spec and of the first container there.

    Raises `ClusterError` if the template, which may be any YAML, is not a CronJob with a container.
    """
    try:
        job = _job_from(template)
        pod = job["spec"]["template"]["spec"]
        change(pod, pod["containers"][0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ClusterError(
            "the template is not a CronJob with a container: use the one of the chart (helm template)"
        ) from None
    return job


def _job_from(template: Object) -> Object:
    source, base = template["metadata"], template["spec"]["jobTemplate"]
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": copy.deepcopy(base["spec"])}
    name = f"{source['name'][: _NAME_BYTES - 6].rstrip('-.')}-{secrets.token_hex(3)[:5]}"
    job["metadata"] = {
        "name": name,
        "labels": dict((base.get("metadata") or {}).get("labels") or source.get("labels") or {}),
        # As `kubectl create job --from=cronjob/…` does: the history limits of the CronJob apply to it.
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        **({"ownerReferences": [owner(template, "CronJob", controller=True)]} if source.get("uid") else {}),
    }
    spec = job["spec"]
    spec["backoffLimit"] = 0  # no retries: the outcome of the first pod is shown
    spec.setdefault("activeDeadlineSeconds", DEADLINE_SECONDS)
    spec.setdefault("ttlSecondsAfterFinished", RETENTION_SECONDS)
    return job


def owner(item: Object, kind: str, *, controller: bool = False) -> Object:
    """Return the reference by which another object belongs to `item`, a CronJob or a Job."""
    reference = {
        "apiVersion": "batch/v1",
        "kind": kind,
        "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"],
    }
    return {**reference, "controller": True} if controller else reference


class TemplateJob:
    """Creates a Job, follows it, and deletes it at the end of the `with` block, even after an error."""

    def __init__(self, cluster: Cluster, manifest: Object, *, keep: bool, say: Say) -> None:
        self._cluster = cluster
        self._manifest = manifest
        self._keep = keep
        self._say = say
        self._created = False

    @property
    def name(self) -> str:
        """The name of the Job."""
        return str(self._manifest["metadata"]["name"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Delete the Job unless it is to be kept. Reports what cannot be deleted."""
        if self._created and not self._keep:
            self._delete("job", self.name, self._cluster.delete_job)

    def start(self) -> None:
        """Create the Job and what it needs. Each is recorded first, so that an interrupted call is cleaned up too."""
        self._created = True
        try:
            job = self._cluster.create_job(self._manifest)
        except ClusterError:
            self._created = False
            raise
        self._equip(job)
        self._say(f"Job {self.name} created in namespace {self._cluster.namespace}")

    def _equip(self, job: Object) -> None:
        """Create what `job` needs besides itself: nothing."""

    def end(self, timeout_seconds: float, show: Say) -> tuple[JobState, PodState | None]:
        """Pass each line of the log to `show`, and return the Job and its pod when it has finished.

        Raises `ClusterError` if the Job has not finished after `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        if self._started(deadline):
            self._show_log(deadline, show)
        for job, pod in self._poll(deadline):
            if job.finished:
                return job, pod_state(pod) if pod else None
        raise AssertionError("unreachable")

    def _delete(self, kind: str, name: str, delete: Callable[[str], None]) -> None:
        try:
            delete(name)
        except ClusterError as error:
            self._say(
                f"{error}; delete it yourself: kubectl --namespace {self._cluster.namespace} delete {kind} {name}"
            )

    def _show_log(self, deadline: float, show: Say) -> None:
        """Follow the log to its end. Its loss is reported, and does not change the outcome."""
        seconds = max(1.0, deadline - time.monotonic())
        try:
            for line in self._cluster.follow_log(self._pod_name(), self._container(), seconds):
                show(line)
                if time.monotonic() > deadline:
                    return
        except ClusterError as error:
            self._say(f"the log could not be followed further: {error.detail}")

    def _started(self, deadline: float) -> bool:
        """Wait for the container to start; return False if the Job ends before."""
        reported = ""
        for job, pod in self._poll(deadline):
            if pod is not None and pod["status"].get("phase") in {"Running", "Succeeded", "Failed"}:
                return True
            if job.finished:
                return False
            reason = waiting_reason(pod) if pod else ""
            if reason and reason != reported:
                self._say(f"waiting: {reason}")
                reported = reason
        return False

    def _poll(self, deadline: float) -> Iterator[tuple[JobState, Object | None]]:
        while True:
            job = job_state(self._cluster.job(self.name))
            pods = self._cluster.pods({JOB_NAME_LABEL: self.name})
            yield job, pods[0] if pods else None
            if time.monotonic() > deadline:
                reason = waiting_reason(pods[0]) if pods else "it has no pod"
                raise ClusterError(
                    f"Job {self.name} has not finished in time (--timeout): {reason or 'it is still running'}"
                )
            time.sleep(POLL_SECONDS)

    def _pod_name(self) -> str:
        return str(self._cluster.pods({JOB_NAME_LABEL: self.name})[0]["metadata"]["name"])

    def _container(self) -> str:
        return str(self._manifest["spec"]["template"]["spec"]["containers"][0]["name"])
