"""A single job in the cluster: a Job made from the chart's suspended CronJob, with the payload in Secrets.

The payload is not in the Job itself, where everybody who may read Jobs would see it. It is in Secrets that the Job
owns: they are mounted as files and deleted with the Job. The Job is created first, so that nothing outlives its
deadline and time to live if this command is killed in between.
"""

from __future__ import annotations

import base64
import copy
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from runner.cluster.api import APP, COMPONENT_LABEL, JOB_NAME_LABEL, NAME_LABEL, RELEASE_LABEL, Cluster, Object
from runner.cluster.objects import JobState, PodState, job_state, pod_state, waiting_reason
from runner.errors import ClusterError

COMPONENT = "debug"
PAYLOAD_FOLDER = "/var/run/spottmee-job"
# A Secret holds at most 1 MiB, its base64 not counted (https://kubernetes.io/docs/concepts/configuration/secret/).
PART_BYTES = 900_000
# etcd has room for more, but no selfie is larger; the photos of the API are about 5 MB.
LARGEST_PAYLOAD = 32 * 1024 * 1024
DEADLINE_SECONDS = 900
RETENTION_SECONDS = 600
POLL_SECONDS = 0.5
_NAME_BYTES = 63  # the Job's name becomes a label value of its pods
_HIDDEN = "not shown: it may hold a selfie"

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


def job_manifest(template: Object, parts: int) -> Object:
    """Return the Job to create from the CronJob `template`; it reads its payload from `parts` Secrets.

    Raises `ClusterError` if the template, which may be any YAML, is not a CronJob with a container.
    """
    try:
        return _job_manifest(template, parts)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ClusterError(
            "the template is not a CronJob with a container: use the one of the chart (helm template)"
        ) from None


def _job_manifest(template: Object, parts: int) -> Object:
    source, base = template["metadata"], template["spec"]["jobTemplate"]
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": copy.deepcopy(base["spec"])}
    pod: Object = job["spec"]["template"]["spec"]
    container: Object = pod["containers"][0]
    name = f"{source['name'][: _NAME_BYTES - 6].rstrip('-.')}-{secrets.token_hex(3)[:5]}"
    job["metadata"] = {
        "name": name,
        "labels": dict((base.get("metadata") or {}).get("labels") or source.get("labels") or {}),
        # As `kubectl create job --from=cronjob/…` does: the history limits of the CronJob apply to it.
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        **({"ownerReferences": [_owner(template, "CronJob", controller=True)]} if source.get("uid") else {}),
    }
    spec = job["spec"]
    spec["backoffLimit"] = 0  # no retries: the outcome of the first pod is shown
    spec.setdefault("activeDeadlineSeconds", DEADLINE_SECONDS)
    spec.setdefault("ttlSecondsAfterFinished", RETENTION_SECONDS)
    container["env"] = [
        *(item for item in container.get("env") or [] if item["name"] != "RUNNER_JOB"),
        {"name": "RUNNER_JOB", "value": PAYLOAD_FOLDER},
    ]
    mount = {"name": "debug-payload", "mountPath": PAYLOAD_FOLDER, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    sources = [{"secret": {"name": secret_name(name, number)}} for number in range(parts)]
    volume = {"name": "debug-payload", "projected": {"sources": sources}}
    pod["volumes"] = [*(pod.get("volumes") or []), volume]
    return job


def split(payload: bytes) -> list[bytes]:
    """Return the payload in parts that fit into a Secret."""
    if len(payload) > LARGEST_PAYLOAD:
        raise ClusterError(
            f"the payload has {len(payload)} bytes; a Job in the cluster takes at most {LARGEST_PAYLOAD}: use --local"
        )
    return [payload[start : start + PART_BYTES] for start in range(0, len(payload), PART_BYTES)]


def secret_manifest(job: Object, number: int, part: bytes) -> Object:
    """Return the Secret with one part of the payload. It is owned by the Job if that exists already."""
    name = job["metadata"]["name"]
    owner = [_owner(job, "Job")] if job["metadata"].get("uid") else None
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(name, number),
            "labels": dict(job["metadata"].get("labels") or {}),
            **({"ownerReferences": owner} if owner else {}),
        },
        "immutable": True,
        "data": {f"payload-{number:03d}": base64.b64encode(part).decode()},
    }


def secret_name(job_name: str, number: int) -> str:
    """Return the name of the Secret with part `number` of the payload of a Job."""
    return f"{job_name}-payload-{number}"


def dry_run(template: Object, payload: bytes) -> list[Object]:
    """Return the manifests that would be created, without the payload."""
    parts = split(payload)
    job = job_manifest(template, len(parts))
    hidden = [secret_manifest(job, number, b"") for number in range(len(parts))]
    for secret, part in zip(hidden, parts, strict=True):
        secret["data"] = dict.fromkeys(secret["data"], f"<{len(part)} bytes, {_HIDDEN}>")
    return [job, *hidden]


