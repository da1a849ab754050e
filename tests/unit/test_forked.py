"""The process that the tests fork commands from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_process_that_has_forked_commands_ends_without_a_warning() -> None:
    program = "from tests.support import forked; print(forked.run(['--version'], capture_output=True).returncode)"
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
