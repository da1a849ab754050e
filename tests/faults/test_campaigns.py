"""The campaigns that are short enough for `make test`; `make faults` runs all of them whole."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.faults.campaigns import campaigns, disk_campaign, run, small_disk
from tests.faults.pictures import Kind, kinds


@pytest.fixture(scope="module")
def pictures() -> Mapping[str, Kind]:
    return kinds()


@pytest.mark.parametrize("name", [campaign.name for campaign in campaigns() if campaign.short])
def test_nothing_is_lost(name: str, pictures: Mapping[str, Kind]) -> None:
    campaign = next(campaign for campaign in campaigns() if campaign.name == name)
    verdict = run(campaign, pictures, short=True)
    assert verdict.wrong == [], verdict.counts


def test_nothing_is_lost_on_a_full_disk(pictures: Mapping[str, Kind]) -> None:
    try:
        with small_disk(48) as disk:
            verdict = run(disk_campaign(disk), pictures, short=True)
    except OSError as error:
        pytest.skip(f"a small disk needs root and the right to mount a tmpfs: {error}")
    assert verdict.wrong == [], verdict.counts
