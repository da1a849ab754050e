"""KEDA's formula in the demonstration's scaler."""

from __future__ import annotations

import pytest

from demo.scaler import ScaledJob, new_runners


@pytest.mark.parametrize(
    ("waiting", "in_flight", "running", "expected"),
    [
        (0, 0, 0, 0),
        (1, 0, 0, 1),
        (50, 0, 0, 1),
        (51, 0, 0, 2),
        (200, 0, 0, 4),
        (150, 50, 4, 0),  # claimed work keeps counting: nothing more is started for it
        (0, 8, 0, 1),  # leases of a dead runner start the one that takes them over
        (0, 8, 1, 0),
        (5000, 0, 0, 10),  # the limit
        (5000, 0, 10, 0),
        (0, 0, 3, 0),  # running Jobs are never taken back
    ],
)
def test_the_scaler_starts_runners_by_kedas_formula(waiting: int, in_flight: int, running: int, expected: int) -> None:
    assert new_runners(ScaledJob("process", 50, 10), waiting, in_flight, running) == expected
