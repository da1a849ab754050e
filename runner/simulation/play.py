"""One pattern played through one setting, event by event.

Pods take jobs one after the other. All pods that work or start up share the nodes' CPUs evenly, so they have one speed
at any moment (1: every pod has its CPU limit). Work ends at a point of virtual time, which passes at that speed: a
change of the speed moves no event of the heap of work. Everything else happens at a point of real time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from math import ceil, inf

import numpy as np

from runner.errors import UsageError
from runner.simulation.arrivals import Arrivals, Seconds
from runner.simulation.keda import Machine, Setting, new_jobs

# As runner/worker/loop.py: a run that has found nothing at all waits while others hold leases, to take over those of a
# dead run: for this share of RUNNER_LEASE_SECONDS (30), looking at this interval.
ORPHAN_SECONDS = 0.4 * 30
IDLE_PAUSE = 0.5
_HORIZON = 30 * 86_400
_STARTING = -1
# Kinds of timers, in the order in which those of one moment happen: KEDA looks last.
_FINISHED, _READY, _IDLE, _NODE, _POLL = range(5)
_MOMENT = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What happened to the jobs (pushed, claimed, done) and pods (assigned to a node, left), in seconds."""

    pushed: Seconds = field(repr=False)
    claimed: Seconds = field(repr=False)
    done: Seconds = field(repr=False)
    assigned: Seconds = field(repr=False)
    left: Seconds = field(repr=False)
    jobs_created: int
    most_jobs: int
    zero: float

    @property
    def waits(self) -> Seconds:
        """From a push to the result."""
        return np.asarray(self.done - self.pushed)

    @property
    def pod_seconds(self) -> float:
        """For how long pods had their requests on a node."""
        return float((self.left - self.assigned).sum())


@dataclass(slots=True)
class _Pod:
    assigned: float
    began: float = inf
    left: float = inf
    claims: int = 0
    job: int = _STARTING
    idle_since: float = 0.0
    has_timer: bool = False


def play(arrivals: Arrivals, setting: Setting, machine: Machine, *, offset: float) -> Played:
    """Play the pattern, with KEDA's first poll `offset` seconds after its beginning.

    Raises `UsageError` where not one pod has room on a node, or where jobs still wait a month after the last push.
    """
    if machine.pods_per_node(setting) < 1:
        raise UsageError(
            f"a pod requests {setting.cpu_request:g} CPUs, and a node has {machine.node_cpus:g}, of which "
            f"{machine.reserved_cpus:g} are reserved: raise --node-cpus or lower --cpu-request"
        )
    return _Play(arrivals, setting, machine, offset).run()


