"""Match rates over thresholds: intervals, strictness, and the best threshold, against plain counting."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.evaluation.rates import Z_95, Rate, Rates, wilson
from runner.evaluation.report import percent

# Few distinct values, so that equal similarities, in both kinds too, are common.
SIMILARITIES = st.lists(st.sampled_from([value / 8 for value in range(-8, 9)]), min_size=1, max_size=12)


def rates_of(same: list[float], different: list[float]) -> Rates:
    return Rates(np.array(same, np.float32), np.array(different, np.float32))


def share_above(values: list[float], threshold: float) -> float:
    return sum(value > threshold for value in values) / len(values)


@given(st.integers(1, 10**5).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_the_bounds_are_those_that_a_score_test_does_not_reject(counts: tuple[int, int]) -> None:
    """Wilson's definition: the shares p whose distance from the rate is z standard errors of p itself."""
    rate = counts[0] / counts[1]
    for bound in wilson(*counts):
        assert (rate - bound) ** 2 == pytest.approx(Z_95**2 * bound * (1 - bound) / counts[1], rel=1e-6, abs=1e-12)


def test_the_level_is_two_sided_95_percent() -> None:
    assert NormalDist().cdf(Z_95) == pytest.approx(0.975, abs=1e-12)


@pytest.mark.parametrize("of", [1, 10, 1000])
def test_no_match_at_all_still_leaves_an_upper_bound(of: int) -> None:
    assert wilson(0, of) == pytest.approx((0, Z_95**2 / (of + Z_95**2)))
    assert wilson(of, of) == pytest.approx((of / (of + Z_95**2), 1))


@given(st.integers(1, 10**7).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_an_interval_contains_its_rate_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@given(SIMILARITIES, SIMILARITIES, st.floats(-1, 1).map(lambda value: round(value * 8) / 8))
def test_only_similarities_strictly_above_the_threshold_match(
    same: list[float], different: list[float], threshold: float
) -> None:
    point = rates_of(same, different).at(threshold)
    assert point.true.value == share_above(same, threshold)
    assert point.false.value == share_above(different, threshold)


@given(SIMILARITIES, SIMILARITIES)
def test_no_threshold_is_better_than_the_best(same: list[float], different: list[float]) -> None:
    best = rates_of(same, different).best()
    everywhere = [-1.0, *(value / 16 for value in range(-16, 17))]
    greatest = max(share_above(same, threshold) - share_above(different, threshold) for threshold in everywhere)
    assert best.point.true.value - best.point.false.value == pytest.approx(greatest)


@given(SIMILARITIES, SIMILARITIES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_the_best_threshold_within_a_limit_has_the_most_true_matches(
    same: list[float], different: list[float], limit: float
) -> None:
    best = rates_of(same, different).best(limit)
    everywhere = [-1.0, *(value / 16 for value in range(-16, 17))]
    allowed = [threshold for threshold in everywhere if share_above(different, threshold) <= limit]
    assert best.point.false.value <= limit
    assert best.point.true.value == max(share_above(same, threshold) for threshold in allowed)


@given(SIMILARITIES, SIMILARITIES)
def test_the_whole_range_around_the_best_threshold_has_its_rates(same: list[float], different: list[float]) -> None:
    rates = rates_of(same, different)
    best = rates.best()
    assert best.low <= best.point.threshold <= best.high
    for threshold in (best.low, (best.low + best.high) / 2 if best.high > best.low else best.low):
        assert rates.at(threshold).true == best.point.true
        assert rates.at(threshold).false == best.point.false


def test_between_separate_kinds_the_best_threshold_is_in_the_middle() -> None:
    best = rates_of([0.6, 0.8], [0.0, 0.1]).best()
    assert best.point.threshold == 0.35
    assert (best.low, best.high) == pytest.approx((0.1, 0.6))


@pytest.mark.parametrize(
    ("count", "of", "shown"),
    [
        (0, 10, "0.0 % (0.0 to 27.8)"),
        (1, 5000, "0.020 % (0.0035 to 0.11)"),
        (4999, 5000, "99.980 % (99.89 to 99.9965)"),
    ],
)
def test_rates_near_0_and_100_percent_are_not_rounded_to_them(count: int, of: int, shown: str) -> None:
    assert percent(Rate.of_counts(count, of)) == shown
