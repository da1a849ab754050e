"""The summary adds up, whatever has happened."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from runner.worker.summary import Ending, Summary


@given(endings=st.lists(st.sampled_from(Ending)), unsettled=st.integers(0, 20))
def test_every_claimed_job_has_one_ending_or_is_unsettled(endings: list[Ending], unsettled: int) -> None:
    summary = Summary(claimed=len(endings) + unsettled, reason="empty")
    for ending in endings:
        summary.endings[ending] += 1
    document = json.loads(summary.line())
    assert document["unsettled"] == summary.unsettled == unsettled
    assert document["claimed"] == sum(document[str(ending)] for ending in Ending) + unsettled


def test_what_was_done_counts_by_kind_and_what_was_not_only_takes_time() -> None:
    summary = Summary()
    summary.count("process", 3, {"fetch": 0.25, "faces": 1.0}, done=True)
    summary.count("process", 5, {"fetch": 0.25}, done=False)
    summary.count("compare", 1, {"match": 0.5}, done=True)
    document = summary.document()
    assert (document["photos"], document["faces"], document["comparisons"]) == (1, 3, 1)
    assert document["stages"] == {"faces": 1.0, "fetch": 0.5, "match": 0.5}
