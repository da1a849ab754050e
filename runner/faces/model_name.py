"""The name of the model of a baked pack, for commands that do not load it: `runner.faces.pack` imports onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

from runner.errors import ModelError
from runner.output import repeated

MANIFEST = "manifest.json"


def model_name(folder: Path) -> str:
    """Return the model name under which runs with the pack in `folder` store embeddings. Raises `ModelError`."""
    try:
        name = json.loads((folder / MANIFEST).read_bytes())["model"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise ModelError(f"there is no readable {MANIFEST} in {repeated(str(folder))} (RUNNER_MODEL_DIR)")
    return name
