"""`helm template` as a function: values in, parsed objects out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tools import binaries

CHART = binaries.ROOT / "helm" / "spottmee-worker"
CASES = Path(__file__).parents[1] / "tests" / "chart" / "values"
RELEASE = "faces"
NAMESPACE = "party"
OLDEST, NEWEST = "1.29", "1.37"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a chart with one set of values comes to."""

    objects: tuple[Object, ...]

    def find(self, kind: str, name: str) -> Object:
        """Return the one object of that kind and name. Raises `KeyError`."""
        return {(item["kind"], item["metadata"]["name"]): item for item in self.objects}[kind, name]

    def of_kind(self, kind: str) -> list[Object]:
        """Return the objects of one kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Return every pod template with the name of what it belongs to: `{"metadata": …, "spec": …}`."""
        for item in self.objects:
            spec = item.get("spec", {})
            template = {
                "ScaledJob": lambda s: s["jobTargetRef"]["template"],
                "CronJob": lambda s: s["jobTemplate"]["spec"]["template"],
                "Job": lambda s: s["template"],
            }.get(item["kind"])
            if template is not None:
                yield item["metadata"]["name"], template(spec)
            elif item["kind"] == "Pod":
                yield item["metadata"]["name"], item


class HelmError(Exception):
    """helm refused the values; the message is helm's own."""


def helm(tool: binaries.Tool, *arguments: str) -> str:
    """Return what helm prints. Raises `HelmError`."""
    done = subprocess.run([str(binaries.ensure(tool)), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def render(
    tool: binaries.Tool,
    values: Object | None = None,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    kube: str = NEWEST,
) -> Rendered:
    """Return the objects for `values` (those that differ from the chart's own)."""
    return _render(tool, json.dumps(values or {}), release, namespace, kube)


@cache
def _render(tool: binaries.Tool, values: str, release: str, namespace: str, kube: str) -> Rendered:
    done = subprocess.run(
        [
            *(str(binaries.ensure(tool)), "template", release, str(CHART), "--namespace", namespace),
            *("--kube-version", kube, "--values", "-"),
        ],
        input=values,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise HelmError(done.stderr)
    documents = [document for document in yaml.safe_load_all(done.stdout) if document is not None]
    return Rendered(tuple(sorted(documents, key=lambda item: (item["kind"], item["metadata"]["name"]))))


def cases() -> dict[str, Object]:
    """Return the sets of values that the tests render, by name: one file each, and the defaults."""
    return {"defaults": {}} | {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CASES.glob("*.yaml"))
    }


def environment(pod: Object, objects: Rendered) -> dict[str, str]:
    """Return the environment of a pod's container as the kubelet would make it, without what the cluster fills in."""
    container = pod["spec"]["containers"][0]
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= objects.find("ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif reference := variable["valueFrom"].get("secretKeyRef"):
            try:
                found[variable["name"]] = objects.find("Secret", reference["name"])["stringData"][reference["key"]]
            except KeyError:
                continue  # an existing Secret, which is not the chart's
    return found
