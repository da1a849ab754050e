"""Renders plain manifests for users without helm from the chart (`make manifests`): k8s/base, keda, production.

A test checks that they equal the chart, and that `kubectl kustomize` of the production overlay equals the chart with
that overlay's values.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tools import binaries
from tools.render import Object, render

ROOT = binaries.ROOT
RELEASE = "spottmee-worker"
# The namespace of both overlays, which the chart appends to a Redis host without a dot.
NAMESPACE = "spottmee"
BASE, KEDA = "k8s/base", "keda"
PRODUCTION = "k8s/overlays/production"
HEADER = "# Rendered from helm/spottmee-worker by `make manifests`: change the chart, or the overlay's values.yaml.\n"


def plain(values: Object) -> dict[tuple[str, str], Object]:
    """Return the objects of the chart for a deployment without helm, by kind and name.

    Hooks become ordinary objects, and the pod of `helm test` and its permissions are omitted.
    """
    found = {}
    for item in render(binaries.HELM_4, values, release=RELEASE, namespace=NAMESPACE).objects:
        if item["metadata"]["labels"].get("app.kubernetes.io/component") != "test":
            found[item["kind"], item["metadata"]["name"]] = _without_helm(item)
    return found


def _without_helm(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_helm(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _without_helm(value) for key, value in node.items() if not str(key).startswith("helm.sh/")}
    if "app.kubernetes.io/managed-by" in found:
        found["app.kubernetes.io/managed-by"] = "kustomize"
    return {key: value for key, value in found.items() if not (key == "annotations" and value == {})}


def difference(old: Any, new: Any, *, merges_lists: bool) -> Any:
    """Return what kustomize must merge into `old` to get `new`, or None if they are equal.

    Kustomize merges the lists of built-in kinds by name, and replaces those of other kinds. A patch cannot remove
    anything: raises `ValueError` if `new` lacks something that `old` has.
    """
    if old == new:
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if lacking := set(old) - set(new):
            raise ValueError(f"a patch cannot remove {', '.join(sorted(lacking))}")
        changed = {
            key: difference(old[key], value, merges_lists=merges_lists) if key in old else value
            for key, value in new.items()
        }
        return {key: value for key, value in changed.items() if value is not None}
    if merges_lists and isinstance(new, list) and all(isinstance(item, Mapping) and "name" in item for item in new):
        known = {item["name"]: item for item in old}
        if lacking := set(known) - {item["name"] for item in new}:
            raise ValueError(f"a patch cannot remove {', '.join(sorted(lacking))}")
        items = []
        for item in new:
            change = difference(known.get(item["name"]), item, merges_lists=True)
            if change is not None:
                items.append({"name": item["name"]} | change)
        return items
    return new


def _patch(old: Object, new: Object) -> Object:
    change = difference(old, new, merges_lists=not new["apiVersion"].startswith("keda.sh/")) or {}
    metadata = {"name": new["metadata"]["name"]} | change.pop("metadata", {})
    return {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": metadata} | change


def files() -> dict[str, str]:
    """Return every rendered file: its path relative to the repository's root → its text."""
    base = plain({})
    found = {f"{_folder(item)}/{_name(item)}": _text(item) for item in base.values()}
    for folder in (BASE, KEDA):
        names = sorted(Path(path).name for path in found if path.startswith(f"{folder}/"))
        found[f"{folder}/kustomization.yaml"] = _text(_kustomization(resources=names))
    values = yaml.safe_load((ROOT / PRODUCTION / "values.yaml").read_text(encoding="utf-8"))
    production = plain(values)
    if lacking := set(base) - set(production):
        raise ValueError(f"the production overlay cannot remove {lacking}")
    added = [item for key, item in production.items() if key not in base]
    changed = [_patch(base[key], item) for key, item in production.items() if key in base and base[key] != item]
    found |= {f"{PRODUCTION}/{_name(item)}": _text(item) for item in added}
    found |= {f"{PRODUCTION}/patch-{_name(item)}": _text(item) for item in changed}
    found[f"{PRODUCTION}/kustomization.yaml"] = _text(
        _kustomization(
            namespace=NAMESPACE,
            resources=["../../base", "../../../keda", *sorted(_name(item) for item in added)],
            patches=[{"path": f"patch-{_name(item)}"} for item in changed],
        )
    )
    return found


def _kustomization(**fields: Any) -> Object:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **fields}


def _folder(item: Object) -> str:
    return KEDA if item["apiVersion"].startswith("keda.sh/") else BASE


def _name(item: Object) -> str:
    name = item["metadata"]["name"]
    suffix = name.removeprefix(RELEASE) if name.startswith(RELEASE) else f"-{name}"
    return f"{item['kind'].lower()}{suffix}.yaml"


def _text(item: Object) -> str:
    return HEADER + yaml.safe_dump(item, sort_keys=False, allow_unicode=True, width=120)


def main() -> int:
    """Write all rendered files, and remove those that are no longer rendered."""
    wanted = files()
    for folder in (BASE, KEDA, PRODUCTION):
        for path in (ROOT / folder).glob("*.yaml"):
            if str(path.relative_to(ROOT)) not in wanted and path.read_text(encoding="utf-8").startswith(HEADER):
                path.unlink()
    for name, text in wanted.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
