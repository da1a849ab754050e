"""Where the end-to-end tests run: on a control plane of their own, or on an existing cluster.

These variables make `make e2e` use an existing cluster, in which the tests install releases and drain nodes:

    E2E_KUBECONFIG     a kubeconfig; its current context is used
    E2E_IMAGE          the worker's image, REPOSITORY:TAG, which the nodes can pull or already have
    E2E_HOST           an address of this machine that pods can reach, to serve the photos (kind: 172.18.0.1)
    E2E_REDIS_URL      an empty Redis that pods, KEDA and this machine can reach; each test deletes everything in it
    E2E_DATABASE_URL   a PostgreSQL with pgvector and the API's table, likewise; each test deletes its photos first
    E2E_DRAIN=1        permit draining a node (it is uncordoned afterwards)
    E2E_NETWORK_POLICY=1   the cluster's network plug-in enforces NetworkPolicy: test the chart's policy too
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e import build
from tests.e2e.controlplane import ControlPlane, Daemon
from tools.binaries import HELM_4, KUBECTL, Tool, ensure

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "spottmee-worker"
NODES = ("node-a", "node-b")
COMMAND_SECONDS = 300
REQUIRED = ("E2E_KUBECONFIG", "E2E_IMAGE", "E2E_HOST", "E2E_REDIS_URL", "E2E_DATABASE_URL")

Object = dict[str, Any]


@dataclass
class Site:
    """A cluster, with helm and kubectl. `no_keda` and `no_drain` say why something is not possible here."""

    kubeconfig: Path
    image: str
    host: str = "127.0.0.1"
    control_plane: ControlPlane | None = None
    no_keda: str | None = None
    no_drain: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def kubectl(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        """Return kubectl's output."""
        return self._run([str(ensure(KUBECTL)), *arguments], check=check, text=text)

    def get(self, *arguments: str) -> list[Object]:
        """Return the items of `kubectl get`."""
        found: list[Object] = json.loads(self.kubectl("get", *arguments, "--output", "json"))["items"]
        return found

    def helm(self, *arguments: str, tool: Tool = HELM_4, check: bool = True, values: object = None) -> str:
        """Return helm's output; `values` are passed on its standard input."""
        extra = [] if values is None else ["--values", "-"]
        text = None if values is None else json.dumps(values)
        return self._run([str(ensure(tool)), *arguments, *extra], check=check, text=text)

    def worker(self, *arguments: str, text: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `spottmee-worker` with this cluster's kubeconfig and return the result."""
        return subprocess.run(
            [sys.executable, "-m", "runner", *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), **more},
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def start_node(self, name: str) -> Daemon:
        """Start a node of the tests' own control plane."""
        assert self.control_plane is not None
        plane = self.control_plane
        program = Path(sys.executable).parent / "spottmee-worker"
        command = [sys.executable, "-m", "tests.e2e.kubelet", "--node", name, "--image", f"spottmee-worker={program}"]
        own = {"KUBECONFIG": str(self.kubeconfig), "PYTHONPATH": str(ROOT)}
        return plane.start(
            name, [*command, "--certificate", str(plane.certificate), "--key", str(plane.key)], environment=own
        )

    def _run(self, command: list[str], *, check: bool, text: str | None) -> str:
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), **self.environment}
        done = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{Path(command[0]).name} {' '.join(command[1:])}: {done.stderr or done.stdout}")
        return done.stdout + done.stderr if done.returncode or not done.stdout else done.stdout


def unavailable() -> str | None:
    """Return why there is no site, or None."""
    if "E2E_KUBECONFIG" in os.environ:
        absent = [name for name in REQUIRED if not os.environ.get(name)]
        return f"with E2E_KUBECONFIG, also set {', '.join(absent)} (see tests/e2e/site.py)" if absent else None
    if not os.environ.get("E2E"):
        return "run the end-to-end tests with `make e2e`, which builds a control plane for them"
    return build.missing()


@contextmanager
def opened() -> Iterator[Site]:
    """Yield the existing cluster, or a new control plane with two nodes and, if it has been built, KEDA."""
    if "E2E_KUBECONFIG" in os.environ:
        yield _existing()
        return
    with ControlPlane() as plane:
        site = Site(plane.kubeconfig, "spottmee-worker:e2e", control_plane=plane, no_keda=build.missing_keda())
        homes = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        site.environment = {name: str(plane.folder / "helm") for name in homes}
        for node in NODES:
            site.start_node(node)
        if build.CRDS.exists():
            site.kubectl("create", "--filename", str(build.CRDS))
            kinds = "scaledjobs,scaledobjects,triggerauthentications,clustertriggerauthentications"
            wait(lambda: "No resources" in site.kubectl("get", kinds, "--ignore-not-found=false", check=False), "CRDs")
        if site.no_keda is None:
            plane.start_keda()
        wait(lambda: len(site.get("nodes")) == len(NODES), "the nodes")
        wait(lambda: all(_is_ready(node) for node in site.get("nodes")), "nodes that are ready")
        yield site


def _existing() -> Site:
    environment: Mapping[str, str] = os.environ
    site = Site(Path(environment["E2E_KUBECONFIG"]), environment["E2E_IMAGE"], host=environment["E2E_HOST"])
    operators = site.get("deployments", "--all-namespaces", "--selector", "app.kubernetes.io/name=keda-operator")
    ready = any(item["status"].get("readyReplicas") for item in operators)
    site.no_keda = None if ready else "KEDA's operator is not running in this cluster"
    site.no_drain = None if environment.get("E2E_DRAIN") == "1" else "E2E_DRAIN=1 is not set, so no node is drained"
    return site


def _is_ready(node: Object) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"].get("conditions") or [])


def wait(holds: Callable[[], Any], what: str, seconds: float = 90.0) -> Any:
    """Wait until `holds` returns a true value and return it; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.25)
    return found
