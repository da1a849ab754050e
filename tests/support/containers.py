"""Runs in containers, seen as `tests.support.run_tools` sees runs as processes."""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.run_tools import Ended, Service
from tools.image_base import Engine, Limits

CONTAINER_SECONDS = 240
_OURS = re.compile(r"REDIS_URL|(EMBEDDINGS_)?DATABASE_URL|RUNNER_.*")


@dataclass(frozen=True, slots=True)
class Container:
    """One running container."""

    name: str
    engine: Engine
    process: subprocess.Popen[str]

    def wait(self) -> Ended:
        """Return how it ended."""
        output, errors = self.process.communicate(timeout=CONTAINER_SECONDS)
        return Ended(self.process.returncode, output, errors)

    def execute(self, *command: str) -> str:
        """Return what a command prints that runs inside, beside PID 1."""
        return self.engine.podman("exec", self.name, *command)

    def terminate(self) -> None:
        """Send SIGTERM to PID 1, as the kubelet does."""
        self.engine.podman("kill", "--signal=TERM", self.name)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Starts containers of the image beside the service's servers."""

    engine: Engine
    service: Service

    def start(self, *arguments: str, limits: Limits | None = None, **more: str) -> Container:
        """Start a container with these arguments and further variables."""
        ours = {name: value for name, value in self.service.environment.items() if _OURS.fullmatch(name)}
        name = f"spottmee-test-{uuid.uuid4().hex[:12]}"
        process = self.engine.start(name, arguments, ours | more, limits or Limits())
        return Container(name, self.engine, process)

    def command(self, *arguments: str, limits: Limits | None = None, **more: str) -> Ended:
        """Return how a container with these arguments ends."""
        return self.start(*arguments, limits=limits, **more).wait()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for something to become true; fail the test where it does not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.02)
