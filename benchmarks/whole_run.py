"""Whole processes with real servers: 100 mixed jobs, and the sample album."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from benchmarks import comparison, material
from benchmarks.figures import Row, Spread, Target, ratios
from benchmarks.world import HERE, BenchmarkError, Child, World, child, served

PART = "whole run"
# 100 jobs as at a party: mostly web-size photos, some photos straight from a phone, some groups, some guests.
MIX = {"web": 62, "phone": 20, "group": 8}
COMPARISONS = 10
# Photos that each guest is compared with: thousands are normal (docs/reference/contract.md), hundreds at small parties.
STORED = (1000, 100)


def measure_mixed(world: World, rounds: int) -> list[Row]:
    """Return the rows of 100 mixed jobs, from process start to exit."""
    images = {
        f"{name} {number}.jpg": data
        for name, count in MIX.items()
        for number, data in enumerate(islice(cycle(material.photo_set(name)), count))
    }
    selfies = [selfie.data for selfie in material.album().selfies][:COMPARISONS]
    jobs = len(images) + len(selfies)
    busy: list[float] = []
    rows = []
    with served(images) as server, tempfile.TemporaryDirectory() as folder:
        busy_file = Path(folder, "busy.json")

        def watched(count: int) -> Child:
            command = [str(HERE / "watched_run.py"), str(busy_file), str(count)]
            return child(command, world.environment)

        for stored in STORED:
            seconds: dict[str, list[float]] = {"ours": [], "reference": []}
            for _ in range(rounds):
                for who, run in (("ours", watched), ("reference", world.run_reference)):
                    world.empty()
                    album = comparison.fill(world.connection, stored)
                    photos = world.api.upload({name: server.url(name) for name in images})
                    answers = [world.api.compare(selfie, album) for selfie in selfies]
                    seconds[who].append(run(jobs).seconds)
                    world.moments(list(photos.values()))
                    if any(world.api.result(answer) is None for answer in answers):
                        raise BenchmarkError("a comparison was not answered")
                busy.append(100 * float(json.loads(busy_file.read_text())["busy"]))
            rows.append(_mixed_row(jobs, stored, seconds))
    rows.append(
        Row(PART, "the same: engine busy between first and last photo", "%", Spread.of(busy), target=Target("≥", 90))
    )
    return rows


def _mixed_row(jobs: int, stored: int, seconds: dict[str, list[float]]) -> Row:
    ours, reference = Spread.of(seconds["ours"]), Spread.of(seconds["reference"])
    what = f"{jobs} mixed jobs, {COMPARISONS} of them selfies against {stored:,} photos, process start → exit"
    target = Target("≥", 3.0) if stored == STORED[0] else None
    return Row(PART, what, "s", ours, reference, "replaced worker", ratios(reference, ours), target)


def measure_album(world: World, rounds: int) -> list[Row]:
    """Return the row of the sample album: 25 photos, including a truncated JPEG and an SVG."""
    images = {photo.name: photo.data for photo in material.album().photos}
    rates: dict[str, list[float]] = {"ours": [], "reference": []}
    runs: dict[str, Callable[[int], Child]] = {"ours": world.run_ours, "reference": world.run_reference}
    with served(images) as server:
        for _ in range(rounds):
            for who, run in runs.items():
                world.empty()
                photos = world.api.upload({name: server.url(name) for name in images})
                rates[who].append(len(images) / run(len(images)).seconds)
                world.moments(list(photos.values()))
    spreads = {who: Spread.of(values) for who, values in rates.items()}
    return [
        Row(
            PART,
            f"the sample album of {len(images)} photos, process start → exit",
            "photos/s",
            spreads["ours"],
            spreads["reference"],
            "replaced worker",
            ratios(spreads["ours"], spreads["reference"]),
        )
    ]
