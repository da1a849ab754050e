"""What a pattern costs and how long its jobs wait, for each setting, and which setting is recommended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum

import numpy as np

from runner.simulation.arrivals import Arrivals
from runner.simulation.keda import Machine, Setting
from runner.simulation.play import Played, play

# A burst can come at any moment between two polls: it is simulated for this many moments, unless it is very large.
OFFSETS = 10
_MOST_PLAYED = 1_000_000
# Without a target, settings whose p95 is within this share of the shortest count as equally fast.
AS_QUICK = 0.05
_HOUR = 3600


class Criterion(Enum):
    """How the recommended setting is chosen; the values are what is shown."""

    TARGET = "the fewest pod-seconds among the settings whose p95 is within --target"
    QUICKEST = f"the fewest pod-seconds among the settings whose p95 is within {AS_QUICK:.0%} of the shortest"
    MISSED = "no setting keeps p95 within --target: the one with the shortest p95"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One setting. Waits are from the push to the result, over all plays; the rest is the mean of the plays."""

    setting: Setting
    p50: float
    p95: float
    p99: float
    longest: float
    drained: float
    pods: float
    most_jobs: int
    pod_seconds: float
    plays: int
    example: Played = field(repr=False)

    def cost(self, pod_hour_price: float) -> float:
        """Return what the pods cost, in the currency of the price."""
        return self.pod_seconds / _HOUR * pod_hour_price

    def document(self, pod_hour_price: float | None) -> dict[str, object]:
        """Return the outcome as JSON carries it."""
        return {
            "setting": asdict(self.setting),
            "wait_seconds": {
                "p50": round(self.p50, 3),
                "p95": round(self.p95, 3),
                "p99": round(self.p99, 3),
                "max": round(self.longest, 3),
            },
            "drained_seconds": round(self.drained, 3),
            "pods": round(self.pods, 2),
            "most_unfinished_jobs": self.most_jobs,
            "pod_seconds": round(self.pod_seconds, 1),
            "cost": None if pod_hour_price is None else round(self.cost(pod_hour_price), 6),
            "plays": self.plays,
        }


def simulate(
    arrivals: Arrivals, settings: Sequence[Setting], machine: Machine, progress: Callable[[int], None]
) -> list[Outcome]:
    """Play the pattern through each setting; `progress` is called with how many are done."""
    outcomes = []
    for number, setting in enumerate(settings, 1):
        outcomes.append(_outcome(arrivals, setting, machine))
        progress(number)
    return outcomes


def _outcome(arrivals: Arrivals, setting: Setting, machine: Machine) -> Outcome:
    plays = min(OFFSETS, max(1, _MOST_PLAYED // len(arrivals))) if arrivals.is_burst else 1
    offsets = [(number + 0.5) / plays * setting.polling_interval for number in range(plays)]
    played = [play(arrivals, setting, machine, offset=offset) for offset in offsets]
    waits = np.concatenate([one.waits for one in played])
    p50, p95, p99 = (float(value) for value in np.percentile(waits, (50, 95, 99)))
    return Outcome(
        setting=setting,
        p50=p50,
        p95=p95,
        p99=p99,
        longest=float(waits.max()),
        drained=float(np.mean([one.done.max() for one in played])),
        pods=float(np.mean([one.jobs_created for one in played])),
        most_jobs=max(one.most_jobs for one in played),
        pod_seconds=float(np.mean([one.pod_seconds for one in played])),
        plays=plays,
        example=played[plays // 2],
    )


def recommend(outcomes: Sequence[Outcome], target: float | None) -> tuple[Outcome, Criterion]:
    """Return the recommended setting, and why it is; of equal ones the first."""
    quickest = min(outcomes, key=lambda one: one.p95)
    if target is None:
        limit, criterion = quickest.p95 * (1 + AS_QUICK), Criterion.QUICKEST
    elif quickest.p95 > target:
        return quickest, Criterion.MISSED
    else:
        limit, criterion = target, Criterion.TARGET
    return min((one for one in outcomes if one.p95 <= limit), key=lambda one: one.pod_seconds), criterion
