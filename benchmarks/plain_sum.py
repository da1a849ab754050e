"""The plain sum that a cold start is compared with: import every library that a run uses, load the models, infer once.

    python benchmarks/plain_sum.py MODEL_DIR PHOTO FACES

Nothing is checked, fetched, claimed or stored, and nothing is tuned: imports in the usual order, sessions with
onnxruntime's default options, so that the inference of the one photo uses all cores. Prints the Unix time at its end.
"""

from __future__ import annotations

import argparse  # noqa: F401 - imported because a run imports it
import http.client  # noqa: F401 - as argparse
import json
import logging  # noqa: F401 - as argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import psycopg  # noqa: F401 - as argparse
import redis  # noqa: F401 - as argparse
import simplejpeg


def main(folder: Path, photo: Path, faces: int) -> None:
    """Load the models and run them once."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    detector, recogniser = (
        onnxruntime.InferenceSession(str(folder / graph["portable"]["file"]), providers=["CPUExecutionProvider"])
        for graph in (manifest["detector"], manifest["recogniser"])
    )
    image = simplejpeg.decode_jpeg(photo.read_bytes(), colorspace="BGR", fastdct=False, fastupsample=False)
    side = manifest["detector"]["input_size"]
    detector.run(None, {detector.get_inputs()[0].name: cv2.dnn.blobFromImage(image, 1 / 128, (side, side))})
    recogniser.run(None, {recogniser.get_inputs()[0].name: np.zeros((faces, 3, 112, 112), np.float32)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(str(time.time()))
