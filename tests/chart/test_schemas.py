"""Every rendered object is valid by the schemas of the oldest and newest Kubernetes, and of KEDA, in strict mode."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from tests.chart.keda_schemas import keda_validator
from tests.chart.operator_schemas import operator_validator
from tools import binaries
from tools.render import NEWEST, OLDEST, Object, cases, render

CASES = cases()
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def builtin_objects(case: str) -> list[Object]:
    """Return the objects of built-in kinds, and the Jobs that KEDA creates from the ScaledJobs."""
    found = []
    for item in render(binaries.HELM_4, CASES[case]).objects:
        if item["kind"] == "ScaledJob":
            found.append(
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": {"generateName": item["metadata"]["name"] + "-", "labels": item["metadata"]["labels"]},
                    "spec": item["spec"]["jobTargetRef"],
                }
            )
        elif not item["apiVersion"].startswith(("keda.sh/", "monitoring.coreos.com/")):
            found.append(item)
    return found


@EVERY_CASE
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_accepts_every_object(case: str, version: str) -> None:
    for item in builtin_objects(case):
        assert kubernetes_validate.validate(item, version, strict=True) == version


def test_kubernetes_schemas_reject_unknown_fields() -> None:
    job = next(item for item in builtin_objects("defaults") if item["kind"] == "Job")
    for path in (["spec"], ["spec", "template", "spec"], ["spec", "template", "spec", "containers", 0]):
        broken: Any = copy.deepcopy(job)
        target = broken
        for key in path:
            target = target[key]
        target["unheardOf"] = 1
        with pytest.raises(kubernetes_validate.ValidationError, match="unheardOf"):
            kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_the_newest_tested_version_is_the_latest_known_one() -> None:
    assert kubernetes_validate.latest_version() == f"{NEWEST}.0", (
        "render.NEWEST, Chart.yaml and the docs name the newest"
    )


def keda_objects(case: str) -> list[Object]:
    return [item for item in render(binaries.HELM_4, CASES[case]).objects if item["apiVersion"] == "keda.sh/v1alpha1"]


@EVERY_CASE
def test_keda_accepts_every_object(case: str) -> None:
    found = keda_objects(case)
    assert found
    for item in found:
        assert [error.message for error in keda_validator(item["kind"]).iter_errors(item)] == []


def test_the_cases_contain_both_kinds_of_authentication() -> None:
    kinds = {item["kind"] for case in CASES for item in keda_objects(case)}
    assert kinds == {"ScaledJob", "TriggerAuthentication", "ClusterTriggerAuthentication"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "unheardOf"), 1),
        (("spec", "rollout", "unheardOf"), 1),
        (("spec", "rollout", "strategy"), "sudden"),
        (("spec", "scalingStrategy", "multipleScalersCalculation"), "product"),
        (("spec", "maxReplicaCount"), 0),
        (("spec", "triggers", 0, "metadata", "listLength"), 50),
        (("spec", "triggers", 0, "authenticationReference"), {"name": "x"}),
        (("spec", "jobTargetRef", "template", "spec", "containers", 0, "unheardOf"), 1),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else None,
)
def test_kedas_schemas_reject_invalid_fields(path: tuple[str | int, ...], value: object) -> None:
    item = copy.deepcopy(next(item for item in keda_objects("defaults") if item["kind"] == "ScaledJob"))
    target: Any = item
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert list(keda_validator("ScaledJob").iter_errors(item))


def operator_objects() -> list[Object]:
    every = [item for case in CASES for item in render(binaries.HELM_4, CASES[case]).objects]
    return [item for item in every if item["apiVersion"] == "monitoring.coreos.com/v1"]


def test_the_prometheus_operator_accepts_every_object() -> None:
    found = operator_objects()
    assert {item["kind"] for item in found} == {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    for item in found:
        assert [error.message for error in operator_validator(item["kind"]).iter_errors(item)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ServiceMonitor", ("spec", "unheardOf"), 1),
        ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "often"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "podTargetLabels"), ["x"]),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "portNumber"), "9464"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "unheardOf"), 1),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "soon"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "labels"), {"severity": 1}),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else None,
)
def test_the_prometheus_operators_schemas_reject_invalid_fields(
    kind: str, path: tuple[str | int, ...], value: object
) -> None:
    item = copy.deepcopy(next(item for item in operator_objects() if item["kind"] == kind))
    target: Any = item
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert list(operator_validator(kind).iter_errors(item))
