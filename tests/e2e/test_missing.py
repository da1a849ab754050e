"""An install names the objects that are missing in the cluster before it creates anything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.site import CHART, Site
from tools.binaries import HELM_3, HELM_4, Tool

HELMS = pytest.mark.parametrize("helm", [HELM_3, HELM_4], ids=lambda tool: f"helm {tool.version}")


@HELMS
def test_missing_secrets_and_keys_are_named(site: Site, namespace: str, values: dict[str, Any], helm: Tool) -> None:
    redis = values["redis"] | {"auth": {"enabled": True, "existingSecret": "redis"}}
    own = values | {"checkCluster": True, "database": {}, "redis": redis}
    install = ("install", "party", str(CHART), "--namespace", namespace, "--timeout", "30s")
    output = site.helm(*install, tool=helm, values=own, check=False)
    assert f"the Secret party is missing: kubectl --namespace {namespace} create secret generic party" in output
    assert "the Secret redis is missing" in output
    site.kubectl("--namespace", namespace, "create", "secret", "generic", "party", "--from-literal=OTHER=1")
    output = site.helm(*install, tool=helm, values=own, check=False)
    assert "the Secret party has no key DATABASE_URL: add it" in output
    assert site.get("scaledjobs,configmaps", "--namespace", namespace, "--selector", "app.kubernetes.io/name") == []
    without = own | {"checkCluster": False, "migration": {"mode": "none"}}
    assert "STATUS: deployed" in site.helm(*install, tool=helm, values=without)


@HELMS
def test_missing_classes_are_named_unless_the_chart_creates_them(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool
) -> None:
    name = f"{namespace}-photos"  # PriorityClasses are cluster-scoped
    gpu = {"count": 1, "runtimeClassName": f"{namespace}-nvidia"}
    process = values["queues"]["process"] | {"priorityClassName": name, "gpu": gpu, "image": {"tag": "gpu"}}
    own = values | {"checkCluster": True, "queues": values["queues"] | {"process": process}}
    install = ("install", "party", str(CHART), "--namespace", namespace, "--timeout", "2m")
    output = site.helm(*install, tool=helm, values=own, check=False)
    assert f'queues.process.priorityClassName is "{name}", and there is no such PriorityClass in this cluster' in output
    assert f'runtimeClassName is "{namespace}-nvidia", and there is no such RuntimeClass in this cluster' in output

    created = values | {"queues": own["queues"] | {"process": process | {"gpu": {"count": 0}}}}
    created["priorityClasses"] = [{"name": name, "value": -10, "preemptionPolicy": "Never"}]
    assert "STATUS: deployed" in site.helm(*install, tool=helm, values=created)
    (found,) = (item for item in site.get("priorityclasses") if item["metadata"]["name"] == name)
    assert found["value"] == -10
    site.helm("uninstall", "party", "--namespace", namespace, tool=helm)
    assert name not in site.kubectl("get", "priorityclasses")


@HELMS
def test_the_check_of_the_cluster_gets_objects_by_name_and_needs_no_list_permission(
    site: Site, namespace: str, values: dict[str, Any], helm: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing Secrets is not permitted to helm's user here; helm stores its own records in ConfigMaps."""
    site.kubectl("--namespace", namespace, "create", "secret", "generic", "party", "--from-literal=DATABASE_URL=x")
    rules = [
        *("--verb=get", "--resource=secrets", "--resource=configmaps", "--resource=serviceaccounts"),
        *("--resource=roles.rbac.authorization.k8s.io", "--resource=rolebindings.rbac.authorization.k8s.io"),
        *("--resource=jobs.batch", "--resource=cronjobs.batch", "--resource=scaledjobs.keda.sh", "--resource=services"),
    ]
    records = ("--verb=list", "--resource=configmaps")
    for name, role in (("installer", rules), ("records", records)):
        site.kubectl("--namespace", namespace, "create", "role", name, *role)
        site.kubectl("--namespace", namespace, "create", "rolebinding", name, f"--role={name}", "--user=installer")
    monkeypatch.setenv("HELM_DRIVER", "configmap")
    own = values | {"checkCluster": True, "database": {}, "redis": {"host": "redis"}}
    install = ("install", "party", str(CHART), "--namespace", namespace, "--dry-run=server")
    output = site.helm(*install, "--kube-as-user=installer", tool=helm, values=own)
    assert f"redis.{namespace}.svc:6379" in output
    assert f"There is no Service redis in {namespace} yet" in output
    own["database"] = {"existingSecret": "other"}
    output = site.helm(*install, "--kube-as-user=installer", tool=helm, values=own, check=False)
    assert "the Secret other is missing" in output
