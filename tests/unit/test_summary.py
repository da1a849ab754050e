"""The counts of the summary always add up."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from runner.queue.leases import Lease
from runner.worker.summary import Summary
from runner.worker.task import AnyTask, Outcome, Task


def _task(queue: str, count: int, **stages: float) -> AnyTask:
    return Task(Lease("id", queue, b"{}", 1), faces=[None] * count, stages=stages)  # type: ignore[list-item]  # counted alone


@given(outcomes=st.lists(st.sampled_from(Outcome)), unsettled=st.integers(0, 20))
def test_every_claimed_job_has_one_outcome_or_is_unsettled(outcomes: list[Outcome], unsettled: int) -> None:
    summary = Summary(claimed=len(outcomes) + unsettled, exit_reason="empty")
    for outcome in outcomes:
        summary.count(_task("process", 0), outcome)
    document = json.loads(summary.line())
    assert document["unsettled"] == summary.unsettled == unsettled
    assert document["claimed"] == sum(document[str(outcome)] for outcome in Outcome) + unsettled


def test_only_succeeded_jobs_count_by_kind_and_every_job_takes_time() -> None:
    summary = Summary()
    summary.count(_task("process", 3, fetch=0.25, faces=1.0), Outcome.SUCCEEDED)
    summary.count(_task("process", 5, fetch=0.25), Outcome.RETRIED)
    summary.count(_task("compare", 1, match=0.5), Outcome.SUCCEEDED)
    document = summary.document()
    assert (document["photos"], document["faces"], document["comparisons"]) == (1, 3, 1)
    assert document["stage_seconds"] == {"faces": 1.0, "fetch": 0.5, "match": 0.5}
