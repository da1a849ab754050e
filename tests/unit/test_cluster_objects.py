"""What is read from Kubernetes objects, and how it is shown."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from runner import errors
from runner.cli.output import duration
from runner.cluster.debug import PART_BYTES, job_manifest, split
from runner.cluster.objects import job_state, pod_state, scaled_job_state, summary, waiting_reason
from runner.cluster.queues import QueueState
from runner.cluster.status import ClusterState, Status, lines
from runner.errors import ClusterError

ROOT = Path(__file__).parents[2]


def _pod(phase: str = "Pending", state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-name": "party-process-abcde", "app.kubernetes.io/component": "process"}
    containers = [{"name": "runner", "state": state}] if state else []
    return {
        "metadata": {"name": "p", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "node-a"},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: Insufficient cpu",
}  # fmt: skip
FAILED_SUMMARY = '{"claimed": 0, "exit_reason": "model", "exit_message": "It cannot be used: why"}'


@pytest.mark.parametrize(
    ("pod", "phase", "reason"),
    [
        (_pod(conditions=[UNSCHEDULABLE]), "Pending", "Unschedulable"),
        (_pod(state={"waiting": {"reason": "ErrImagePull", "message": "no: such host"}}), "Pending", "ErrImagePull"),
        (_pod("Running", {"running": {}}), "Running", ""),
        (
            _pod("Failed", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            "Failed",
            "OOMKilled (exit code 137)",
        ),
        (_pod("Failed", {"terminated": {"exitCode": 75, "reason": "Error"}}), "Failed", "Error (exit code 75)"),
        (
            _pod("Failed", {"terminated": {"exitCode": 4, "reason": "Error", "message": FAILED_SUMMARY}}),
            "Failed",
            "Error (exit code 4): It cannot be used: why",
        ),
        (
            _pod("Failed", {"terminated": {"exitCode": 2, "reason": "Error", "message": "a\nREDIS_URL is missing\n"}}),
            "Failed",
            "Error (exit code 2): REDIS_URL is missing",
        ),
        (_pod("Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed"}}), "Succeeded", "Completed"),
        (_pod("Failed", {"terminated": {"exitCode": 1, "reason": "Error"}}, reason="Evicted"), "Failed", "Evicted"),
    ],
)
def test_the_reason_of_a_pods_state_is_shown(pod: dict[str, Any], phase: str, reason: str) -> None:
    state = pod_state(pod)
    assert (state.phase, state.reason, state.job, state.node) == (phase, reason, "party-process-abcde", "node-a")


def test_a_pod_that_is_being_deleted_is_terminating() -> None:
    pod = _pod("Running", {"running": {}})
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert pod_state(pod).phase == "Terminating"


def test_the_full_reason_why_a_container_waits_is_shown() -> None:
    assert waiting_reason(_pod(conditions=[UNSCHEDULABLE])) == "Unschedulable: 0/3 nodes: Insufficient cpu"
    assert waiting_reason(_pod("Running", {"running": {}})) == ""


@pytest.mark.parametrize(
    ("status", "phase", "reason"),
    [
        ({}, "Pending", ""),
        ({"active": 1}, "Running", ""),
        (
            {"conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}]},
            "Suspended",
            "JobSuspended",
        ),
        (
            {
                "conditions": [
                    {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"},
                    {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"},
                ]
            },
            "Failed",
            "PodFailurePolicy",
        ),
        ({"active": 1, "conditions": [{"type": "Suspended", "status": "False"}]}, "Running", ""),
    ],
)
def test_the_phase_of_a_job_follows_its_conditions(status: dict[str, Any], phase: str, reason: str) -> None:
    state = job_state({"metadata": {"name": "j"}, "status": status})
    assert (state.phase, state.reason, state.age_seconds) == (phase, reason, None)
    assert state.finished is (phase == "Failed")


def test_a_scaled_job_that_is_not_ready_has_a_reason() -> None:
    conditions = [
        {"type": "Ready", "status": "False", "reason": "ScaledJobCheckFailed", "message": "no Redis"},
        {"type": "Active", "status": "False", "reason": "ScalerNotActive", "message": "idle"},
    ]
    scaled = {
        "metadata": {"name": "s", "annotations": {"autoscaling.keda.sh/paused": "true"}},
        "status": {"conditions": conditions},
    }
    state = scaled_job_state(scaled)
    assert state.conditions == {"Ready": "False: ScaledJobCheckFailed: no Redis", "Active": "False"}
    assert state.paused


@pytest.mark.parametrize("message", [None, "", "Traceback (most", "[1]", '{"other": 1}'])
def test_an_invalid_termination_message_is_not_a_summary(message: str | None) -> None:
    assert summary({"message": message}) is None
    assert summary(None) is None
    assert summary({"message": '{"claimed": 3}'}) == {"claimed": 3}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0s"), (59.9, "59s"), (192, "3m12s"), (18_130, "5h02m"), (273_600, "3d04h")]
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def _status() -> Status:
    cluster = ClusterState("prod", "party", notes=["KEDA is not installed in this cluster: there are no ScaledJobs"])
    cluster.pods = [pod_state(_pod(conditions=[UNSCHEDULABLE]))]
    queues = [QueueState("process", 5, 2, 1, 0, 3.0, 75.0, {"job-a/pod-a": 2})]
    return Status(queues=queues, cluster=cluster)


def test_the_screen_shows_the_same_as_the_lines() -> None:
    from rich.console import Console

    from runner.cli.live_status import draw

    out = io.StringIO()
    Console(file=out, width=160, color_system=None).print(draw(_status()))
    for word in ("process", "1m15s", "job-a/pod-a (2)", "Unschedulable", "namespace party of prod", "KEDA is not"):
        assert word in out.getvalue()
        assert word in "\n".join(lines(_status()))


def test_the_screen_shows_what_is_missing() -> None:
    from rich.console import Console

    from runner.cli.live_status import draw

    out = io.StringIO()
    status = Status(
        redis_error=errors.SettingsError("REDIS_URL is missing"), cluster_error=ClusterError("no kubeconfig")
    )
    Console(file=out, width=160, color_system=None).print(draw(status))
    assert "REDIS_URL is missing" in out.getvalue()
    assert "no kubeconfig" in out.getvalue()


def test_a_payload_that_is_too_large_is_not_sent() -> None:
    assert [len(part) for part in split(b"x" * (PART_BYTES + 1))] == [PART_BYTES, 1]
    with pytest.raises(ClusterError, match="--local"):
        split(b"x" * (32 * 2**20 + 1))


def test_the_name_of_a_debug_job_leaves_room_for_its_pods() -> None:
    container: dict[str, Any] = {
        "name": "runner",
        "env": [{"name": "RUNNER_JOB", "value": "old"}, {"name": "A", "value": "b"}],
    }
    template = {
        "metadata": {"name": "r" * 46 + "-debug"},
        "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [container]}}}}},
    }
    job = job_manifest(template, 2)
    assert len(job["metadata"]["name"]) <= 63
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [item["name"] for item in env] == ["A", "RUNNER_JOB"]
    assert container["env"][0]["value"] == "old", "the template itself is left alone"
    with pytest.raises(ClusterError, match="not a CronJob"):
        job_manifest({"spec": {}}, 1)


def test_the_exit_codes_that_fail_a_job_at_once_are_those_of_its_configuration() -> None:
    chart = (ROOT / "helm" / "spottmee-worker" / "templates" / "_pod.tpl").read_text(encoding="utf-8")
    match = re.search(r"action: FailJob.*?values: \[([\d, ]+)\]", chart, re.DOTALL)
    assert match is not None
    codes = {int(code) for code in match[1].split(",")}
    lasting = (errors.SettingsError, errors.SchemaError, errors.ModelError, errors.PhotosInvisibleError)
    passing = (errors.RunnerError, errors.UnreachableError, errors.StuckError)
    assert codes == {error.exit_code for error in lasting}
    assert not codes & {error.exit_code for error in passing}
