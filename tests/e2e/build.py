"""Builds the binaries of a real control plane and of KEDA's operator from the Go module proxy, into .cache/e2e.

`python -m tests.e2e.build` builds what is missing. It needs Go and, on 2 idle cores, about a quarter of an hour. The
modules are pinned: Kubernetes by tests/e2e/tools/go.sum, KEDA by the hash below and its own go.sum.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "e2e"
TOOLS = Path(__file__).parent / "tools"
CONTROL_PLANE = CACHE / "controlplane"
KEDA = CACHE / "keda-operator"
CRDS = CACHE / "crds"

KUBERNETES_VERSION = "v1.37.2"
KEDA_MODULE = "github.com/kedacore/keda/v2"
KEDA_VERSION = "v2.21.0"
KEDA_SUM = "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps="

_MISSING = "build it with `make e2e` (needs Go, and about a quarter of an hour)"


class BuildError(Exception):
    """A binary could not be built; the message says what to do."""


def missing() -> str | None:
    """Return a message if the control plane has not been built, else None."""
    return None if CONTROL_PLANE.exists() else f"there is no control plane in {CACHE.relative_to(ROOT)}: {_MISSING}"


def missing_keda() -> str | None:
    """Return a message if KEDA has not been built, else None."""
    return None if KEDA.exists() and CRDS.exists() else f"there is no KEDA in {CACHE.relative_to(ROOT)}: {_MISSING}"


def build_control_plane() -> None:
    """Build kube-apiserver, kube-controller-manager, kube-scheduler and etcd as one program."""
    if CONTROL_PLANE.exists():
        return
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    marks = [
        f"-X {version}.gitVersion={KUBERNETES_VERSION}",
        f"-X {version}.gitMajor={major}",
        f"-X {version}.gitMinor={minor}",
    ]
    _go_build(TOOLS, "./controlplane", CONTROL_PLANE, marks)


def build_keda() -> None:
    """Build KEDA's operator, and store the CRDs of the same version with it."""
    if KEDA.exists() and CRDS.exists():
        return
    found = json.loads(_go("mod", "download", "-json", f"{KEDA_MODULE}@{KEDA_VERSION}", cwd=TOOLS))
    if found["Sum"] != KEDA_SUM:
        raise BuildError(f"KEDA {KEDA_VERSION} has the hash {found['Sum']}, but {KEDA_SUM} was expected")
    source = Path(found["Dir"])
    CRDS.mkdir(parents=True, exist_ok=True)
    for crd in (source / "config" / "crd" / "bases").glob("*.yaml"):
        shutil.copyfile(crd, CRDS / crd.name)
    _go_build(source, "./cmd/operator", KEDA, [])


def _go_build(folder: Path, package: str, to: Path, marks: list[str]) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = to.with_suffix(".partial")
    flags = " ".join(["-s", "-w", *marks])
    _go(
        "build",
        "-mod=readonly",
        "-buildvcs=false",
        "-trimpath",
        f"-ldflags={flags}",
        "-o",
        str(partial),
        package,
        cwd=folder,
    )
    partial.rename(to)


def _go(*arguments: str, cwd: Path) -> str:
    if shutil.which("go") is None:
        raise BuildError("go is not installed: install Go 1.26 or newer (https://go.dev/dl)")
    environment = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(
        ["nice", "-n", "15", "go", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"go {arguments[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def main() -> int:
    """Build everything that is missing."""
    try:
        for build, to in ((build_control_plane, CONTROL_PLANE), (build_keda, KEDA)):
            print(f"{to.relative_to(ROOT)} …", flush=True)
            build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
