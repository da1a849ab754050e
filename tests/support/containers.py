"""Runs in containers, with the interface that `tests.support.run_tools` has for runs as processes."""

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
        """Wait for the container to end and return the result."""
        output, errors = self.process.communicate(timeout=CONTAINER_SECONDS)
        return Ended(self.process.returncode, output, errors)

    def execute(self, *command: str) -> str:
        """Run a command inside the container and return its output."""
        return self.engine.podman("exec", self.name, *command)

    def terminate(self) -> None:
        """Send SIGTERM to PID 1, as the kubelet does."""
        self.engine.podman("kill", "--signal=TERM", self.name)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Starts containers of the image that use the servers of `service`."""

    engine: Engine
    service: Service

    def start(self, *arguments: str, limits: Limits | None = None, **more: str) -> Container:
        """Start a container with these arguments and additional environment variables."""
        ours = {name: value for name, value in self.service.environment.items() if _OURS.fullmatch(name)}
        name = f"spottmee-test-{uuid.uuid4().hex[:12]}"
        process = self.engine.start(name, arguments, ours | more, limits or Limits())
        return Container(name, self.engine, process)

    def command(self, *arguments: str, limits: Limits | None = None, **more: str) -> Ended:
        """Run a container with these arguments to its end and return the result."""
        return self.start(*arguments, limits=limits, **more).wait()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until `condition` is true; fail the test if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.02)
