"""The chart on a real API server, with helm 3 and helm 4: install, upgrade, rollback, test, uninstall."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.e2e.backends import Backends
from tests.e2e.roles import role
from tests.e2e.site import CHART, Site, wait
from tools.binaries import HELM_3, HELM_4, KUBECTL, KUBECTL_OLD, Tool, ensure

LABEL = "app.kubernetes.io/name=spottmee-worker"
KINDS = "scaledjobs,cronjobs,jobs,pods,configmaps,secrets,serviceaccounts,networkpolicies,triggerauthentications"
LONG_NAME = "a" * 20 + "-" + "b" * 32  # 53 characters, the longest that helm accepts

HELMS = pytest.mark.parametrize("helm", [HELM_3, HELM_4], ids=lambda tool: f"helm {tool.version}")


def _length(site: Site, namespace: str, name: str) -> str:
    found = json.loads(site.kubectl("--namespace", namespace, "get", "scaledjob", name, "--output", "json"))
    length: str = found["spec"]["triggers"][0]["metadata"]["listLength"]
    return length


def _names(site: Site, namespace: str, release: str) -> set[str]:
    selector = f"{LABEL},app.kubernetes.io/instance={release}"
    items = site.get(KINDS, "--namespace", namespace, "--selector", selector)
    return {f"{item['kind']} {item['metadata']['name']}" for item in items}


@HELMS
def test_a_release_can_be_installed_upgraded_rolled_back_and_uninstalled(
    site: Site, namespace: str, values: dict[str, Any], backends: Backends, helm: Tool
) -> None:
    if site.control_plane is not None:
        backends.connection.execute("DROP TABLE IF EXISTS faces, spottmee_schema CASCADE")
    where = ("--namespace", namespace, "--wait", "--timeout", "3m")
    site.helm("install", "party", str(CHART), *where, tool=helm, values=values)
    assert backends.connection.execute("SELECT to_regclass('faces')").fetchone() == ("faces",), (
        "the hook did not migrate"
    )
    names = _names(site, namespace, "party")
    assert {"ScaledJob party-process", "ScaledJob party-compare", "CronJob party-debug", "ConfigMap party"} <= names
    assert _length(site, namespace, "party-process") == "4"

    changed = copy.deepcopy(values)
    changed["queues"]["process"]["jobsPerPod"] = 7
    changed["queues"]["compare"]["enabled"] = False
    site.helm("upgrade", "party", str(CHART), *where, tool=helm, values=changed)
    assert _length(site, namespace, "party-process") == "7"
    assert "ScaledJob party-compare" not in _names(site, namespace, "party")

    site.helm("rollback", "party", "1", *where, tool=helm)
    assert _length(site, namespace, "party-process") == "4"
    assert _names(site, namespace, "party") == names

    # The test pod runs `doctor` with the same servers, and reads KEDA's status of the ScaledJobs.
    tested = site.helm("test", "party", "--namespace", namespace, "--timeout", "2m", "--logs", tool=helm)
    assert "Succeeded" in tested
    if site.no_keda is None:
        assert "party-compare READY, party-process READY" in tested

    site.helm("uninstall", "party", *where, tool=helm)
    wait(lambda: not _names(site, namespace, "party"), "all objects of the release to be deleted")


@HELMS
def test_two_releases_share_a_namespace_even_with_the_longest_name(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool
) -> None:
    where = ("--namespace", namespace, "--timeout", "3m")
    for name in ("party", LONG_NAME):
        site.helm("install", name, str(CHART), *where, tool=helm, values=values)
    jobs = site.get("scaledjobs", "--namespace", namespace)
    assert len(jobs) == 4
    assert {job["metadata"]["labels"]["app.kubernetes.io/instance"] for job in jobs} == {"party", LONG_NAME}
    debug = site.get("cronjobs", "--namespace", namespace, "--selector", f"app.kubernetes.io/instance={LONG_NAME}")
    # Kubernetes derives the names of a Job's pods from its own: there must be room for the suffix.
    cron_job = debug[0]["metadata"]["name"]
    site.kubectl(
        "--namespace", namespace, "create", "job", f"{cron_job}-by-hand"[:63].rstrip("-"), f"--from=cronjob/{cron_job}"
    )
    wait(lambda: _debug_pods(site, namespace), "the pod of the debug Job")
    site.helm("uninstall", "party", "--namespace", namespace, tool=helm)
    assert len(site.get("scaledjobs", "--namespace", namespace)) == 2
    site.helm("uninstall", LONG_NAME, "--namespace", namespace, tool=helm)
    wait(lambda: not site.get("scaledjobs", "--namespace", namespace), "the ScaledJobs to be deleted")


def _debug_pods(site: Site, namespace: str) -> list[dict[str, Any]]:
    return site.get("pods", "--namespace", namespace, "--selector", "app.kubernetes.io/component=debug")


def test_every_object_passes_strict_validation_and_pod_security(
    site: Site, namespace: str, release: str, values: dict[str, Any]
) -> None:
    """The server itself validates and rejects unknown fields; a pod that is not "restricted" causes a warning."""
    rendered = site.helm("template", release, str(CHART), "--namespace", namespace, values=values)
    for tool in (KUBECTL_OLD, KUBECTL):
        strictly = ("--dry-run=server", "--validate=strict", "--warnings-as-errors", "--namespace", namespace)
        output = site._run([str(ensure(tool)), "apply", *strictly, "-f", "-"], check=True, text=rendered)
        assert "party-debug" in output


def test_the_server_accepts_the_documented_role(site: Site, namespace: str) -> None:
    """The Role in docs/how-to/debugging.md, which the tests of `debug` use, is valid as it is."""

    site.kubectl("--namespace", namespace, "create", "-f", "-", text=role())
    assert "spottmee-worker-debug" in site.kubectl("--namespace", namespace, "get", "roles")
