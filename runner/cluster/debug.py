"""A single job in the cluster: a Job made from the chart's suspended CronJob, with the payload in Secrets.

The payload is not in the Job itself, where everyone who may read Jobs would see it. It is in Secrets that the Job
owns: they are mounted as files and deleted with the Job. The Job is created first, so that nothing outlives its
deadline and time to live if this command is killed in between.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from runner.cluster.api import Cluster, Object
from runner.cluster.objects import JobState, PodState
from runner.cluster.template_job import Say, TemplateJob, job_from, owner
from runner.errors import ClusterError

PAYLOAD_FOLDER = "/var/run/spottmee-job"
# A Secret holds at most 1 MiB, its base64 not counted (https://kubernetes.io/docs/concepts/configuration/secret/).
PART_BYTES = 900_000
# etcd has room for more, but no selfie is larger; the photos of the API are about 5 MB.
LARGEST_PAYLOAD = 32 * 1024 * 1024
_HIDDEN = "not shown: it may contain a selfie"


def job_manifest(template: Object, parts: int) -> Object:
    """Return the Job to create from the CronJob `template`; it reads its payload from `parts` Secrets.

    Raises `ClusterError` if the template, which may be any YAML, is not a CronJob with a container.
    """

    def read_payload(pod: Object, container: Object) -> None:
        container["env"] = [
            *(item for item in container.get("env") or [] if item["name"] != "RUNNER_JOB"),
            {"name": "RUNNER_JOB", "value": PAYLOAD_FOLDER},
        ]
        mount = {"name": "debug-payload", "mountPath": PAYLOAD_FOLDER, "readOnly": True}
        container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
        pod["volumes"] = [*(pod.get("volumes") or []), volume]

    volume: Object = {"name": "debug-payload", "projected": {"sources": []}}
    job = job_from(template, read_payload)
    name = job["metadata"]["name"]
    volume["projected"]["sources"] = [{"secret": {"name": secret_name(name, number)}} for number in range(parts)]
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
    references = [owner(job, "Job")] if job["metadata"].get("uid") else None
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(name, number),
            "labels": dict(job["metadata"].get("labels") or {}),
            **({"ownerReferences": references} if references else {}),
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
            endings = ("succeeded", "photo_gone", "dead_lettered", "released", "lease_lost", "retried", "parked")
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
            "error": (self.logged or {}).get("error"),
            "summary": pod.summary if pod else None,
        }

    def line(self) -> str:
        """Return the outcome in one line."""
        logged, pod = self.logged or {}, self.pod
        why = [str((logged.get("error") or {}).get("message") or "")]
        if self.ending == "failed":
            why += [self.job.reason, pod.reason if pod else "the Job had no pod"]
        if (faces := logged.get("faces_found")) is not None:
            why.append(f"{faces} faces")
        reasons = "; ".join(filter(None, why))
        return f"{self.ending}: {reasons}" if reasons else self.ending


class DebugRun(TemplateJob):
    """A Job with its payload: created, followed, and deleted at the end of the `with` block, even after an error."""

    def __init__(self, cluster: Cluster, template: Object, payload: bytes, *, keep: bool, say: Say) -> None:
        self._parts = split(payload)
        super().__init__(cluster, job_manifest(template, len(self._parts)), keep=keep, say=say)
        self._secrets: list[str] = []
        self._logged: Object | None = None

    def __exit__(self, *_: object) -> None:
        """Delete the payload, and the Job unless it is to be kept. Reports each object that cannot be deleted."""
        for name in self._secrets:
            self._delete("secret", name, self._cluster.delete_secret)
        super().__exit__()

    def _equip(self, job: Object) -> None:
        """Create the payload."""
        for number, part in enumerate(self._parts):
            secret = secret_manifest(job, number, part)
            self._secrets.append(secret["metadata"]["name"])
            try:
                self._cluster.create_secret(secret)
            except ClusterError:
                self._secrets.pop()
                self._keep = False  # the Job is useless without its payload
                raise

    def follow(self, timeout_seconds: float, show: Say) -> DebugOutcome:
        """Pass each line of the log to `show`, and return the outcome.

        Raises `ClusterError` if the Job has not finished after `timeout_seconds`.
        """

        def read_and_show(line: str) -> None:
            self._read(line)
            show(line)

        return DebugOutcome(*self.end(timeout_seconds, read_and_show), self._logged)

    def _read(self, line: str) -> None:
        """Keep the line of the log that reports the outcome of the job."""
        try:
            event: Any = json.loads(line)
        except ValueError:
            return
        if isinstance(event, dict) and "outcome" in event:
            self._logged = event
