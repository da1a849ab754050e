"""Where the artefacts of a release come from: an in-toto statement with SLSA's provenance predicate, version 1.

https://slsa.dev/spec/v1.0/provenance. The release workflow signs it; a rehearsal leaves it unsigned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.release.source import Source

_BUILD_TYPE = "docs/how-to/release.md"  # below the repository's address
_MATERIALS = ("Dockerfile", "requirements/bake.txt", "requirements/run-cpu.txt", "requirements/run-gpu.txt")


def statement(source: Source, subjects: Mapping[str, str], *, builder: str, base: str) -> dict[str, Any]:
    """Return the statement about `subjects`, sha256 by name."""
    materials = [{"uri": f"file:{name}", "digest": {"sha256": sha256(source.folder / name)}} for name in _MATERIALS]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
            for name, digest in sorted(subjects.items())
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{source.url}/{_BUILD_TYPE}",
                "externalParameters": {"version": source.version, "base": base},
                "resolvedDependencies": [
                    {"uri": f"git+{source.url}", "digest": {"gitCommit": source.commit}},
                    *materials,
                ],
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write the statement, the same bytes for the same content."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
