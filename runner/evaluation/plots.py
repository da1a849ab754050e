"""Plots of an evaluation, as SVG for the report: its style sheet gives the colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from runner.evaluation.measure import Floats
from runner.evaluation.rates import Point, Rates

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 940, 30, 258
_BIN = 0.02
_RATE_MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)

Marks = Sequence[tuple[float, str]]  # threshold and label of a vertical line


def histogram(rates: Rates, marks: Marks) -> str:
    """Return how the similarities of both kinds of pairs are distributed, each as a share of its own kind."""
    low, across = _axis(rates)
    edges = np.arange(low, 1 + _BIN, _BIN)
    shares = [_shares(values, edges) for values in (rates.different, rates.same)]
    top = max(float(share.max()) for share in shares)
    polygons = "".join(
        f"<polygon class='{name}' points='{_columns(share / top, edges, across)}'/>"
        for name, share in zip(("different", "same"), shares, strict=True)
    )
    scale = _scale([(0.0, "0"), (1.0, f"{100 * top:.0f} %")])
    return _plot("similarities of pairs", polygons + scale, low, across, marks)


def curves(rates: Rates, marks: Marks) -> str:
    """Return both rates over the threshold, with their confidence intervals."""
    low, across = _axis(rates)
    points = [rates.at(float(threshold)) for threshold in np.linspace(low, 1, 401)]
    drawn = "".join(_curve(name, points, across) for name in ("different", "same"))
    scale = _scale([(value, f"{100 * value:.0f} %") for value in _RATE_MARKS])
    return _plot("match rates over the threshold", drawn + scale, low, across, marks)


def _axis(rates: Rates) -> tuple[float, Callable[[float], float]]:
    """Return the lowest similarity of the axis, and what gives the place of a similarity."""
    lowest = min(float(rates.same[0]), float(rates.different[0]), 0.0)
    low = max(-1.0, np.floor(lowest * 10) / 10)
    return low, lambda value: _LEFT + (_RIGHT - _LEFT) * (value - low) / (1 - low)


def _shares(values: Floats, edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Floats:
    counts, _ = np.histogram(values, edges)
    return np.asarray(counts / len(values), np.float32)


def _columns(shares: Floats, edges: Iterable[float], across: Callable[[float], float]) -> str:
    """Return the outline of a histogram."""
    places = [across(float(edge)) for edge in edges]
    outline = [(places[0], float(_BOTTOM))]
    for share, left, right in zip(shares, places, places[1:], strict=False):
        outline += [(left, _height(float(share))), (right, _height(float(share)))]
    return _points([*outline, (outline[-1][0], _BOTTOM)])


def _curve(name: str, points: Sequence[Point], across: Callable[[float], float]) -> str:
    rates = [point.true if name == "same" else point.false for point in points]
    places = [across(point.threshold) for point in points]
    band = [(x, _height(rate.high)) for x, rate in zip(places, rates, strict=True)]
    band += [(x, _height(rate.low)) for x, rate in zip(reversed(places), reversed(rates), strict=True)]
    line = [(x, _height(rate.value)) for x, rate in zip(places, rates, strict=True)]
    return f"<polygon class='{name} band' points='{_points(band)}'/><polyline class='{name}' points='{_points(line)}'/>"


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _height(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share


def _scale(labels: Iterable[tuple[float, str]]) -> str:
    return "".join(
        f"<path class='axis' d='M{_LEFT} {_height(value):.1f}H{_RIGHT}'/>"
        f"<text x='{_LEFT - 8}' y='{_height(value) + 4:.0f}' text-anchor='end'>{text}</text>"
        for value, text in labels
    )


def _plot(label: str, content: str, low: float, across: Callable[[float], float], marks: Marks) -> str:
    ticks = "".join(
        f"<text x='{across(tick / 10):.0f}' y='{_BOTTOM + 20}' text-anchor='middle'>{tick / 10:.1f}</text>"
        for tick in range(round(low * 10), 11)
    )
    lines = "".join(_mark(across(max(low, at)), text, before=at == min(marks)[0]) for at, text in marks)
    return (
        f"<svg class='plot' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{label}'>{content}{ticks}"
        f"<text x='{(_LEFT + _RIGHT) / 2:.0f}' y='{_HEIGHT - 6}' text-anchor='middle'>cosine similarity</text>"
        f"{lines}</svg>"
    )


def _mark(x: float, text: str, *, before: bool) -> str:
    """Return a vertical line with its label, on the left or the right: two near lines have one on each side."""
    place, anchor = (x - 6, "end") if before else (x + 6, "start")
    return (
        f"<path class='mark' d='M{x:.1f} {_TOP - 14}V{_BOTTOM}'/>"
        f"<text class='mark' x='{place:.1f}' y='{_TOP - 6}' text-anchor='{anchor}'>{text}</text>"
    )
