"""The environment of a benchmark: servers, the API, and child processes whose time and memory are measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis

from benchmarks import reference
from demo.api import Api, create_table
from demo.images import ImageServer
from demo.servers import EmbeddedPostgres, EmbeddedRedis
from runner.bake.catalogue import KNOWN
from runner.bake.sources import wheel_folder
from runner.store import schema
from runner.store.database import connect

HERE = Path(__file__).parent
WORKER = Path(sys.executable).with_name("spottmee-worker")  # the command that the container runs
CHILD_SECONDS = 600
_OURS = ("RUNNER_", "REDIS_", "DATABASE_", "EMBEDDINGS_", "PG")
# When each photo reached its final status, by the database's clock: the same for both workers.
_MOMENTS = """
CREATE TABLE moments (photo_id text, at double precision);
CREATE FUNCTION note_moment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moments VALUES (new.id, extract(epoch FROM clock_timestamp()));
    RETURN new;
END $$;
CREATE TRIGGER note_moment AFTER UPDATE OF status ON "Photo" FOR EACH ROW
    WHEN (new.status IN ('READY', 'NO_FACES_FOUND', 'FAILED')) EXECUTE FUNCTION note_moment();
"""
# A small launcher process measures the child's peak memory, because on Linux a child inherits the peak of the process
# that forks it. The launcher's own start-up is not counted.
_LAUNCHER = """
import json, os, sys, time
started = time.time()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
ended = time.time()
os.write(3, json.dumps([
    os.waitstatus_to_exitcode(status), started, ended, usage.ru_utime + usage.ru_stime, usage.ru_maxrss
]).encode())
"""


class BenchmarkError(Exception):
    """The process to be measured did not do its work."""


@dataclass(frozen=True, slots=True)
class Child:
    """The result of a child: wall and CPU time in seconds, peak resident memory in MiB; `started` is Unix time."""

    started: float
    seconds: float
    processor_seconds: float
    peak_mib: float
    output: str = field(repr=False)

    @property
    def summary(self) -> dict[str, Any]:
        """The object on the last line of standard output."""
        document: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return document


def child(command: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Run `python *command` to its end. Raises `BenchmarkError` if it fails."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _with_descriptor(writing), sys.executable, *command],
        env=dict(environment),
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    output, errors = process.communicate(timeout=CHILD_SECONDS)
    with os.fdopen(reading) as usage:
        measured = usage.read()
    code, started, ended, processor, peak = json.loads(measured) if measured else (process.returncode, 0, 0, 0, 0)
    if code != 0:
        raise BenchmarkError(f"{' '.join(command)} exited with code {code}: {errors[-2000:]}")
    return Child(started, ended - started, processor, peak / 1024, output)


def _with_descriptor(number: int) -> str:
    return _LAUNCHER.replace("os.write(3,", f"os.write({number},")


class World:
    """Redis, PostgreSQL with everything in one database, images over HTTP, and both workers."""

    def __init__(
        self, redis: Redis, redis_url: str, connection: psycopg.Connection, database_url: str, models: Path
    ) -> None:
        self.redis = redis
        self.connection = connection
        self.api = Api(redis, connection)
        self.models = models
        own = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.environment = {
            **own,
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "EMBEDDINGS_DATABASE_URL": database_url,
            "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true",
        }

    def empty(self) -> None:
        """Remove every photo, embedding and key."""
        self.connection.execute('TRUNCATE "Photo", faces, face_embeddings, moments')
        self.redis.flushall()

    def run_ours(self, jobs: int, *options: str) -> Child:
        """Process `jobs` jobs with `spottmee-worker run`. Raises `BenchmarkError` unless it claims exactly those."""
        done = child([str(WORKER), "run", "--max-jobs", str(jobs), *options], self.environment)
        if done.summary["claimed"] != jobs:
            raise BenchmarkError(f"{jobs} jobs were pushed, but the run's summary is {done.summary}")
        return done

    def run_reference(self, jobs: int) -> Child:
        """Process `jobs` jobs with the replaced worker."""
        return child([str(HERE / "reference.py"), str(self.models), str(jobs)], self.environment)

    def moments(self, photo_ids: Sequence[str]) -> list[float]:
        """Return the sorted Unix times at which the photos reached a final status. Raises `BenchmarkError`."""
        rows = self.connection.execute(
            "SELECT at FROM moments WHERE photo_id = ANY(%s) ORDER BY at", (list(photo_ids),)
        )
        found = [float(at) for (at,) in rows.fetchall()]
        if len(found) < len(photo_ids):
            raise BenchmarkError(f"only {len(found)} of {len(photo_ids)} photos reached a final status")
        return found


@contextmanager
def world() -> Iterator[World]:
    """Yield a world with servers of its own, which are stopped afterwards."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres())
        valkey = stack.enter_context(EmbeddedRedis())
        name = f"bench_{uuid.uuid4().hex}"
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            # As in the usual images, text is not sorted by bytes, so that LIKE cannot use an index.
            admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 LOCALE 'C.UTF-8'".encode())
        connection = stack.enter_context(psycopg.connect(postgres.database_url(name), autocommit=True))
        create_table(connection)
        with connect(postgres.database_url(name), seconds=5, application_name="bench") as session:
            schema.migrate(session)
        connection.execute(reference.CREATE_TABLE)
        connection.execute(_MOMENTS)
        redis = stack.enter_context(Redis.from_url(valkey.url))
        yield World(redis, valkey.url, connection, postgres.database_url(name), stack.enter_context(originals()))


@contextmanager
def originals() -> Iterator[Path]:
    """Yield a folder with only InsightFace's own two files of the default pack."""
    known = KNOWN["buffalo_sc"]
    with tempfile.TemporaryDirectory(prefix="spottmee-bench-") as folder:
        for name in (known.detectors[0], known.recogniser):
            Path(folder, name).symlink_to(wheel_folder() / name)
        yield Path(folder)


@contextmanager
def served(images: Mapping[str, bytes]) -> Iterator[ImageServer]:
    """Serve the images over HTTP on loopback."""
    with ImageServer(images) as server:
        yield server
