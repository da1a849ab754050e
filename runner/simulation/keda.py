"""KEDA's algorithm for ScaledJobs, as the chart configures it, and what the pods cost in time.

It follows pkg/scaling/scaledjob/metrics.go and pkg/scaling/executor/scale_jobs.go of KEDA 2.21.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, inf

# Of KEDA; the first is the chart's default.
STRATEGIES = ("accurate", "default", "eager")


@dataclass(frozen=True, slots=True)
class Setting:
    """The values of one list in the chart (`queues.*`). Times are in seconds, CPUs in cores."""

    jobs_per_pod: int = 200
    polling_interval: float = 2
    max_replicas: int = 20
    max_jobs: int = 5000
    min_replicas: int = 0
    idle_seconds: float = 0
    max_seconds: float = 900
    activation: int = 0
    strategy: str = STRATEGIES[0]
    cpu_request: float = 1
    cpu_limit: float = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """Properties of pods and nodes. Times are in seconds, throughput in jobs per second of a pod with all its CPUs.

    With `node_cpus` of 0, every pod has room and CPUs of its own. `max_nodes` above `nodes` is a cluster autoscaler,
    whose nodes are ready after `node_delay`.
    """

    throughput: float = 29
    job_latency: float = 0.1
    pod_delay: float = 0.5
    start_up: float = 0.5
    finish_delay: float = 1
    node_cpus: float = 0
    reserved_cpus: float = 0.1
    nodes: int = 1
    max_nodes: int = 1
    node_delay: float = 90

    def pods_per_node(self, setting: Setting) -> float:
        """Return how many pods of `setting` have room on one node."""
        if not self.node_cpus:
            return inf
        if not setting.cpu_request:
            return inf
        return max(0, floor((self.node_cpus - self.reserved_cpus) / setting.cpu_request + 1e-9))


# The chart's values, and measurements of runs (docs/explanation/simulation.md names each source).
SETTINGS = {
    "process": Setting(),
    "compare": Setting(
        jobs_per_pod=20,
        polling_interval=1,
        max_replicas=10,
        max_jobs=1000,
        idle_seconds=60,
        max_seconds=300,
        cpu_request=0.5,
        cpu_limit=1,
    ),
}
THROUGHPUT = {"process": 29.0, "compare": 25.0}


def new_jobs(setting: Setting, *, waiting: int, in_flight: int, unfinished: int, pending: int = 0) -> int:
    """Return how many Jobs KEDA creates at a poll; `pending` of the unfinished Jobs have no running pod."""
    counted = in_flight + (waiting if waiting > setting.activation else 0)
    if unfinished < setting.min_replicas:
        return setting.min_replicas - unfinished
    if not counted:
        return 0
    wanted = min(setting.max_replicas, ceil(counted / setting.jobs_per_pod))
    above = unfinished - setting.min_replicas
    match setting.strategy:
        case "accurate":  # of the pending Jobs, which are all of them while no pod is being evicted
            return max(0, wanted - unfinished)
        case "eager":
            return max(0, min(setting.max_replicas - above - pending, wanted))
    return max(0, wanted - above)
