"""From process start to the first stored photo, with local servers, against the replaced worker and the plain sum."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import material
from benchmarks.figures import Row, Spread, Target, ratios
from benchmarks.world import HERE, Child, World, child, served
from demo.images import ImageServer
from runner.settings import default_model_dir

PART = "cold start"


def first_stored(world: World, rounds: int) -> Spread:
    """Return the milliseconds from the start of a run to its first stored photo."""
    with served({"first.jpg": material.first_photo()}) as images:
        return Spread.of(_milliseconds(world, images, world.run_ours)[0] for _ in range(rounds))


def _milliseconds(world: World, images: ImageServer, run: Callable[[int], Child]) -> tuple[float, float]:
    """Return the wall time until the photo is stored, and the CPU time of the whole process."""
    world.empty()
    photo_ids = list(world.api.upload({"first.jpg": images.url("first.jpg")}).values())
    done = run(1)
    return 1000 * (world.moments(photo_ids)[0] - done.started), 1000 * done.processor_seconds


def measure(world: World, rounds: int) -> list[Row]:
    """Return the rows of this part."""
    photo = material.first_photo()
    stored: dict[str, list[float]] = {"ours": [], "reference": [], "sum": []}
    processor: dict[str, list[float]] = {"ours": [], "reference": [], "sum": []}
    with served({"first.jpg": photo}) as images, tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        Path(file.name).write_bytes(photo)
        plain_command = [str(HERE / "plain_sum.py"), str(default_model_dir()), file.name, str(material.FIRST_FACES)]
        for _ in range(rounds):
            for who, run in (("ours", world.run_ours), ("reference", world.run_reference)):
                wall, own = _milliseconds(world, images, run)
                stored[who].append(wall)
                processor[who].append(own)
            plain = child(plain_command, os.environ)
            stored["sum"].append(1000 * (float(plain.output) - plain.started))
            processor["sum"].append(1000 * plain.processor_seconds)
    walls = {who: Spread.of(values) for who, values in stored.items()}
    processors = {who: Spread.of(values) for who, values in processor.items()}
    return [
        Row(
            PART,
            "process start → first photo stored",
            "ms",
            walls["ours"],
            walls["reference"],
            "replaced worker",
            ratios(walls["reference"], walls["ours"]),
            Target("≥", 2.2),
        ),
        Row(
            PART,
            "the same, against imports + model loading + one inference",
            "ms",
            walls["ours"],
            walls["sum"],
            "plain sum",
            ratios(walls["ours"], walls["sum"]),
            Target("≤", 1.0),
        ),
        Row(
            PART,
            "CPU time of the whole process, one photo",
            "ms",
            processors["ours"],
            processors["reference"],
            "replaced worker",
            ratios(processors["reference"], processors["ours"]),
        ),
    ]
