"""The larger packs compared with the default one: start-up, memory, photos per second, and the share of the limit.

Their files are synthetic (tools/synthetic_pack): the layers and shapes of the real ones, on which time and memory
depend, with random weights. Baked once, into .cache/packs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import cold_start, memory
from benchmarks.figures import Row, Spread, ratios
from benchmarks.throughput import LIMIT, LIMIT_ABOUT, Side
from benchmarks.world import BenchmarkError, World, originals
from runner.bake import pipeline
from runner.errors import ModelError
from runner.faces import pack
from runner.settings import default_model_dir
from tools.synthetic_pack.__main__ import RECOGNISERS, write

PART = "packs"
FOLDER = Path(__file__).parents[1] / ".cache" / "packs"
DEFAULT = "buffalo_sc"
SIDES = ("engine", "reference", LIMIT)
PHOTOS = "web"


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack to be measured: InsightFace's two files, or files like them, and what was baked from them."""

    name: str
    originals: Path
    baked: Path

    @property
    def megabytes(self) -> float:
        """The size of the baked pack."""
        return sum(path.stat().st_size for path in self.baked.iterdir()) / 1e6


def measure(world: World, rounds: int) -> list[Row]:
    """Return the rows of this part."""
    with originals() as files:
        packs = [Pack(DEFAULT, files, default_model_dir()), *map(synthetic, RECOGNISERS)]
        started = {one.name: _first_photo(world, one, rounds) for one in packs}
        peaks = {one.name: _peak(world, one, rounds) for one in packs}
        rows = []
        for one in packs:
            size = f"{one.megabytes:,.0f} MB on disk"
            rows.append(
                _beside_default(f"{one.name}: process start → first photo stored", "ms", started, one.name, size)
            )
            rows.append(
                _beside_default(f"{one.name}: peak of a run on 40 photos of 12 megapixels", "MiB", peaks, one.name)
            )
            rows += _throughput(one, rounds)
        return rows


def synthetic(name: str) -> Pack:
    """Return the synthetic pack with the architecture of `name`, creating and baking it if necessary."""
    files, baked = FOLDER / f"synthetic-{name}", FOLDER / f"baked-{name}"
    try:
        pack.verify_checksums(baked, pack.read_manifest(baked))
    except ModelError:
        write(name, files)
        pipeline.bake(str(files), baked)
    return Pack(name, files, baked)


def _first_photo(world: World, one: Pack, rounds: int) -> Spread:
    with _using(world, one.baked):
        return cold_start.first_stored(world, rounds)


def _peak(world: World, one: Pack, rounds: int) -> Spread:
    with _using(world, one.baked):
        return Spread.of(memory.peak_mib(world, memory.MANY) for _ in range(rounds))


@contextmanager
def _using(world: World, baked: Path) -> Iterator[None]:
    world.environment["RUNNER_MODEL_DIR"] = str(baked)
    yield
    del world.environment["RUNNER_MODEL_DIR"]


def _beside_default(what: str, unit: str, found: dict[str, Spread], name: str, note: str = "") -> Row:
    return Row(PART, what, unit, found[name], found[DEFAULT], DEFAULT, ratios(found[name], found[DEFAULT]), note=note)


def _throughput(one: Pack, rounds: int) -> list[Row]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with ExitStack() as stack:
        sides = [Side(name, one.originals, one.baked) for name in SIDES]
        for side in sides:
            stack.callback(side.close)
        for _ in range(rounds):
            for side in sides:
                found[side.name].append(side.measure(PHOTOS))
    answers = {(answer["photos"], answer["faces"]) for side in SIDES for answer in found[side]}
    if len(answers) != 1:
        raise BenchmarkError(f"{one.name}: the sides find different numbers of faces: {sorted(answers)}")
    ((photos, faces),) = answers
    rates = {side: Spread.of(answer["photos"] / answer["seconds"] for answer in found[side]) for side in SIDES}
    about = f"{one.name}: web-size photos, {faces / photos:.1f} faces"
    return [
        Row(PART, text, "photos/s", rates["engine"], rates[side], label, ratios(rates["engine"], rates[side]))
        for text, side, label in (
            (about, "reference", "FaceAnalysis"),
            (f"{about}: share of the limit", LIMIT, LIMIT_ABOUT[LIMIT]),
        )
    ]
