"""The chart as a dependency of a parent chart, also several times: each copy has names and selectors of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import binaries
from tools.render import CHART, HelmError, Object, cases, helm, render

NAME, INSTANCE = "app.kubernetes.io/name", "app.kubernetes.io/instance"
METRICS = {"enabled": True, "monitor": {"enabled": True}, "rules": {"enabled": True}, "dashboard": {"enabled": True}}
# PriorityClasses and extraObjects have the names of the values.
EVERYTHING = cases()["everything"] | {"priorityClasses": [], "extraObjects": [], "metrics": METRICS}
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"]
SELECTING = ("NetworkPolicy", "Deployment", "Service", "ServiceMonitor")

# Aliases (or the chart's own name) and their fullnameOverride → base names of their objects in a release `party`.
COPIES: dict[str, tuple[dict[str, str], set[str]]] = {
    "two aliases": ({"album": "", "guests": ""}, {"party-album", "party-guests"}),
    "one alias": ({"spottmee-worker": "", "guests": ""}, {"party", "party-guests"}),
    "named aliases": ({"album": "photos", "guests": "selfies"}, {"photos", "selfies"}),
}


def _write(folder: Path, name: str, dependencies: list[Object]) -> Path:
    (folder / name / "charts").mkdir(parents=True)
    chart = {"apiVersion": "v2", "name": name, "version": "1.0.0", "dependencies": dependencies}
    (folder / name / "Chart.yaml").write_text(json.dumps(chart), encoding="utf-8")
    return folder / name


def _parent(folder: Path, name: str, aliases: list[str]) -> Path:
    dependency = {"name": "spottmee-worker", "version": VERSION}
    chart = _write(folder, name, [dependency | {"alias": alias} for alias in aliases])
    (chart / "charts" / "spottmee-worker").symlink_to(CHART)
    return chart


def _templated(tool: binaries.Tool, chart: Path, values: Object) -> list[Object]:
    given = chart.with_name("values.json")
    given.write_text(json.dumps(values), encoding="utf-8")
    text = helm(tool, "template", "party", str(chart), "--namespace", "party", "--values", str(given))
    return [item for item in yaml.safe_load_all(text) if item]


def _pods(objects: list[Object]) -> Iterator[Object]:
    for item in objects:
        spec = item.get("spec", {})
        job = spec.get("jobTargetRef") or spec.get("jobTemplate", {}).get("spec") or spec
        if "template" in job:
            yield job["template"]["metadata"]["labels"]
        elif item["kind"] == "Pod":
            yield item["metadata"]["labels"]


def _selector(item: Object) -> Object:
    spec = item["spec"]
    found = spec["podSelector"] if item["kind"] == "NetworkPolicy" else spec["selector"]
    labels: Object = found if item["kind"] == "Service" else found["matchLabels"]
    return labels


def _assert_apart(objects: list[Object], names: set[str]) -> None:
    keys = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(keys) == len(set(keys)), "two objects have the same name"
    assert {item["metadata"]["name"] for item in objects if item["kind"] == "ConfigMap"} >= names
    assert {pod[INSTANCE] for pod in _pods(objects)} == names
    selecting = [item for item in objects if item["kind"] in SELECTING]
    assert {item["kind"] for item in selecting} == set(SELECTING)
    services = [item["metadata"]["labels"] for item in objects if item["kind"] == "Service"]
    for item in selecting:
        labels = _selector(item)
        among = services if item["kind"] == "ServiceMonitor" else list(_pods(objects))
        selected = {found[INSTANCE] for found in among if labels.items() <= found.items()}
        assert selected == {item["metadata"]["labels"][INSTANCE]}, item["metadata"]["name"]
        assert labels[NAME] == "spottmee-worker", "status and doctor find objects by it"


@pytest.mark.parametrize("copies", COPIES)
def test_copies_in_one_parent_chart_share_no_name_and_no_selector(
    helm_tool: binaries.Tool, tmp_path: Path, copies: str
) -> None:
    aliases, names = COPIES[copies]
    values = {alias: EVERYTHING | {"fullnameOverride": name} for alias, name in aliases.items()}
    _assert_apart(_templated(helm_tool, _parent(tmp_path, "parent", list(aliases)), values), names)


def test_copies_in_two_children_of_a_parent_chart_are_told_apart_by_their_names(
    helm_tool: binaries.Tool, tmp_path: Path
) -> None:
    parent = _write(tmp_path, "parent", [{"name": name, "version": "1.0.0"} for name in ("album", "guests")])
    for name in ("album", "guests"):
        _parent(parent / "charts", name, ["spottmee-worker"])
    values = {name: {"spottmee-worker": EVERYTHING | {"fullnameOverride": name}} for name in ("album", "guests")}
    _assert_apart(_templated(helm_tool, parent, values), {"album", "guests"})


def test_a_single_copy_without_an_alias_is_rendered_as_without_a_parent_chart(
    helm_tool: binaries.Tool, tmp_path: Path
) -> None:
    parent = _parent(tmp_path, "parent", ["spottmee-worker"])
    objects = _templated(helm_tool, parent, {"spottmee-worker": EVERYTHING})
    alone = render(helm_tool, EVERYTHING, release="party").objects
    assert sorted(objects, key=_key) == sorted(alone, key=_key)


def _key(item: Object) -> tuple[Any, ...]:
    return item["kind"], item["metadata"]["name"]


def test_a_release_of_its_own_keeps_its_selectors_when_its_objects_are_renamed(helm_tool: binaries.Tool) -> None:
    objects = render(helm_tool, {"fullnameOverride": "photos"}, release="party").objects
    assert {item["metadata"]["labels"][INSTANCE] for item in objects} == {"party"}


def test_an_alias_that_no_object_can_be_named_after_is_refused(helm_tool: binaries.Tool, tmp_path: Path) -> None:
    parent = _parent(tmp_path, "parent", ["Album"])
    with pytest.raises(HelmError, match=r"the alias \"Album\" is part of every name.*set fullnameOverride"):
        _templated(helm_tool, parent, {"Album": {}})
    assert _templated(helm_tool, parent, {"Album": {"fullnameOverride": "album"}})
