"""Runs commands in forks of one process that has imported everything: a tenth of what starting Python anew takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.run_tools import Ended

_MODULES = (
    "runner.cli.run",
    "runner.expire",
    "runner.store.repository",
    "runner.images.decode",
    "runner.queue.private",
)
# Reads one command a line, and answers each with its exit code.
_SERVER = """
import importlib, json, os, sys
from runner.cli import main
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    arguments, environment, directory = json.loads(line)
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(f"{directory}/{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        code = 1
        try:
            code = main(arguments)
            sys.stdout.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """A process that runs `spottmee-worker` in forks of itself, one after another."""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *_MODULES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        return self

    def command(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, dict(environment), self._directory.name]) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        output, errors = (Path(self._directory.name, number).read_text(encoding="utf-8") for number in ("1", "2"))
        return Ended(code, output, errors)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._directory.cleanup()
