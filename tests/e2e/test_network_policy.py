"""The chart's NetworkPolicy on a cluster that enforces it: which addresses a pod of the release can reach."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import pytest

from demo.images import ImageServer
from tests.e2e.site import CHART, Site, wait

# Connects to each HOST:PORT. The rules for a new pod take effect shortly after its start.
PROBE = """
import socket, sys, time
time.sleep(5)
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        print(place, "reached", flush=True)
    except OSError:
        print(place, "refused", flush=True)
"""
LABELS = {
    "app.kubernetes.io/name": "spottmee-worker",
    "app.kubernetes.io/instance": "party",
    "app.kubernetes.io/component": "process",
}


def _probe(site: Site, namespace: str, name: str, labels: dict[str, str], places: list[str]) -> dict[str, bool]:
    """Return for each HOST:PORT whether a pod with these labels can reach it."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "probe",
                    "image": site.image,
                    "command": [
                        "/opt/spottmee-worker/bin/python",
                        "-c",
                        PROBE,
                        *places,
                    ],
                    "securityContext": security,
                }
            ],
        },
    }
    site.kubectl("--namespace", namespace, "create", "--filename", "-", text=json.dumps(pod))

    def ended() -> bool:
        phase = site.kubectl("--namespace", namespace, "get", "pod", name, "--output", "jsonpath={.status.phase}")
        return phase in {"Succeeded", "Failed"}

    wait(ended, f"the pod {name}")
    lines = site.kubectl("--namespace", namespace, "logs", name).splitlines()
    return {place: result == "reached" for place, result in (line.split() for line in lines)}


def test_a_pod_of_the_release_reaches_its_servers_and_nothing_private(
    site: Site, namespace: str, values: dict[str, Any], images: ImageServer
) -> None:
    if os.environ.get("E2E_NETWORK_POLICY") != "1":
        pytest.skip("E2E_NETWORK_POLICY=1 is not set, which says that the cluster enforces NetworkPolicy")
    redis, database = (urlsplit(os.environ[name]) for name in ("E2E_REDIS_URL", "E2E_DATABASE_URL"))
    own = values | {"networkPolicy": {"enabled": True, "imagePorts": [80, 443, urlsplit(images.url("x")).port]}}
    site.helm("install", "party", str(CHART), "--namespace", namespace, "--timeout", "3m", values=own)
    servers = [f"{redis.hostname}:{redis.port or 6379}", f"{database.hostname}:{database.port or 5432}"]
    private = [f"{site.host}:{urlsplit(images.url('x')).port}", "kubernetes.default.svc:443"]
    places = [*servers, *private]
    assert _probe(site, namespace, "other", {"app": "other"}, places) == dict.fromkeys(places, True)
    found = _probe(site, namespace, "of-the-release", LABELS, places)
    # The name of the Kubernetes API is still resolved, because the cluster's DNS is allowed.
    assert found == dict.fromkeys(servers, True) | dict.fromkeys(private, False)
    tested = site.helm("test", "party", "--namespace", namespace, "--timeout", "3m", "--logs")
    assert "party-compare READY, party-process READY" in tested, "the test pod could not reach the Kubernetes API"
    site.helm("uninstall", "party", "--namespace", namespace)
