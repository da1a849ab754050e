"""The schemas of the Prometheus operator's CRDs, from its Go module; strict as an API server is."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.chart.keda_schemas import closed

MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
_SECONDS = 120


@cache
def operator_validator(kind: str) -> Draft7Validator:
    """Return what checks objects of a kind. Skips the test where Go, or the module, cannot be had."""
    folder, problem = _module()
    if folder is None:
        pytest.skip(f"the Prometheus operator's CRDs, which Go fetches, are missing: {problem}")
    name = f"monitoring.coreos.com_{kind.lower()}s.yaml"
    crd = yaml.safe_load((folder / "example" / "prometheus-operator-crd" / name).read_text(encoding="utf-8"))
    (version,) = crd["spec"]["versions"]
    assert version["name"] == "v1"
    return Draft7Validator(closed(version["schema"]["openAPIV3Schema"]))


@cache
def _module() -> tuple[Path | None, str]:
    """Return the folder of the module, and else why there is none."""
    with tempfile.TemporaryDirectory() as elsewhere:  # than in a module's own folder
        try:
            done = subprocess.run(
                ["go", "mod", "download", "-json", MODULE],
                cwd=elsewhere,
                env={**os.environ, "GOFLAGS": "", "GOTOOLCHAIN": "local"},
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, str(error)
    if done.returncode:
        return None, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["Sum"] == SUM
    return Path(found["Dir"]), ""
