"""True and false match rates over thresholds, with confidence intervals, and the best threshold.

Rates as ISO/IEC 19795-1 defines them for comparisons: the share of pairs of the same person, and of different people,
whose similarity is strictly greater than the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054  # two-sided 95 %: the 97.5th percentile of the standard normal distribution
LOWEST, HIGHEST = -1.0, 1.0  # of a cosine similarity
_MOST_DECIMALS = 8


class Criterion(Enum):
    """What makes a threshold the best one; the value describes it."""

    YOUDEN = "the largest difference between the two rates (Youden's J)"
    LIMIT = "the largest true match rate within the limit on false matches"


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `of` pairs match; `low` and `high` bound the rate with 95 % confidence. 0 to 1."""

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def of_counts(cls, count: int, of: int) -> Rate:
        """Return the rate with its Wilson score interval."""
        return cls(count, of, *wilson(count, of))

    @property
    def value(self) -> float:
        """The rate; `of` is at least 1."""
        return self.count / self.of


@dataclass(frozen=True, slots=True)
class Point:
    """The rates at one threshold."""

    threshold: float
    true: Rate
    false: Rate


@dataclass(frozen=True, slots=True)
class Best:
    """The rates at the best threshold: every threshold from `low` to below `high` has the same."""

    point: Point
    low: float
    high: float


def wilson(count: int, of: int, z: float = Z_95) -> tuple[float, float]:
    """Return the bounds of the Wilson score interval of `count` successes in `of` independent trials (at least 1).

    E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212. Unlike the normal approximation
    it stays within 0 and 1 and keeps its coverage for few trials and for rates near 0 and 1 (Brown, Cai and DasGupta,
    Statistical Science 16 (2001), 101-133). With 0 of n the upper bound is z² / (n + z²), near 3.84 / n.
    """
    share = count / of
    denominator = 1 + z * z / of
    centre = (share + z * z / (2 * of)) / denominator
    margin = z / denominator * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (0.0 if count == 0 else centre - margin), (1.0 if count == of else centre + margin)


class Rates:
    """The rates of similarities of pairs of the `same` person and of `different` people, both of at least one pair."""

    def __init__(self, same: NDArray[np.float32], different: NDArray[np.float32]) -> None:
        self.same = np.sort(same)
        self.different = np.sort(different)

    def at(self, threshold: float) -> Point:
        """Return the rates at `threshold`."""
        return Point(threshold, _above(self.same, threshold), _above(self.different, threshold))

    def best(self, most_false: float | None = None) -> Best:
        """Return the rates at the best threshold.

        With `most_false` (0 to 1), the one with the largest true match rate whose false match rate is not greater;
        otherwise that of Youden's J. Where a range of thresholds is equally good, its middle, and of several such
        ranges the widest.
        """
        # Both rates are constant from one similarity to the next. The best range begins at a similarity of different
        # people: at one of the same person only the true match rate falls.
        starts = np.unique(np.concatenate([np.array([LOWEST], np.float32), self.different]))
        ends = np.minimum(_next_above(self.same, starts), _next_above(self.different, starts))
        true = 1 - np.searchsorted(self.same, starts, side="right") / len(self.same)
        false = 1 - np.searchsorted(self.different, starts, side="right") / len(self.different)
        if most_false is None:
            order = np.lexsort((ends - starts, true - false))
        else:
            order = np.lexsort((ends - starts, -false, true, false <= most_false))
        low, high = float(starts[order[-1]]), float(ends[order[-1]])
        return Best(self.at(_middle(low, high)), low, high)


def _above(similarities: NDArray[np.float32], threshold: float) -> Rate:
    count = len(similarities) - int(np.searchsorted(similarities, threshold, side="right"))
    return Rate.of_counts(count, len(similarities))


def _next_above(similarities: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each value the next greater one of `similarities`, which are sorted, or 1."""
    extended = np.append(similarities, np.float32(HIGHEST))
    return extended[np.searchsorted(similarities, values, side="right")]


def _middle(low: float, high: float) -> float:
    """Return the middle of the range from `low` to below `high`, with as few decimals as stay within it."""
    middle = (low + high) / 2
    for decimals in range(2, _MOST_DECIMALS):
        if low <= (rounded := round(middle, decimals)) < high:
            return rounded
    return middle
