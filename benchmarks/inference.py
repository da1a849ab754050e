"""The two graphs alone: detects a version of onnxruntime that is slow at the recogniser's operators.

Milliseconds differ between machines, so the unit is one run of the original detector: it has no PRelu, and is equally
fast in every version. Measured in CPU time of one thread, which other load on the machine hardly affects.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.figures import Row, Spread, Target, ratios
from runner.bake.catalogue import KNOWN
from runner.bake.sources import wheel_folder
from runner.faces import pack
from runner.faces.providers import CPU, PROVIDERS
from runner.settings import default_model_dir

PART = "inference"
CROPS_A_CALL = PROVIDERS["cpu"][1]  # the engine's batch size
# A face costs 0.57 detections with onnxruntime 1.24.4, and 0.85 with 1.32.0 (slow PRelu; 2 cores, AVX-512).
MOST_DETECTIONS_A_FACE = 0.7


def measure(rounds: int) -> list[Row]:
    """Return the row of this part."""
    folder = default_model_dir()
    recogniser = pack.open_graph(folder, pack.read_manifest(folder).recogniser, (CPU,), tuned=False)
    detector = pack.open_session(wheel_folder() / KNOWN["buffalo_sc"].detectors[0], (CPU,))
    crops = np.random.default_rng(0).random((CROPS_A_CALL, 3, 112, 112), np.float32)
    photo = np.zeros((1, 3, 640, 640), np.float32)
    pairs = [
        (_milliseconds(recogniser, crops) / CROPS_A_CALL, _milliseconds(detector, photo)) for _ in range(rounds + 1)
    ]
    a_face, a_photo = (Spread.of(values) for values in zip(*pairs[1:], strict=True))  # the first call allocates
    return [
        Row(
            PART,
            "recogniser, CPU time per face",
            "ms",
            a_face,
            a_photo,
            "detector, per photo",
            ratios(a_face, a_photo),
            Target("≤", MOST_DETECTIONS_A_FACE),
        )
    ]


def _milliseconds(session: Any, values: Any) -> float:
    started = time.thread_time()
    session.run(None, {session.get_inputs()[0].name: values})
    return 1000 * (time.thread_time() - started)
