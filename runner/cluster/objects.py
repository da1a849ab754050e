"""The state of Kubernetes objects: pure functions over plain dicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runner.cluster.api import COMPONENT_LABEL, JOB_NAME_LABEL, RELEASE_LABEL, Object

# Conditions of a Job that determine its phase, in order of precedence.
_JOB_STATES = ("Failed", "Complete", "FailureTarget", "SuccessCriteriaMet", "Suspended")
# Of an error's message, as `status` shows it.
REASON_LENGTH = 200


@dataclass(frozen=True, slots=True)
class JobState:
    """A Job: phase is Pending, Running, Suspended, Complete or Failed; `reason` is the one of its condition."""

    name: str
    release: str
    component: str
    phase: str
    reason: str
    active: int
    succeeded: int
    failed: int
    age_seconds: float | None

    @property
    def finished(self) -> bool:
        """Whether the Job will start no more pods."""
        return self.phase in {"Complete", "Failed"}


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod: its phase, why it is waiting or how it ended, and the summary in its termination message, if any."""

    name: str
    release: str
    component: str
    job: str
    node: str
    phase: str
    reason: str
    exit_code: int | None
    summary: Object | None
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class ScaledJobState:
    """A ScaledJob: condition → its status and, if it is not ready, KEDA's reason and message."""

    name: str
    release: str
    component: str
    paused: bool
    conditions: dict[str, str]


def job_state(job: Object) -> JobState:
    """Return the state of a Job of batch/v1."""
    status = job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
    deciding = next((conditions[kind] for kind in _JOB_STATES if kind in conditions), None)
    active = int(status.get("active") or 0)
    kinds = {"FailureTarget": "Failing", "SuccessCriteriaMet": "Completing"}
    phase = kinds.get(deciding["type"], deciding["type"]) if deciding else ("Running" if active else "Pending")
    return JobState(
        name=job["metadata"]["name"],
        release=_label(job, RELEASE_LABEL),
        component=_label(job, COMPONENT_LABEL),
        phase=phase,
        reason=(deciding or {}).get("reason") or "",
        active=active,
        succeeded=int(status.get("succeeded") or 0),
        failed=int(status.get("failed") or 0),
        age_seconds=age_seconds(job),
    )


def pod_state(pod: Object) -> PodState:
    """Return the state of a pod."""
    status = pod.get("status") or {}
    ended = next((s["state"]["terminated"] for s in _containers(pod) if "terminated" in (s.get("state") or {})), None)
    deleting = bool(pod["metadata"].get("deletionTimestamp"))
    phase = status.get("phase") or "Unknown"
    return PodState(
        name=pod["metadata"]["name"],
        release=_label(pod, RELEASE_LABEL),
        component=_label(pod, COMPONENT_LABEL),
        job=_label(pod, JOB_NAME_LABEL),
        node=(pod.get("spec") or {}).get("nodeName") or "",
        phase="Terminating" if deleting and phase in {"Pending", "Running"} else phase,
        reason=_pod_reason(pod, ended),
        exit_code=None if ended is None else ended.get("exitCode"),
        summary=summary(ended),
        age_seconds=age_seconds(pod),
    )


def scaled_job_state(scaled: Object) -> ScaledJobState:
    """Return the state of a ScaledJob of keda.sh/v1alpha1."""
    annotations = scaled["metadata"].get("annotations") or {}
    conditions = {c["type"]: _condition(c) for c in (scaled.get("status") or {}).get("conditions") or []}
    return ScaledJobState(
        name=scaled["metadata"]["name"],
        release=_label(scaled, RELEASE_LABEL),
        component=_label(scaled, COMPONENT_LABEL),
        paused=annotations.get("autoscaling.keda.sh/paused") == "true" or conditions.get("Paused") == "True",
        conditions=conditions,
    )


def waiting_reason(pod: Object) -> str:
    """Return why a container of the pod is not running yet, with Kubernetes' message, or an empty string."""
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting")
        if waiting:
            return ": ".join(filter(None, [waiting.get("reason"), waiting.get("message")]))
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return ": ".join(filter(None, [condition.get("reason"), condition.get("message")]))
    return ""


def summary(terminated: Object | None) -> Object | None:
    """Return the summary that the run wrote as its termination message, or None."""
    try:
        found: Any = json.loads((terminated or {}).get("message") or "")
    except ValueError:
        return None
    return found if isinstance(found, dict) and "claimed" in found else None


def age_seconds(item: Object) -> float | None:
    """Return the age of the object, by the clock of this machine."""
    created = item["metadata"].get("creationTimestamp")
    if not created:
        return None
    moment = datetime.fromisoformat(str(created))
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())


def _pod_reason(pod: Object, ended: Object | None) -> str:
    status = pod.get("status") or {}
    if status.get("reason"):  # Evicted, NodeLost, DeadlineExceeded: these concern the whole pod
        return str(status["reason"])
    if ended is not None:
        code = ended.get("exitCode")
        reason = str(ended.get("reason") or "")
        return f"{reason} (exit code {code}){_ended_because(ended)}" if code else reason
    return waiting_reason(pod).partition(":")[0]


def _ended_because(ended: Object) -> str:
    """Return the error that ended a run, from its summary or, if it printed none, from the end of its log."""
    found = summary(ended)
    if found is not None:
        detail = str(found.get("exit_message") or found.get("exit_reason") or "")
    else:
        detail = str(ended.get("message") or "").strip().rpartition("\n")[2]
    return f": {detail[:REASON_LENGTH]}" if detail else ""


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _condition(condition: Object) -> str:
    status = str(condition.get("status", "Unknown"))
    healthy = condition["type"] != "Ready" or status == "True"
    return status if healthy else ": ".join(filter(None, [status, condition.get("reason"), condition.get("message")]))


def _label(item: Object, name: str) -> str:
    return str((item["metadata"].get("labels") or {}).get(name) or "")
