"""Helpers for tests of the command line: the API's side, and `spottmee-worker` as a subprocess."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import psycopg
from redis import Redis

from demo.api import Api
from runner.cli import main
from tests.support.forked import Fork, forkable

RUN_SECONDS = 240
# Commands that leave nothing behind in their process: no model, no threads, no logging. A process of its own would take
# 0.4 s of CPU time for its imports, each time.
IN_THIS_PROCESS = frozenset({"dead", "forget", "import-legacy", "metrics", "migrate", "reprocess", "status", "sweep"})


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of a command: its exit code, its output, and its log."""

    code: int
    output: str
    errors: str = field(repr=False)

    @property
    def summary(self) -> dict[str, Any]:
        """The object on the last line of standard output."""
        document: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return document

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return [json.loads(line) for line in self.errors.splitlines()]

    def lines(self, *, code: str | None = None, **values: object) -> list[dict[str, Any]]:
        """Return the log lines with these values, and with this error code."""
        found = [line for line in self.log if values.items() <= line.items()]
        return found if code is None else [line for line in found if (line.get("error") or {}).get("code") == code]


@dataclass(frozen=True, slots=True)
class Service:
    """Redis, one database for everything, and the API in front of them."""

    redis: Redis
    connection: psycopg.Connection
    api: Api
    environment: Mapping[str, str]

    def command(self, *arguments: str, **more: str) -> Ended:
        """Run `spottmee-worker` with these arguments and additional environment variables; return the result."""
        if arguments[:1] and arguments[0] in IN_THIS_PROCESS:
            return _called(arguments, {**self.environment, **more})
        return self.forked(*arguments, **more)

    def forked(self, *arguments: str, **more: str) -> Ended:
        """Do the same in another process for each command."""
        process = self.start(*arguments, **more)
        output, errors = process.communicate(timeout=RUN_SECONDS)
        return Ended(process.returncode, output, errors)

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start `spottmee-worker` and return its process: a fork, where that makes no difference."""
        if forkable(more):
            return self._started(Fork, ["runner.cli", *arguments], more)
        return self.start_fresh(*arguments, **more)

    def start_fresh(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start `spottmee-worker` as a new Python and return its process."""
        return self._started(subprocess.Popen, [sys.executable, "-m", "runner", *arguments], more)

    def _started(
        self, start: Callable[..., subprocess.Popen[str]], command: Sequence[str], more: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        return start(
            command,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **more: str) -> Ended:
        """Run until the lists are empty; fail the test unless the exit code is 0."""
        ended = self.command("run", *arguments, **more)
        assert ended.code == 0, ended.errors
        return ended

    def faces(self, photo_id: str) -> int:
        """Return the number of stored faces of a photo."""
        row = self.connection.execute("SELECT count(*) FROM faces WHERE photo_id = %s", (photo_id,)).fetchone()
        assert row is not None
        return int(row[0])

    def status(self, photo_id: str) -> str | None:
        """Return the status of a photo, None if it does not exist."""
        return self.api.statuses().get(photo_id)

    def leftovers(self) -> dict[str, int]:
        """Return how many jobs of each list are waiting, leased or dead letters, without zeros."""
        counts = {}
        for name in ("compare", "process"):
            counts[f"{name} waiting"] = self.redis.llen(f"face_embeddings:{name}")
            counts[f"{name} leased"] = self.redis.zcard(f"{{face_embeddings:{name}}}:leases")
            counts[f"{name} claimed"] = self.redis.hlen(f"{{face_embeddings:{name}}}:claimed")
            counts[f"{name} parked"] = self.redis.zcard(f"{{face_embeddings:{name}}}:parked")
            counts[f"{name} dead"] = self.redis.hlen(f"{{face_embeddings:{name}}}:dead")
        return {name: int(count) for name, count in counts.items() if count}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about in time"
        time.sleep(0.02)


def _called(arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Return the result of a command that runs in this process."""
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with mock.patch.dict(os.environ, environment, clear=True), redirect_stdout(output), redirect_stderr(errors):
            code = main(arguments)
    except SystemExit as ended:  # argparse
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ended(code, output.getvalue(), errors.getvalue())


@contextmanager
def service(redis: Redis, redis_url: str, database_url: str) -> Iterator[Service]:
    """Yield the service with an empty Redis and a fresh database."""
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "DATABASE_URL": f"{database_url}?schema=public",
        "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true",  # images are served on loopback
        "RUNNER_LOG_FORMAT": "json",
        "RUNNER_RETRY_BASE_SECONDS": "0.1",
        "RUNNER_OUTAGE_SECONDS": "0",  # a photo that cannot be fetched ends with the run
    }
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield Service(redis, connection, Api(redis, connection), environment)
