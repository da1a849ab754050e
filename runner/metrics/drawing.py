"""A chart of the last hours as inline SVG, drawn without a style attribute: the page's stylesheet has the colours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 136
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 6, 14, 24
_HOUR = 3600
# Scales end at one, two or five times a power of ten.
_STEPS = (1, 2, 5)

Point = tuple[float, float]  # time (Unix epoch), value


def chart(title: str, points: Sequence[Point], *, now: float, seconds: float, shape: str) -> str:
    """Return a chart of `points` in the last `seconds`. `shape` is its class, and what it draws: area or bars.

    Points more than five minutes apart are not connected: nothing was sampled in between.
    """
    kept = [(moment, value) for moment, value in points if now - seconds <= moment <= now]
    top = _scale(max((value for _, value in kept), default=0))

    def x(moment: float) -> float:
        return _LEFT + (moment - now + seconds) / seconds * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1 - value / top) * (HEIGHT - _TOP - _BOTTOM)

    about = f"{title}: {_summary(kept)}"
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">',
        f"<title>{escape(about)}</title>",
    ]
    for value in (0, top / 2, top):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for moment in _hours(now - seconds, now):
        label = time.strftime("%H:%M", time.gmtime(moment))
        parts.append(f'<text x="{x(moment):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{label}</text>')
    for run in _connected(kept):
        if shape == "bars":
            parts += [
                f'<line class="bar" x1="{x(moment):.1f}" x2="{x(moment):.1f}" y1="{y(0):.1f}" y2="{y(value):.1f}"/>'
                for moment, value in run
                if value
            ]
        else:
            line = " ".join(f"{x(moment):.1f},{y(value):.1f}" for moment, value in run)
            first, last = x(run[0][0]), x(run[-1][0])
            parts.append(f'<polygon class="area" points="{first:.1f},{y(0):.1f} {line} {last:.1f},{y(0):.1f}"/>')
            parts.append(f'<polyline class="line" points="{line}"/>')
    return "".join([*parts, "</svg>"])


def _summary(points: Sequence[Point]) -> str:
    if not points:
        return "nothing recorded yet"
    values = [value for _, value in points]
    return f"now {values[-1]:g}, at most {max(values):g}"


def _connected(points: Sequence[Point], gap: float = 300) -> list[list[Point]]:
    runs: list[list[Point]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= gap:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _hours(first: float, last: float) -> list[float]:
    start = int(first // _HOUR + 1) * _HOUR
    return [moment for moment in range(start, int(last) + 1, _HOUR) if last - moment > _HOUR / 6]


def _scale(highest: float) -> float:
    power = 1
    while True:
        for step in _STEPS:
            if step * power >= highest:
                return float(max(2, step * power))
        power *= 10
