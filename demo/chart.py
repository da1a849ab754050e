"""A chart of the pool over time: jobs waiting, jobs in flight, and runners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_WIDTH, _HEIGHT = 960, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 916, 44, 214


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the pool at one moment; `seconds` since the start."""

    seconds: float
    waiting: int
    in_flight: int
    runners: int
    statuses: Mapping[str, int] = field(default_factory=dict)


def chart(samples: Sequence[Sample]) -> str:
    """Return an SVG of the queue depth (left scale) and the number of runners (right scale) over time."""
    if not samples:
        return "<p>No samples were taken.</p>"
    end = max(samples[-1].seconds, 0.1)
    most = max(1, *(s.waiting + s.in_flight for s in samples))
    runners = max(1, *(s.runners for s in samples))
    moments = [_LEFT + (_RIGHT - _LEFT) * s.seconds / end for s in samples]
    depth = _steps(moments, [(s.waiting + s.in_flight) / most for s in samples])
    flight = _steps(moments, [s.in_flight / most for s in samples])
    running = _steps(moments, [s.runners / runners for s in samples])
    foot = f"{moments[-1]:.1f},{_BOTTOM} {moments[0]:.1f},{_BOTTOM}"
    return (
        f"<svg class='chart' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='queue depth and runners'>"
        f"{_seconds(end)}{_scale(most, _LEFT - 8, 'end', 'depth')}{_scale(runners, _RIGHT + 8, 'start', 'runners')}"
        f"<polygon class='depth' points='{depth} {foot}'/><polygon class='flight' points='{flight} {foot}'/>"
        f"<polyline class='runners' points='{running}'/>"
        f"<text x='{_LEFT}' y='24' class='depth'>■ jobs waiting</text>"
        f"<text x='{_LEFT + 120}' y='24' class='flight'>■ jobs in flight</text>"
        f"<text x='{_RIGHT}' y='24' text-anchor='end' class='runners'>━ runners</text></svg>"
    )


def _steps(moments: Sequence[float], shares: Sequence[float]) -> str:
    """Return the points of a step line that keeps each value until the next sample; a share is of the height."""
    points = [f"{moments[0]:.1f},{_height(shares[0]):.1f}"]
    for moment, before, share in zip(moments[1:], shares, shares[1:], strict=False):
        points += [f"{moment:.1f},{_height(before):.1f}", f"{moment:.1f},{_height(share):.1f}"]
    return " ".join(points)


def _height(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share


def _seconds(end: float, parts: int = 6) -> str:
    marks = [(f"{end * part / parts:.1f} s", _LEFT + (_RIGHT - _LEFT) * part / parts) for part in range(parts + 1)]
    labels = "".join(f"<text x='{x:.0f}' y='{_BOTTOM + 22}' text-anchor='middle'>{text}</text>" for text, x in marks)
    return f"<path class='axis' d='M{_LEFT} {_BOTTOM}H{_RIGHT}M{_LEFT} {_TOP}H{_RIGHT}'/>{labels}"


def _scale(most: int, x: float, anchor: str, kind: str) -> str:
    """Return the labels of a scale from 0 to `most`, with the middle if it is a whole number."""
    values = [0, most // 2, most] if most % 2 == 0 else [0, most]
    return "".join(
        f"<text x='{x}' y='{_height(value / most) + 4:.0f}' text-anchor='{anchor}' class='{kind}'>{value}</text>"
        for value in values
    )
