"""Files beside the repository: labelled photographs and KEDA's CRDs. Tests that need them skip if they are absent."""

from __future__ import annotations

from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared"
SHARED_PHOTOS = SHARED / "photos"
CRDS = SHARED / "crds"
