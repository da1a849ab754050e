"""The policy scan (`make policy`): checkov on every object of the chart and the overlays, and on the Dockerfile.

checkov runs in an environment of its own (requirements/policy.txt). A failed check must be among the exceptions below,
with the reason; an exception that is no longer needed fails too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools import binaries, manifests
from tools.render import Object, cases, render

CHECKOV = binaries.ROOT / ".cache" / "policy" / "bin" / "checkov"
NAMESPACE = "party"
DOCKERFILE = binaries.ROOT / "Dockerfile"
OVERLAYS = ("k8s/overlays/laptop", manifests.PRODUCTION)


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a check may fail, for the resources whose description contains one of `where`."""

    why: str
    where: tuple[str, ...] = ("",)


EXCEPTIONS = {
    "CKV_K8S_35": Explained(
        "Secrets as environment variables: the contract defines their names (DATABASE_URL), and no child process "
        "inherits them. A file would be read into the same process."
    ),
    "CKV_K8S_43": Explained(
        "Images by digest: the digest belongs to each user's own build, so it is a value (image.digest), not a default."
    ),
    "CKV_K8S_15": Explained(
        "Image pull policy Always: a pod lives for seconds, and its tag is that of a release; `Always` would query the "
        "registry for each pod. The production overlay still sets it."
    ),
    "CKV_K8S_8": Explained("Liveness: the pod of `helm test` runs one command and ends.", ("-test",)),
    "CKV_K8S_9": Explained("Readiness: the pod of `helm test` runs one command and ends.", ("-test",)),
    "CKV_K8S_38": Explained(
        "A token of a service account: the pod of `helm test` reads READY of its ScaledJobs; no other pod has one.",
        ("-test",),
    ),
    "CKV_K8S_22": Explained(
        "A read-only filesystem: this case adds an init container of another vendor, which sets it to false.",
        ("platform.yaml",),
    ),
    "CKV_K8S_40": Explained(
        "User ids above 10000: OpenShift assigns them itself, and redis and postgres of the laptop overlay run as the "
        "users of their images.",
        ("openshift.yaml", "laptop-overlay.yaml: Deployment"),
    ),
    "CKV2_K8S_6": Explained(
        "A NetworkPolicy for every pod: it is a value (networkPolicy.enabled), on in the production overlay, because "
        "its ports depend on the servers."
    ),
    "CKV_DOCKER_7": Explained("A tag for the base image: it is part of the build argument BASE.", ("Dockerfile.FROM",)),
    "CKV_DOCKER_2": Explained("HEALTHCHECK: Kubernetes ignores it, and the container runs one command and ends."),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that a resource fails."""

    check: str
    name: str
    resource: str


def scanned() -> Iterator[tuple[str, list[Object]]]:
    """Yield the scanned files: a name, and its objects, each in a namespace, with ScaledJobs as Jobs."""
    for case, values in cases().items():
        yield f"{case}.yaml", [_as_builtin(item) for item in render(binaries.HELM_4, values).objects]
    for overlay in OVERLAYS:
        done = subprocess.run(
            [str(binaries.ensure(binaries.KUBECTL)), "kustomize", overlay],
            cwd=binaries.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        yield f"{Path(overlay).name}-overlay.yaml", [_as_builtin(item) for item in yaml.safe_load_all(done.stdout)]


def _as_builtin(item: Object) -> Object:
    metadata = {"namespace": NAMESPACE} | item["metadata"]
    if item["kind"] == "ScaledJob":
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": item["spec"]["jobTargetRef"]}
    return item | {"metadata": metadata}


def findings() -> tuple[int, list[Finding]]:
    """Return the number of passed checks, and the failed ones. Raises `RuntimeError` if checkov itself fails."""
    with tempfile.TemporaryDirectory() as folder:
        for name, objects in scanned():
            (Path(folder) / name).write_text(yaml.safe_dump_all(objects, sort_keys=False))
        if DOCKERFILE.exists():
            (Path(folder) / "Dockerfile").write_bytes(DOCKERFILE.read_bytes())
        command = [str(CHECKOV), "-d", folder, "--framework", "kubernetes", "dockerfile", "-o", "json"]
        # --skip-download keeps checkov from looking anything up online.
        done = subprocess.run(
            [*command, "--compact", "--skip-download"], capture_output=True, text=True, check=False, cwd=folder
        )
    try:
        reports: Any = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise RuntimeError(f"checkov failed:\n{done.stderr or done.stdout}") from None
    reports = reports if isinstance(reports, list) else [reports]
    failed = [
        Finding(found["check_id"], found["check_name"], f"{found['file_path'].lstrip('/')}: {found['resource']}")
        for report in reports
        for found in report["results"]["failed_checks"]
    ]
    return sum(report["summary"]["passed"] for report in reports), failed


def is_explained(found: Finding) -> bool:
    """Return whether an exception covers the finding."""
    explained = EXCEPTIONS.get(found.check)
    return explained is not None and any(where in found.resource for where in explained.where)


def main() -> int:
    """Scan, and print the findings without an exception."""
    passed, failed = findings()
    unexplained = [found for found in failed if not is_explained(found)]
    for found in unexplained:
        print(f"{found.check} {found.resource}\n    {found.name}")
    unused = sorted(set(EXCEPTIONS) - {found.check for found in failed})
    if not DOCKERFILE.exists():
        unused = [check for check in unused if not check.startswith("CKV_DOCKER")]
    for check in unused:
        print(f"{check}: no resource fails this check any more; remove the exception")
    explained = len(failed) - len(unexplained)
    print(f"{passed} checks passed, {explained} failed with an exception, {len(unexplained)} failed without one")
    return 1 if unexplained or unused or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
