"""Peak memory of a whole run on 12-megapixel photos: it must be low, and must not grow with the number of jobs.

4 photos do not fill the prefetch limit; from 40 photos on, the peak must stay the same.
"""

from __future__ import annotations

from itertools import cycle, islice

from benchmarks import material
from benchmarks.figures import Row, Spread, Target, ratios
from benchmarks.world import World, served

PART = "memory"
FEW, MANY, MORE = 4, 40, 120
MOST_MIB = 300
MOST_GROWTH = 1.05


def peak_mib(world: World, jobs: int) -> float:
    """Return the peak resident memory of a run on `jobs` photos of 12 megapixels, in MiB."""
    images = {f"{n}.jpg": data for n, data in enumerate(islice(cycle(material.phone()), jobs))}
    with served(images) as server:
        world.empty()
        photos = world.api.upload({name: server.url(name) for name in images})
        done = world.run_ours(jobs)
        world.moments(list(photos.values()))
    return done.peak_mib


def measure(world: World, rounds: int) -> list[Row]:
    """Return the rows of this part."""
    peaks = {jobs: Spread.of(peak_mib(world, jobs) for _ in range(rounds)) for jobs in (FEW, MANY, MORE)}
    return [
        *(
            Row(PART, f"peak of a run on {jobs} photos of 12 megapixels", "MiB", peak, target=Target("≤", MOST_MIB))
            for jobs, peak in peaks.items()
        ),
        Row(
            PART,
            f"growth of the peak from {MANY} to {MORE} photos",
            "MiB",
            peaks[MORE],
            peaks[MANY],
            f"{MANY} photos",
            ratios(peaks[MORE], peaks[MANY]),
            Target("≤", MOST_GROWTH),
        ),
    ]
