"""A small stand-in for KEDA: polls the lists and starts runners by the same formula as the chart's ScaledJobs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from demo.servers import die_with_parent
from runner.queue import keys


@dataclass(frozen=True, slots=True)
class ScaledJob:
    """The scaling parameters of a ScaledJob: the list, the jobs per runner, and the maximum number of runners."""

    queue: str
    jobs_per_runner: int
    max_runners: int


def new_runners(job: ScaledJob, waiting: int, in_flight: int, running: int) -> int:
    """Return how many runners KEDA would start.

    The two redis triggers, the list and its leases, are summed (`multipleScalersCalculation: sum`). The default
    strategy starts min(max, ceil(sum / N)) minus the unfinished Jobs (keda/pkg/scaling/executor/scale_jobs.go).
    """
    wanted = min(job.max_runners, math.ceil((waiting + in_flight) / job.jobs_per_runner))
    return max(0, wanted - running)


@dataclass(slots=True, eq=False)
class Runner:
    """One runner process; once it has ended, with its exit code and the summary that it printed."""

    queue: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    ended: float | None = None
    exit_code: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)


class Scaler:
    """Starts `spottmee-worker run` processes and collects their results. `step` never blocks."""

    def __init__(
        self,
        redis: Redis,
        jobs: list[ScaledJob],
        *,
        environment: Mapping[str, str],
        folder: Path,
        polling_seconds: float = 0.5,
        command: Sequence[str] = (sys.executable, "-m", "runner"),
        start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ) -> None:
        self.redis = redis
        self._jobs = jobs
        self.environment = dict(environment)
        self._folder = folder
        self._polling_seconds = polling_seconds
        self._command = tuple(command)
        self._start_process = start
        self._next_poll = 0.0
        self.runners: list[Runner] = []

    def depth(self, queue: str) -> tuple[int, int]:
        """Return how many jobs of a list are waiting and how many are leased: the values of the two triggers."""
        waiting, in_flight = self.redis.llen(keys.list_key(queue)), self.redis.zcard(keys.leases(queue))
        return int(waiting), int(in_flight)

    def running(self, queue: str) -> list[Runner]:
        """Return the runners of a list that are still running."""
        return [runner for runner in self.runners if runner.queue == queue and runner.exit_code is None]

    def step(self) -> None:
        """Collect the runners that have ended; if a poll is due, poll the lists and start new runners."""
        for runner in self.runners:
            if runner.exit_code is None and runner.process.poll() is not None:
                _collect(runner)
        if time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + self._polling_seconds
        for job in self._jobs:
            waiting, in_flight = self.depth(job.queue)
            for _ in range(new_runners(job, waiting, in_flight, len(self.running(job.queue)))):
                self.runners.append(self._start(job))

    def idle(self) -> bool:
        """Return whether every list is empty, nothing is leased and no runner is running: scaled to zero."""
        return all(self.depth(job.queue) == (0, 0) and not self.running(job.queue) for job in self._jobs)

    def stop(self) -> None:
        """Terminate the runners that are still running; kill those that take more than 15 seconds."""
        for runner in self.runners:
            if runner.exit_code is None:
                runner.process.terminate()
        for runner in self.runners:
            if runner.exit_code is None:
                try:
                    runner.process.wait(15)
                except subprocess.TimeoutExpired:
                    runner.process.kill()
                    runner.process.wait()
                _collect(runner)

    def _start(self, job: ScaledJob) -> Runner:
        log = self._folder / f"runner-{len(self.runners):04d}-{job.queue}.log"
        command = [
            *self._command, "run", "--queues", job.queue, "--max-jobs", str(job.jobs_per_runner),
        ]  # fmt: skip
        with log.open("wb") as errors, log.with_suffix(".out").open("wb") as output:
            process = self._start_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=self.environment,
                start_new_session=True,  # only the demonstration handles Ctrl-C
                preexec_fn=die_with_parent(),
            )
        return Runner(job.queue, process, log, time.monotonic())


def _collect(runner: Runner) -> None:
    runner.ended = time.monotonic()
    runner.exit_code = runner.process.returncode
    lines = runner.log.with_suffix(".out").read_text(encoding="utf-8").splitlines()
    try:
        runner.summary = json.loads(lines[-1]) if lines else {}
    except ValueError:
        runner.summary = {}
