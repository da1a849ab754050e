"""A command that asks for confirmation, with a terminal as its standard input."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping


def answered(arguments: list[str], environment: Mapping[str, str], answer: str) -> tuple[int, bytes]:
    """Run `spottmee-worker` with `arguments`, type `answer`, and return its exit code and standard error."""
    leader, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "runner", *arguments],
            env=dict(environment),
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            os.write(leader, answer.encode())
            _, errors = process.communicate(timeout=60)
    finally:
        os.close(leader)
        os.close(terminal)
    return process.returncode, errors