class _Play:
    def __init__(self, arrivals: Arrivals, setting: Setting, machine: Machine, offset: float) -> None:
        self._setting, self._machine, self._offset = setting, machine, offset
        self._pushed = arrivals.seconds
        self._times: list[float] = [*arrivals.seconds.tolist(), inf]
        self._count = len(arrivals)
        self._done = [0.0] * self._count
        self._claimed: list[float] = []
        self._completed = 0
        self._now = self._virtual = 0.0
        self._speed, self._service = 1.0, 1 / machine.throughput
        self._work: list[tuple[float, int]] = []  # virtual time, pod
        self._timers: list[tuple[float, int, int, int]] = []  # time, kind, pod or number of the poll, order
        self._order = 0
        self._pods: list[_Pod] = []
        self._idle: dict[int, None] = {}  # in the order in which they became idle
        self._working = self._starting = 0
        self._nodes = self._expected_nodes = machine.nodes
        self._room = machine.nodes * machine.pods_per_node(setting)
        self._unassigned = self._unready = self._unfinished = self._created = self._most = 0
        self._zero = 0.0

    def run(self) -> Played:
        self._warm()
        self._set_timer(self._offset, _POLL, 0)
        while not self._is_over():
            timer = self._timers[0][0]
            push = self._times[len(self._claimed)] if self._idle else inf
            if self._work and self._work_off(min(timer, push)):
                continue
            if push <= timer:
                self._pass_to(push)
                self._wake()
            else:
                self._handle_timer()
        return self._result()

    def _is_over(self) -> bool:
        if self._completed < self._count:
            if self._now > self._times[-2] + _HORIZON:
                raise UsageError(
                    f"{self._count - self._completed:,} jobs are not done 30 days after the last push: check "
                    "--throughput, --max-replicas and activationListLength"
                )
            return False
        return not self._unfinished or self._setting.min_replicas > 0

    def _result(self) -> Played:
        return Played(
            pushed=self._pushed,
            claimed=np.asarray(self._claimed),
            done=np.asarray(self._done) + self._machine.job_latency,
            assigned=np.asarray([pod.assigned for pod in self._pods]),
            left=np.asarray([min(pod.left, self._now) for pod in self._pods]),
            jobs_created=self._created,
            most_jobs=self._most,
            zero=self._zero,
        )

    # Time

    def _pass_to(self, moment: float) -> None:
        self._virtual += (moment - self._now) * self._speed
        self._now = moment

    def _set_timer(self, moment: float, kind: int, which: int) -> None:
        self._order += 1
        heappush(self._timers, (moment, kind, which, self._order))

    def _set_speed(self) -> None:
        """Share the CPUs; the start-up of a run is mostly a single thread."""
        limit = self._setting.cpu_limit
        demand = self._working * limit + self._starting * min(1.0, limit)
        cpus = self._nodes * self._machine.node_cpus or inf
        self._speed = min(1.0, cpus / demand) if demand else 1.0

    def _handle_timer(self) -> None:
        moment, kind, which, _ = heappop(self._timers)
        self._pass_to(moment)
        if kind == _POLL:
            self._poll(which)
        elif kind == _READY:
            self._start(which)
        elif kind == _IDLE:
            self._look(which)
        elif kind == _FINISHED:
            self._unfinished -= 1
            self._zero = moment
        else:
            self._nodes += 1
            self._room += self._machine.pods_per_node(self._setting)
            self._assign()
            self._set_speed()

    # KEDA

    def _poll(self, number: int) -> None:
        waiting = self._waiting()
        created = new_jobs(
            self._setting,
            waiting=waiting,
            in_flight=self._working,
            unfinished=self._unfinished,
            pending=self._unassigned + self._unready,
        )
        self._create(created)
        interval = self._setting.polling_interval
        following = number + 1
        if not (waiting or self._working or self._setting.min_replicas):
            push = self._times[len(self._claimed)]
            if push < inf:  # nothing changes before the next push
                following = max(following, ceil((push - self._offset) / interval - _MOMENT))
        self._set_timer(self._offset + following * interval, _POLL, following)

    def _waiting(self) -> int:
        return int(np.searchsorted(self._pushed, self._now, side="right")) - len(self._claimed)

    def _create(self, count: int) -> None:
        self._created += count
        self._unfinished += count
        self._unassigned += count
        self._most = max(self._most, self._unfinished)
        self._assign()

    def _warm(self) -> None:
        """Let the pods of `min_replicas` have started before the pattern begins."""
        for _ in range(self._setting.min_replicas):
            if not self._room:
                break
            self._create(1)
            _, _, which, _ = self._timers.pop()
            self._unready -= 1
            self._pods[which].began = 0.0
            self._next(which)

    # Pods

    def _assign(self) -> None:
        """Assign pods to nodes with room, and ask for nodes where there is none."""
        while self._unassigned and self._room >= 1:
            self._unassigned -= 1
            self._unready += 1
            self._room -= 1
            self._pods.append(_Pod(self._now))
            self._set_timer(self._now + self._machine.pod_delay, _READY, len(self._pods) - 1)
        each = self._machine.pods_per_node(self._setting)
        while self._unassigned > (self._expected_nodes - self._nodes) * each:
            if self._expected_nodes >= self._machine.max_nodes:
                return
            self._expected_nodes += 1
            self._set_timer(self._now + self._machine.node_delay, _NODE, 0)

    def _start(self, which: int) -> None:
        self._unready -= 1
        self._pods[which].began = self._now
        self._starting += 1
        heappush(self._work, (self._virtual + self._machine.start_up, which))
        self._set_speed()

    def _work_off(self, limit: float) -> bool:
        """Let pods finish jobs and claim the next until `limit`. Return whether a pod found none to claim before it."""
        work, times, done, claimed, pods = self._work, self._times, self._done, self._claimed, self._pods
        service, speed, most, seconds = self._service, self._speed, self._setting.max_jobs, self._setting.max_seconds
        while True:
            end, which = work[0]
            now = self._now + (end - self._virtual) / speed
            if now > limit:
                return False
            self._now, self._virtual = now, end
            pod = pods[which]
            if pod.job == _STARTING:
                self._starting -= 1
                break
            done[pod.job] = now
            self._completed += 1
            if times[len(claimed)] > now or pod.claims >= most or now - pod.began >= seconds:
                self._working -= 1
                break
            pod.job = len(claimed)
            pod.claims += 1
            claimed.append(now)
            heapreplace(work, (end + service, which))
        heappop(work)
        self._next(which)
        return True

    def _next(self, which: int) -> None:
        """Let a pod without a job claim one, wait or leave."""
        pod = self._pods[which]
        if pod.claims >= self._setting.max_jobs or self._now - pod.began >= self._setting.max_seconds:
            self._leave(which)
        elif self._times[len(self._claimed)] <= self._now:
            self._claim(which)
        else:
            pod.idle_since = self._now
            self._idle[which] = None
            if pod.has_timer:
                self._set_speed()
            else:
                self._look(which)

    def _claim(self, which: int) -> None:
        pod = self._pods[which]
        pod.job = len(self._claimed)
        pod.claims += 1
        self._claimed.append(self._now)
        self._working += 1
        heappush(self._work, (self._virtual + self._service, which))
        self._set_speed()

    def _wake(self) -> None:
        """Let the pod that has been idle for the longest time claim the job that was pushed."""
        which = next(iter(self._idle))
        del self._idle[which]
        self._claim(which)

    def _look(self, which: int) -> None:
        """Let an idle pod leave if its time is up, or set a timer for it."""
        pod = self._pods[which]
        pod.has_timer = False
        if which not in self._idle:
            return
        until = pod.idle_since + self._setting.idle_seconds
        if not pod.claims and self._working and self._now < pod.idle_since + ORPHAN_SECONDS:
            until = max(until, self._now + IDLE_PAUSE)
        until = min(until, pod.began + self._setting.max_seconds)
        if until <= self._now + _MOMENT:
            del self._idle[which]
            self._leave(which)
        else:
            pod.has_timer = True
            self._set_timer(until, _IDLE, which)
            self._set_speed()

    def _leave(self, which: int) -> None:
        self._pods[which].left = self._now
        self._room += 1
        self._set_timer(self._now + self._machine.finish_delay, _FINISHED, which)
        self._assign()
        self._set_speed()
