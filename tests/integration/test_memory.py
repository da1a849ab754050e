"""The peak memory of a whole run on photos of phones."""

from __future__ import annotations

from benchmarks import memory
from benchmarks.world import world


def test_twelve_megapixels_need_less_than_300_mib_however_many_photos_there_are() -> None:
    with world() as servers:
        few, many = (memory.peak_mib(servers, jobs) for jobs in (4, 16))
    assert 100 < few <= memory.MOST_MIB
    assert 100 < many <= memory.MOST_MIB
