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

# Ten times as fast, if PyYAML was built with libyaml.
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects that the chart renders with one set of values."""

    objects: tuple[Object, ...]

    def find(self, kind: str, name: str) -> Object:
        """Return the object of that kind and name. Raises `KeyError`."""
        return {(item["kind"], item["metadata"]["name"]): item for item in self.objects}[kind, name]

    def of_kind(self, kind: str) -> list[Object]:
        """Return the objects of one kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield every pod template, `{"metadata": …, "spec": …}`, with the name of the object that it belongs to."""
        for item in self.objects:
            spec = item.get("spec", {})
            template = {
                "ScaledJob": lambda s: s["jobTargetRef"]["template"],
                "CronJob": lambda s: s["jobTemplate"]["spec"]["template"],
                "Deployment": lambda s: s["template"],
                "Job": lambda s: s["template"],
            }.get(item["kind"])
            if template is not None:
                yield item["metadata"]["name"], template(spec)
            elif item["kind"] == "Pod":
                yield item["metadata"]["name"], item


class HelmError(Exception):
    """helm rejected the values; the message is helm's own."""


def helm(tool: binaries.Tool, *arguments: str) -> str:
    """Return helm's output. Raises `HelmError` if it fails."""
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
    """Return the objects for `values`, which override the chart's defaults. Raises `HelmError`."""
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
    documents = [document for document in yaml.load_all(done.stdout, _LOADER) if document is not None]
    return Rendered(tuple(sorted(documents, key=lambda item: (item["kind"], item["metadata"]["name"]))))


def cases() -> dict[str, Object]:
    """Return the sets of values that the tests render, by name: the defaults, and one for each file."""
    return {"defaults": {}} | {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CASES.glob("*.yaml"))
    }


def environment(pod: Object, objects: Rendered) -> dict[str, str]:
    """Return the environment that the kubelet gives a pod's container, without the fields that the cluster fills in."""
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
                continue  # an existing Secret, which the chart does not create
    return found
