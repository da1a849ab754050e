"""The schemas of KEDA's CRDs, strict as an API server is: unknown fields are rejected."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.support.shared_files import CRDS


@cache
def keda_validator(kind: str) -> Draft7Validator:
    path = CRDS / f"keda.sh_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KEDA's CRDs are missing: copy config/crd/bases/{path.name} of KEDA to {_shown(CRDS)}")
    crd = yaml.safe_load(path.read_text(encoding="utf-8"))
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1alpha1")
    return Draft7Validator(closed(version["schema"]["openAPIV3Schema"]))


def _shown(path: Path) -> str:
    return f"../{path.parent.name}/{path.name} (next to the repository)"


def closed(schema: Any) -> Any:
    """Return an OpenAPI schema of a CRD as a JSON schema that rejects unknown fields, like a strict API server."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    return found
