"""Photos per second from bytes to embeddings, compared with `FaceAnalysis` and with bare inference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.figures import Row, Spread, Target, ratios
from benchmarks.sides import SIDES
from benchmarks.world import BenchmarkError, originals
from runner.settings import default_model_dir

PART = "throughput"
ABOUT = {"web": "web-size photos", "phone": "12-megapixel photos", "group": "group photos"}
AGAINST_REFERENCE = {"web": 2.2, "phone": 2.4, "group": 1.6}
# The least work that any engine must do. JPEG decoding is 4 to 7% of it for web-size and group photos, and half for 12
# megapixels. The table also shows inference alone, and the work that this engine gives to onnxruntime.
LIMIT = "bare+jpeg"
LIMIT_ABOUT = {
    "bare+jpeg": "session.run + JPEG decoding",
    "bare": "bare session.run",
    "own+jpeg": "the engine's own session.run + JPEG decoding",
}
SHARE_OF_LIMIT = 0.9


class Side:
    """A running process of `sides.py`."""

    def __init__(self, name: str, folder: Path, model: Path) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sides", name, str(folder), str(model)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # as in a run
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # InsightFace prints what it loads
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def measure(self, photo_set: str) -> dict[str, Any]:
        """Return the side's answer for one measurement of the set."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{photo_set}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stderr is not None
        seen = []
        for line in self._process.stderr:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            seen.append(line)
        raise BenchmarkError(f"the side {self.name} ended unexpectedly: {''.join(seen)[-2000:]}")


def measure(rounds: int) -> list[Row]:
    """Return the rows of this part."""
    with ExitStack() as stack:
        folder = stack.enter_context(originals())
        sides = [Side(name, folder, default_model_dir()) for name in SIDES]
        for side in sides:
            stack.callback(side.close)
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for _ in range(rounds):
            for photo_set in material.SETS:
                for side in sides:
                    found.setdefault((photo_set, side.name), []).append(side.measure(photo_set))
    return [row for photo_set in material.SETS for row in _rows(photo_set, found)]


def _rows(photo_set: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[Row]:
    faces = {answer["faces"] for side in SIDES for answer in found[photo_set, side]}
    if len(faces) != 1:
        raise BenchmarkError(f"the sides find different numbers of faces on {photo_set}: {sorted(faces)}")
    rates = {
        side: Spread.of(answer["photos"] / answer["seconds"] for answer in found[photo_set, side]) for side in SIDES
    }
    first = found[photo_set, "engine"][0]
    about = f"{ABOUT[photo_set]}, {first['faces'] / first['photos']:.1f} faces"
    processor = {side: Spread.of(a["processor_seconds"] for a in found[photo_set, side]) for side in SIDES}
    saved = ratios(processor["reference"], processor["engine"]).median
    rows = [
        Row(
            PART,
            about,
            "photos/s",
            rates["engine"],
            rates["reference"],
            "FaceAnalysis",
            ratios(rates["engine"], rates["reference"]),
            Target("≥", AGAINST_REFERENCE[photo_set]),
            note=f"{saved:.2f} times less CPU time",
        )
    ]
    for side, name in LIMIT_ABOUT.items():
        target = Target("≥", SHARE_OF_LIMIT) if side == LIMIT else None
        share = ratios(rates["engine"], rates[side])
        what, note = f"{about}: share of the limit", f"{_by_processor(processor, side):.2f} by CPU time"
        rows.append(Row(PART, what, "photos/s", rates["engine"], rates[side], name, share, target, note))
    return rows


def _by_processor(processor: Mapping[str, Spread], side: str) -> float:
    return ratios(processor[side], processor["engine"]).median
