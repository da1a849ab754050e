"""The effect of a run's exit code on its Job: a configuration error fails it at once, a transient error is retried."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from demo.servers import free_port
from tests.e2e.backends import Backends
from tests.e2e.site import CHART, Object, Site, wait

# Fault → values, exit code, and the reason and number of pods with which Kubernetes fails the Job.
WRONG: dict[str, tuple[dict[str, Any], int, str, int]] = {
    "no model": ({"settings": {"RUNNER_MODEL_DIR": "/nonexistent"}}, 4, "PodFailurePolicy", 1),
    "wrong database": ({}, 7, "PodFailurePolicy", 1),
    "no database": (
        {"settings": {"RUNNER_CONNECT_TIMEOUT_SECONDS": 0}, "backoffLimit": 1},
        75,
        "BackoffLimitExceeded",
        2,
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_pod_failure_policy_follows_the_exit_code(
    site: Site, namespace: str, values: dict[str, Any], backends: Backends, wrong: str
) -> None:
    changes, code, reason, pods = WRONG[wrong]
    if site.no_keda:
        pytest.skip(site.no_keda)
    queues = {"process": values["queues"]["process"] | changes, "compare": {"enabled": False}}
    own = values | {"queues": queues, "migration": {"mode": "none"}}
    if wrong == "no database":
        own["database"] = {"url": f"postgresql://127.0.0.1:{free_port()}/nobody"}
    site.helm("install", "party", str(CHART), "--namespace", namespace, values=own)
    job = json.dumps({"imageUrl": "http://gone/1.jpg", "id": str(uuid.uuid4())})
    backends.redis.rpush("face_embeddings:process", job)
    process = ("--namespace", namespace, "--selector", "app.kubernetes.io/component=process")
    failed = wait(lambda: [found for found in site.get("jobs", *process) if _failure(found)], "a failed Job")[0]
    ended = [
        status["state"]["terminated"]["exitCode"]
        for pod in site.get("pods", *process)  # KEDA starts another Job meanwhile: its pod may not have begun
        for status in pod["status"].get("containerStatuses", [])
        if "terminated" in status["state"]
    ]
    assert set(ended) == {code}
    site.helm("uninstall", "party", "--namespace", namespace)
    assert _failure(failed) == reason
    assert failed["status"]["failed"] == pods
    # A run claims its first job before it checks the database, and then releases it: the lease expires at once.
    assert backends.leftovers() in ({"process waiting": 1}, {"process leased": 1}), "the job was lost"
    backends.redis.delete(*backends.redis.keys("*face_embeddings:process*"))


def _failure(job: Object) -> str:
    conditions = job["status"].get("conditions") or []
    return next((str(item["reason"]) for item in conditions if item["type"] == "Failed"), "")
