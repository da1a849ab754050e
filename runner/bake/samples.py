"""The sample photos: images of people from installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from runner.bake.sources import wheel_folder
from runner.errors import ModelError
from runner.faces.arrays import Image


def sample_photos() -> dict[str, Path]:
    """Return the sample photos by file name. Raises `ModelError` if InsightFace is not installed."""
    insightface = find_spec("insightface")  # its import would take seconds
    if insightface is None or insightface.origin is None:
        raise ModelError("the sample photos come with InsightFace, which is not installed: run make setup")
    images, wheel = Path(insightface.origin).parent / "data" / "images", wheel_folder()
    paths = [images / "t1.jpg", images / "Tom_Hanks_54745.png"]
    paths += [wheel / f"{name}.jpg" for name in ("gdp", "players", "yaoming")]
    return {path.name: path for path in paths}


def sample_images() -> dict[str, Image]:
    """Return the sample photos by file name, decoded. Raises `ModelError` for one that cannot be decoded."""
    images = {}
    for name, path in sample_photos().items():
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ModelError(
                f"the sample photo {path} cannot be decoded: install the packages again (make clean setup)"
            )
        images[name] = np.asarray(image, np.uint8)
    return images
