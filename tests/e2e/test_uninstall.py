"""`helm uninstall` leaves nothing in the namespace, whatever failed before."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from tests.e2e.site import CHART, Site, wait
from tools.binaries import HELM_3, HELM_4, Tool
from tools.render import cases

HELMS = pytest.mark.parametrize("helm", [HELM_3, HELM_4], ids=lambda tool: f"helm {tool.version}")
# An outcome of `helm test` → values with which it has that outcome, and words of the doctor's output.
OUTCOMES: dict[str, tuple[dict[str, Any], str]] = {
    "passes": ({}, "ok   Redis"),
    "fails": ({"settings": {"RUNNER_MODEL_DIR": "/nonexistent"}}, "/nonexistent"),
}
# What happens to a release after its migration has failed, before it is uninstalled.
NEXT = ("is uninstalled", "migrates elsewhere")


def _objects(site: Site, namespace: str) -> set[str]:
    """Return everything in the namespace, of every kind that can be listed, except events."""
    kinds = site.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "--output", "name").split()
    wanted = ",".join(kind for kind in kinds if kind.partition(".")[0] != "events")
    found = site.kubectl("--namespace", namespace, "get", wanted, "--output", "name", "--ignore-not-found")
    return set(found.split())


def _assert_only(site: Site, namespace: str, before: set[str]) -> None:
    """Wait until Kubernetes has collected what it deletes in the background; fail if anything else is left."""
    try:
        wait(lambda: _objects(site, namespace) <= before, "the namespace to be as before", seconds=30)
    except AssertionError:
        assert _objects(site, namespace) - before == set(), "left behind"


@HELMS
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_pod_of_helm_test_keeps_its_log_until_the_release_is_uninstalled(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool, outcome: str
) -> None:
    before = _objects(site, namespace)
    changes, words = OUTCOMES[outcome]
    where = ("--namespace", namespace, "--timeout", "2m")
    own = values | {"settings": values["settings"] | changes.get("settings", {})}
    site.helm("install", "party", str(CHART), *where, tool=helm, values=own)
    tested = site.helm("test", "party", *where, "--logs", tool=helm, check=False)
    assert words in tested
    assert ("Phase:          Succeeded" in tested) == (outcome == "passes")
    assert tested.count("POD LOGS") == 1, "helm prints the log once for each hook of that name"
    assert words in site.kubectl("--namespace", namespace, "logs", "party-test")
    # Nothing that uninstall does needs a pod.
    site.kubectl("--namespace", namespace, "create", "quota", "full", "--hard=pods=0")
    site.helm("uninstall", "party", *where, tool=helm)
    site.kubectl("--namespace", namespace, "delete", "quota", "full")
    _assert_only(site, namespace, before)


@HELMS
def test_a_test_pod_that_cannot_start_is_removed_with_the_release(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool
) -> None:
    before = _objects(site, namespace)
    own = values | {"nodeSelector": {"example.org/no": "node"}, "migration": {"mode": "none"}}
    site.helm("install", "party", str(CHART), "--namespace", namespace, tool=helm, values=own)
    site.helm("test", "party", "--namespace", namespace, "--timeout", "3s", tool=helm, check=False)
    assert "pod/party-test" in _objects(site, namespace)
    site.helm("uninstall", "party", "--namespace", namespace, tool=helm)
    _assert_only(site, namespace, before)


@HELMS
@pytest.mark.parametrize("then", NEXT)
def test_a_failed_migration_can_be_read_until_the_release_is_uninstalled(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool, then: str
) -> None:
    before = _objects(site, namespace)
    own = copy.deepcopy(values) | {"networkPolicy": {"enabled": True}}
    wrong = own | {"extraEnv": [{"name": "RUNNER_CONNECT_TIMEOUT_SECONDS", "value": "never"}]}
    where = ("--namespace", namespace, "--timeout", "2m")
    failed = site.helm("install", "party", str(CHART), *where, tool=helm, values=wrong, check=False)
    assert "party-migrate" in failed
    assert "RUNNER_CONNECT_TIMEOUT_SECONDS" in site.kubectl("--namespace", namespace, "logs", "job/party-migrate")
    (job,) = site.get("jobs", "--namespace", namespace)
    assert "ttlSecondsAfterFinished" not in job["spec"], "its log would be gone before anybody reads it"
    if then == "migrates elsewhere":
        site.helm("upgrade", "party", str(CHART), *where, tool=helm, values=own | {"migration": {"mode": "none"}})
    site.helm("uninstall", "party", *where, tool=helm)
    _assert_only(site, namespace, before)


@HELMS
def test_uninstall_removes_every_object_that_a_migration_hook_creates(site: Site, namespace: str, helm: Tool) -> None:
    """With a cluster, for every set of values; the server accepts what uninstall creates for that."""
    where = ("--namespace", namespace, "--dry-run=server")
    # Of kinds that this cluster may not have.
    without: dict[str, Any] = {"checkCluster": False, "metrics": {"enabled": False}, "extraObjects": []}
    for case, values in cases().items():
        text = site.helm("template", "party", str(CHART), *where, tool=helm, values=values | without)
        hooks: dict[str, dict[tuple[str, str], Any]] = {"pre-install,pre-upgrade": {}, "post-delete": {}}
        for item in filter(None, yaml.safe_load_all(text)):
            event = item["metadata"].get("annotations", {}).get("helm.sh/hook")
            hooks.get(event, {})[item["kind"], item["metadata"]["name"]] = item
        created, removed = hooks["pre-install,pre-upgrade"], hooks["post-delete"]
        is_hook = values.get("migration", {}).get("mode", "hook") == "hook"
        assert set(created) == (set(removed) if is_hook else set()), case
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(removed.values())})
        site.kubectl("create", *where, "--validate=strict", "--filename", "-", text=items)


@HELMS
def test_without_hooks_uninstall_leaves_only_what_hooks_made(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool
) -> None:
    before = _objects(site, namespace)
    site.helm("install", "party", str(CHART), "--namespace", namespace, "--timeout", "2m", tool=helm, values=values)
    site.helm("test", "party", "--namespace", namespace, "--timeout", "2m", tool=helm)
    site.helm("uninstall", "party", "--namespace", namespace, "--no-hooks", tool=helm)
    _assert_only(site, namespace, before | {"pod/party-test"})
