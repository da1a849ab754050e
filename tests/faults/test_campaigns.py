"""Shortened fault-injection campaigns; `make faults` runs all of them in full."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.faults.campaigns import campaigns, disk_campaign, run, small_disk
from tests.faults.pictures import Kind, kinds
from tests.integration.pgbouncer import needed


@pytest.fixture(scope="session")
def pictures() -> Mapping[str, Kind]:
    return kinds()


@pytest.mark.parametrize("name", [campaign.name for campaign in campaigns() if campaign.short])
def test_a_fault_loses_no_job(name: str, pictures: Mapping[str, Kind]) -> None:
    campaign = next(campaign for campaign in campaigns() if campaign.name == name)
    if campaign.setup.pooler:
        needed()
    verdict = run(campaign, pictures, short=True)
    assert verdict.wrong == [], verdict.counts


def test_a_full_disk_loses_no_job(pictures: Mapping[str, Kind]) -> None:
    try:
        with small_disk(48) as disk:
            verdict = run(disk_campaign(disk), pictures, short=True)
    except OSError as error:
        pytest.skip(f"the small disk needs root and permission to mount a tmpfs: {error}")
    assert verdict.wrong == [], verdict.counts
