"""The plain manifests on a real API server: strict validation, and Pod Security "restricted"."""

from __future__ import annotations

import pytest
import yaml

from tests.e2e.site import Object, Site
from tools.manifests import PRODUCTION, ROOT

APPLY = ("apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-")


def kustomized(site: Site, overlay: str, namespace: str) -> list[Object]:
    """Return kustomize's objects in the test's namespace, because the overlay's own namespace may be in use."""
    found = yaml.safe_load_all(site.kubectl("kustomize", str(ROOT / overlay)))
    objects: list[Object] = [item for item in found if item["kind"] != "Namespace"]
    for item in objects:
        if "namespace" in item["metadata"]:
            item["metadata"]["namespace"] = namespace
    return objects


@pytest.mark.parametrize("overlay", ["k8s/overlays/laptop", PRODUCTION])
def test_the_server_accepts_an_overlay_without_a_warning(site: Site, namespace: str, overlay: str) -> None:
    objects = kustomized(site, overlay, namespace)
    lines = site.kubectl(*APPLY, text=yaml.safe_dump_all(objects)).splitlines()
    assert "scaledjob.keda.sh/spottmee-worker-process created (server dry run)" in lines
    assert len(lines) == len(objects)


def test_a_warning_of_the_server_fails_kubectl(site: Site, namespace: str) -> None:
    (redis,) = (
        item
        for item in kustomized(site, "k8s/overlays/laptop", namespace)
        if item["kind"] == "Deployment" and item["metadata"]["name"] == "redis"
    )
    del redis["spec"]["template"]["spec"]["securityContext"]
    with pytest.raises(AssertionError, match=r"would violate PodSecurity.*\n.*1 warning"):
        site.kubectl(*APPLY, text=yaml.safe_dump(redis))
