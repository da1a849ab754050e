"""What is missing in the cluster is named before anything is created, instead of an install that waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.tools import HELM_3, HELM_4, Tool
from tests.e2e.site import CHART, Site

HELMS = pytest.mark.parametrize("helm", [HELM_3, HELM_4], ids=lambda tool: f"helm {tool.version}")


@HELMS
def test_missing_secrets_and_keys_are_named(site: Site, namespace: str, values: dict[str, Any], helm: Tool) -> None:
    redis = values["redis"] | {"auth": {"enabled": True, "existingSecret": "redis"}}
    own = values | {"checkCluster": True, "database": {}, "redis": redis}
    install = ("install", "party", str(CHART), "--namespace", namespace, "--timeout", "30s")
    said = site.helm(*install, tool=helm, values=own, check=False)
    assert f"the Secret party is missing: kubectl --namespace {namespace} create secret generic party" in said
    assert "the Secret redis is missing" in said
    site.kubectl("--namespace", namespace, "create", "secret", "generic", "party", "--from-literal=OTHER=1")
    said = site.helm(*install, tool=helm, values=own, check=False)
    assert "the Secret party has no key DATABASE_URL: add it" in said
    assert site.get("scaledjobs,configmaps", "--namespace", namespace, "--selector", "app.kubernetes.io/name") == []
    without = own | {"checkCluster": False, "migration": {"enabled": False}}
    assert "STATUS: deployed" in site.helm(*install, tool=helm, values=without)
