"""Plots of a simulation, as SVG for the report: its style sheet gives the colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from runner.simulation.arrivals import Seconds
from runner.simulation.outcome import Outcome
from runner.simulation.play import Played

_WIDTH, _HEIGHT = 960, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 940, 20, 198
_POINTS = 480
_STEPS = (1, 2, 5)
_MINUTE, _HOUR = 60, 3600

Scale = Callable[[float], float]
Ticks = Iterable[tuple[float, str]]


def timeline(played: Played) -> str:
    """Return two plots over time: jobs that wait, and pods that are on nodes."""
    end = float(max(played.done.max(), played.left.max()))
    moments = np.linspace(0, end, _POINTS)
    waiting = most_between(played.pushed, played.claimed, moments)
    pods = most_between(played.assigned, np.sort(played.left), moments)
    return _over_time("waiting jobs", "waiting", moments, waiting) + _over_time("pods", "pods", moments, pods)


def most_between(begins: Seconds, ends: Seconds, moments: Seconds) -> Seconds:
    """Return the most that had begun and not ended, from each of the `moments` to the next; all are ascending."""
    events = np.concatenate((begins, ends))
    order = np.argsort(events, kind="stable")
    events = events[order]
    # Of one moment only the end counts: a job that is claimed when it is pushed has not waited.
    settled = np.append(events[1:] != events[:-1], True)
    level = np.cumsum(np.repeat((1, -1), (len(begins), len(ends)))[order])
    began = np.searchsorted(begins, moments, side="right")
    most = began - np.searchsorted(ends, moments, side="right")
    np.maximum.at(most, np.searchsorted(moments, events[settled], side="right") - 1, level[settled])
    return np.asarray(most, np.float64)


def _over_time(label: str, name: str, moments: Seconds, values: Seconds) -> str:
    end, top = float(moments[-1]), round_up(float(values.max()))
    units = ((_HOUR, "hours"), (_MINUTE, "minutes"), (1, "seconds"))
    unit, unit_name = next(((size, name) for size, name in units if end >= 3 * size), units[-1])
    across = _across(end)
    places = [(across(x), _height(y / top)) for x, y in zip(moments.tolist(), values.tolist(), strict=True)]
    outline = [(places[0][0], float(_BOTTOM)), *places, (places[-1][0], float(_BOTTOM))]
    step = round_up(end / unit / 8)
    ticks = [(value * unit, f"{value:g}") for value in np.arange(0, end / unit + 1e-9, step).tolist()]
    drawn = (
        f"<polygon class='{name}' points='{_points(outline)}'/><polyline class='{name}' points='{_points(places)}'/>"
    )
    about = f"{label} over time, at most {values.max():,.0f}"
    heights = [(0.0, "0"), (1.0, f"{top:,.0f}")]
    plot = _plot(about, drawn, across=across, ticks=ticks, unit=unit_name, heights=heights)
    return f"<h3>{label}</h3>{plot}"


def sweep(outcomes: Sequence[Outcome], chosen: Outcome) -> str:
    """Return p95 over pod-seconds, one dot for each setting; the chosen one is marked."""
    right = round_up(max(one.pod_seconds for one in outcomes))
    top = round_up(max(one.p95 for one in outcomes))
    across = _across(right)
    dots = "".join(
        f"<circle class='{'chosen' if one is chosen else 'waiting'}' cx='{across(one.pod_seconds):.1f}' "
        f"cy='{_height(one.p95 / top):.1f}' r='{7 if one is chosen else 4}'><title>{_name(one)}</title></circle>"
        for one in sorted(outcomes, key=lambda one: one is chosen)
    )
    ticks = [(right * share, f"{right * share:,g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    heights = [(0.0, "0"), (0.5, f"{top / 2:,g}"), (1.0, f"{top:,g} s")]
    return _plot("p95 of each setting", dots, across=across, ticks=ticks, unit="pod-seconds", heights=heights)


def _name(one: Outcome) -> str:
    setting = one.setting
    return (
        f"jobsPerPod {setting.jobs_per_pod}, pollingInterval {setting.polling_interval:g}, "
        f"maxReplicas {setting.max_replicas}: p95 {one.p95:.2f} s, {one.pod_seconds:,.0f} pod-seconds"
    )


def round_up(value: float) -> float:
    """Return one, two or five times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    power = float(10 ** np.floor(np.log10(value)))
    return next(step * power for step in (*_STEPS, 10) if step * power >= value * (1 - 1e-9))


def _across(most: float) -> Scale:
    return lambda value: _LEFT + (_RIGHT - _LEFT) * value / most


def _height(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _plot(about: str, content: str, *, across: Scale, ticks: Ticks, unit: str, heights: Ticks) -> str:
    lines = "".join(
        f"<path class='axis' d='M{_LEFT} {_height(share):.1f}H{_RIGHT}'/>"
        f"<text x='{_LEFT - 8}' y='{_height(share) + 4:.0f}' text-anchor='end'>{text}</text>"
        for share, text in heights
    )
    below = "".join(
        f"<text x='{across(value):.0f}' y='{_BOTTOM + 18}' text-anchor='middle'>{text}</text>" for value, text in ticks
    )
    return (
        f"<svg class='plot' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{about}'>{lines}{content}{below}"
        f"<text x='{(_LEFT + _RIGHT) / 2:.0f}' y='{_HEIGHT - 6}' text-anchor='middle'>{unit}</text></svg>"
    )
