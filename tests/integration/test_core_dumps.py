"""No process that may hold a selfie leaves a core dump behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.odd_server import OddServer

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.run_tools import Service

PR_GET_DUMPABLE = 3
SLEEPER = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]


def _crash(process: subprocess.Popen[str]) -> bool:
    """End the process as a fault of native code does, and return whether the kernel wrote a core dump."""
    process.send_signal(signal.SIGSEGV)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -os.WTERMSIG(status)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    assert process.returncode == -signal.SIGSEGV
    return os.WCOREDUMP(status)


def _unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)


def test_a_run_that_crashes_leaves_no_core_dump(
    service: Service, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with OddServer({}) as server:
        service.api.upload({"x": server.url("hang")})
        run = subprocess.Popen(
            [sys.executable, "-m", "runner", "run"],
            env={**service.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_unlimited,  # noqa: PLW1509 - before any thread
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not redis.zcard("{face_embeddings:process}:leases"):
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.05)
        limits = Path(f"/proc/{run.pid}/limits").read_text()
        assert not _crash(run)
    (line,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4] == "0"
    assert list(tmp_path.iterdir()) == []


def test_the_crash_of_another_process_does_leave_one(tmp_path: Path) -> None:
    """Shows that the test above would find a core dump."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine allows no core dumps at all")
    with subprocess.Popen(SLEEPER, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=_unlimited) as process:  # noqa: PLW1509 - as above
        assert process.stdout is not None
        process.stdout.readline()
        assert _crash(process)


@pytest.mark.parametrize("command", [["dead", "list"], ["debug", "--local", "--job", "{}"], ["status"], ["doctor"]])
def test_no_command_is_dumpable(command: list[str]) -> None:
    """Even if the node pipes core dumps to a program, which resource limits do not prevent."""
    program = (
        "import ctypes, resource, runner.cli\n"
        f"runner.cli.main({command!r})\n"
        f"print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    environment = {**os.environ, "REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x",
                   "RUNNER_CONNECT_TIMEOUT_SECONDS": "0", "KUBECONFIG": "/dev/null"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 0"
