"""`python -m tools.synthetic_pack buffalo_l FOLDER`: a pack with the architecture of buffalo_l or antelopev2.

InsightFace's files may be used for research only, and are not available everywhere. Baking, memory and speed depend on
a network's layers and their shapes, not on its weights; answers of a synthetic pack mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx

from runner.bake.catalogue import KNOWN
from tools.synthetic_pack import architectures, calibration

# Blocks in each stage of the recogniser.
RECOGNISERS = {"buffalo_l": (3, 4, 14, 3), "antelopev2": (3, 13, 30, 3)}


def write(pack: str, folder: Path, *, seed: int = 0, divide: int = 1) -> list[Path]:
    """Write the two files of a pack, under their published names, and return their paths.

    `pack` is one of `RECOGNISERS`; `divide` divides the networks' widths, for tests. The same arguments give the same
    files with the same versions of numpy and onnx.
    """
    detector, recogniser = architectures.scrfd(seed, divide=divide), None
    calibration.calibrate_detector(detector)
    recogniser = architectures.iresnet(RECOGNISERS[pack], seed + 1, divide=divide)
    calibration.calibrate_recogniser(recogniser)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / KNOWN[pack].detectors[0], folder / KNOWN[pack].recogniser]
    for path, model in zip(paths, (detector, recogniser), strict=True):
        onnx.save(model, path)
    return paths


def main() -> int:
    """Write a pack, and say what to do with it."""
    parser = argparse.ArgumentParser(prog="python -m tools.synthetic_pack", description=__doc__)
    parser.add_argument("pack", choices=RECOGNISERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in write(arguments.pack, arguments.folder, seed=arguments.seed):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"bake it with: spottmee-worker models bake --pack {arguments.folder} --out FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main())
