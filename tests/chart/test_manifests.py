"""k8s/ and keda/ equal what the chart renders, and kustomize builds valid objects from them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml

from demo import api
from runner.store import schema
from runner.store.photos import PhotoTable
from tests.chart.keda_schemas import keda_validator
from tests.support.store_tools import opened
from tools import binaries, manifests
from tools.render import NEWEST, OLDEST, Object

KUBECTLS = pytest.mark.parametrize("kubectl", [binaries.KUBECTL_OLD, binaries.KUBECTL], ids=lambda tool: tool.version)
LAPTOP = "k8s/overlays/laptop"
EVERY_FOLDER = pytest.mark.parametrize("folder", [manifests.BASE, manifests.KEDA, LAPTOP, manifests.PRODUCTION])


def kustomized(folder: str, kubectl: binaries.Tool = binaries.KUBECTL) -> dict[tuple[str, str], Object]:
    done = subprocess.run(
        [str(binaries.ensure(kubectl)), "kustomize", folder],
        cwd=binaries.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}


def without_namespace(objects: dict[tuple[str, str], Object]) -> dict[tuple[str, str], Object]:
    return {
        key: item | {"metadata": {name: value for name, value in item["metadata"].items() if name != "namespace"}}
        for key, item in objects.items()
    }


def in_any_order(node: Any) -> Any:
    """Sort lists of named items, such as variables and volumes: kustomize puts the items of a patch first."""
    if isinstance(node, dict):
        return {key: in_any_order(value) for key, value in node.items()}
    if isinstance(node, list):
        items = [in_any_order(item) for item in node]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: str(item["name"])) if named else items
    return node


def test_the_rendered_files_are_current() -> None:
    wanted = manifests.files()
    assert {name: (binaries.ROOT / name).read_text(encoding="utf-8") for name in wanted} == wanted, (
        "run `make manifests`"
    )
    rendered = {
        str(path.relative_to(binaries.ROOT))
        for folder in (manifests.BASE, manifests.KEDA, manifests.PRODUCTION)
        for path in (binaries.ROOT / folder).rglob("*")
        if path.is_file() and path.read_text(encoding="utf-8").startswith(manifests.HEADER)
    }
    assert rendered == set(wanted), "a rendered file is no longer rendered"


@KUBECTLS
def test_base_and_keda_equal_the_chart(kubectl: binaries.Tool) -> None:
    found = kustomized(manifests.BASE, kubectl) | kustomized(manifests.KEDA, kubectl)
    assert found == manifests.plain({})


@KUBECTLS
def test_the_production_overlay_equals_the_chart_with_its_values(kubectl: binaries.Tool) -> None:
    values = yaml.safe_load((binaries.ROOT / manifests.PRODUCTION / "values.yaml").read_text(encoding="utf-8"))
    found = kustomized(manifests.PRODUCTION, kubectl)
    classes = {key for key in found if key[0] == "PriorityClass"}
    for kind, name in found:
        if (kind, name) not in classes:
            assert found[kind, name]["metadata"]["namespace"] == manifests.NAMESPACE
    assert in_any_order(without_namespace(found)) == in_any_order(manifests.plain(values))
    named = {
        item["spec"]["jobTargetRef"]["template"]["spec"]["priorityClassName"]
        for key, item in found.items()
        if key[0] == "ScaledJob"
    }
    assert named == {name for _, name in classes}
    # Below -10 the cluster autoscaler adds no node for a pod; the guest's pods may push out the album's, and no others.
    bulk, interactive = (found["PriorityClass", f"spottmee-{name}"] for name in ("bulk", "interactive"))
    assert -10 <= bulk["value"] < interactive["value"] < 0
    assert (bulk["preemptionPolicy"], interactive["preemptionPolicy"]) == ("Never", "PreemptLowerPriority")


@EVERY_FOLDER
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_accepts_the_objects_of_kustomize(folder: str, version: str) -> None:
    for item in kustomized(folder).values():
        if not item["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("folder", [LAPTOP, manifests.PRODUCTION])
def test_keda_accepts_the_objects_of_kustomize(folder: str) -> None:
    for item in kustomized(folder).values():
        if item["apiVersion"].startswith("keda.sh/"):
            assert [error.message for error in keda_validator(item["kind"]).iter_errors(item)] == []


def test_the_laptop_overlay_provides_everything_that_the_worker_needs() -> None:
    found = kustomized(LAPTOP)
    config = found["ConfigMap", "spottmee-worker"]["data"]
    assert config == {"REDIS_URL": "redis://redis.spottmee.svc:6379/0", "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true"}
    assert ("Service", "redis") in found
    assert ("Service", "postgres") in found
    assert set(found["Secret", "spottmee-worker"]["data"]) == {"DATABASE_URL"}
    for name in ("process", "compare"):
        spec = found["ScaledJob", f"spottmee-worker-{name}"]["spec"]
        assert spec["maxReplicaCount"] == 2
        assert spec["jobTargetRef"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "1Gi"


@pytest.mark.parametrize("folder", [LAPTOP, manifests.PRODUCTION])
def test_images_of_an_overlay_applies_to_scaled_jobs_too(folder: str, tmp_path: Path) -> None:
    """Kustomize does not know the fields of ScaledJobs by itself."""
    overlay = binaries.ROOT / ".cache" / f"kustomize-{tmp_path.name}"
    overlay.mkdir(parents=True)
    image = "spottmee-worker" if folder == LAPTOP else "registry.example.org/spottmee-worker"
    try:
        (overlay / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "resources": [f"../../{folder}"],
                    "images": [{"name": image, "newName": "other.example.org/faces", "newTag": "7"}],
                }
            )
        )
        found = kustomized(str(overlay.relative_to(binaries.ROOT)))
    finally:
        (overlay / "kustomization.yaml").unlink(missing_ok=True)
        overlay.rmdir()
    text = yaml.safe_dump(list(found.values()))
    assert text.count("image: other.example.org/faces:7") == 5  # two ScaledJobs, debug, sweep, migration
    assert f"image: {image}:" not in text


def test_the_table_of_the_laptop_overlay_equals_the_apis(empty_database_url: str, database_url: str) -> None:
    sql = (binaries.ROOT / LAPTOP / "photo-table.sql").read_text(encoding="utf-8")
    columns = (
        "SELECT column_name, data_type, udt_name, is_nullable, column_default, datetime_precision"
        " FROM information_schema.columns WHERE table_name = 'Photo' ORDER BY ordinal_position"
    )
    with opened(empty_database_url) as laptop, psycopg.connect(database_url) as real:
        laptop.execute(sql.encode())
        assert laptop.execute(columns).fetchall() == real.execute(columns).fetchall()
        PhotoTable(laptop).check()
        schema.migrate(laptop)
        schema.check(laptop)
    assert api.PROCESS_LIST.startswith("face_embeddings:")