@dataclass(frozen=True, slots=True)
class DebugOutcome:
    """The outcome of a debug run: the Job, its pod, and the line that the run logged for the job, if it did."""

    job: JobState
    pod: PodState | None
    logged: Object | None

    @property
    def ending(self) -> str:
        """The outcome that the run reports (an `Outcome` of runner/worker/task.py), or failed."""
        summary = self.pod.summary if self.pod else None
        if summary and summary["claimed"]:
            endings = ("succeeded", "gone", "dead_lettered", "released", "lost", "retried", "parked")
            return next((ending for ending in endings if summary.get(ending)), "unsettled")
        return "failed"

    def document(self) -> dict[str, object]:
        """Return what is printed with --json."""
        pod = self.pod
        return {
            "outcome": self.ending,
            "job": self.job.name,
            "phase": self.job.phase,
            "job_reason": self.job.reason or None,
            "pod": pod.name if pod else None,
            "pod_reason": pod.reason or None if pod else None,
            "exit_code": pod.exit_code if pod else None,
            "reason": (self.logged or {}).get("reason"),
            "detail": (self.logged or {}).get("detail"),
            "summary": pod.summary if pod else None,
        }

    def line(self) -> str:
        """Return the outcome in one line."""
        logged, pod = self.logged or {}, self.pod
        why = [str(logged.get("detail") or logged.get("reason") or "")]
        if self.ending == "failed":
            why += [self.job.reason, pod.reason if pod else "the Job had no pod"]
        if (faces := logged.get("faces_found")) is not None:
            why.append(f"{faces} faces")
        reasons = "; ".join(filter(None, why))
        return f"{self.ending}: {reasons}" if reasons else self.ending


class DebugRun:
    """Creates a Job, follows it, and deletes it at the end of the `with` block, also after an error."""

    def __init__(self, cluster: Cluster, template: Object, payload: bytes, *, keep: bool, say: Say) -> None:
        self._cluster = cluster
        self._parts = split(payload)
        self._manifest = job_manifest(template, len(self._parts))
        self._keep = keep
        self._say = say
        self._created = False
        self._secrets: list[str] = []
        self._logged: Object | None = None

    @property
    def name(self) -> str:
        """The name of the Job."""
        return str(self._manifest["metadata"]["name"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Delete the payload, and the Job unless it is to be kept. Reports each object that cannot be deleted."""
        for name in self._secrets:
            self._delete("secret", name, self._cluster.delete_secret)
        if self._created and not self._keep:
            self._delete("job", self.name, self._cluster.delete_job)

    def start(self) -> None:
        """Create the Job and its payload. Each is recorded first, so that an interrupted call is cleaned up too."""
        self._created = True
        try:
            job = self._cluster.create_job(self._manifest)
        except ClusterError:
            self._created = False
            raise
        for number, part in enumerate(self._parts):
            secret = secret_manifest(job, number, part)
            self._secrets.append(secret["metadata"]["name"])
            try:
                self._cluster.create_secret(secret)
            except ClusterError:
                self._secrets.pop()
                self._keep = False  # the Job is useless without its payload
                raise
        self._say(f"Job {self.name} created in namespace {self._cluster.namespace}")

    def _delete(self, kind: str, name: str, delete: Callable[[str], None]) -> None:
        try:
            delete(name)
        except ClusterError as error:
            self._say(
                f"{error}; delete it yourself: kubectl --namespace {self._cluster.namespace} delete {kind} {name}"
            )

    def follow(self, timeout_seconds: float, show: Say) -> DebugOutcome:
        """Pass each line of the log to `show`, and return the outcome.

        Raises `ClusterError` if the Job has not finished after `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        if self._started(deadline):
            self._show_log(deadline, show)
        return self._ended(deadline)

    def _show_log(self, deadline: float, show: Say) -> None:
        """Follow the log to its end. Its loss is reported, and does not change the outcome."""
        seconds = max(1.0, deadline - time.monotonic())
        try:
            for line in self._cluster.follow_log(self._pod_name(), self._container(), seconds):
                self._read(line)
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

    def _ended(self, deadline: float) -> DebugOutcome:
        for job, pod in self._poll(deadline):
            if job.finished:
                return DebugOutcome(job, pod_state(pod) if pod else None, self._logged)
        raise AssertionError("unreachable")

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

    def _read(self, line: str) -> None:
        """Keep the line of the log that reports the outcome of the job."""
        try:
            event: Any = json.loads(line)
        except ValueError:
            return
        if isinstance(event, dict) and "outcome" in event:
            self._logged = event

    def _pod_name(self) -> str:
        return str(self._cluster.pods({JOB_NAME_LABEL: self.name})[0]["metadata"]["name"])

    def _container(self) -> str:
        return str(self._manifest["spec"]["template"]["spec"]["containers"][0]["name"])


def _owner(item: Object, kind: str, *, controller: bool = False) -> Object:
    reference = {
        "apiVersion": "batch/v1",
        "kind": kind,
        "name": item["metadata"]["name"],
        "uid": item["metadata"]["uid"],
    }
    return {**reference, "controller": True} if controller else reference
