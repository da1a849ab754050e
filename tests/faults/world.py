"""The environment of one campaign: real servers, real photos, runners started by KEDA's formula, and a fault."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import Connection
from redis import Redis
from redis.exceptions import RedisError

from demo.api import Api, create_table
from demo.scaler import Runner, ScaledJob, Scaler
from demo.servers import EmbeddedPostgres, EmbeddedRedis
from runner.queue import keys
from tests.faults.gate import Gate
from tests.faults.pictures import SELFIE, Kind, PictureServer
from tests.integration.pgbouncer import PgBouncer
from tests.support.forked import Fork

# The rights that a run needs (docs/reference/rights.md).
RIGHTS = (
    'SELECT ON "Photo"', 'UPDATE (status) ON "Photo"', "SELECT ON spottmee_schema", "SELECT ON faces",
    "INSERT ON faces", "DELETE ON faces",
)  # fmt: skip
# The program that injects faults: in a fork, or in a fresh process if memory limits must apply to its imports too.
FORKED = "tests.faults.crashing_runner"
FRESH = (sys.executable, str(Path(__file__).with_name("crashing_runner.py")))
LIMITS = {"FAULT_MEMORY", "FAULT_ADDRESS_SPACE"}
TURN_SECONDS = 0.05
REFERENCE = 12  # photos that selfies are compared with, stored before the fault

# A fault is a generator: it acts on the world, and yields the seconds until its next step.
Fault = Callable[["World"], Iterator[float]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What differs between campaigns. `environment` is for the runner, `fault` for `crashing_runner`.

    `pooler` is the mode of a PgBouncer in front of PostgreSQL; with `limited`, runs connect as the role `worker`, which
    has exactly the documented rights.
    """

    separate: bool = False  # two databases
    appendonly: bool = False
    durable: bool = False
    jobs_per_runner: int = 20
    max_runners: int = 3
    environment: Mapping[str, str] = field(default_factory=dict)
    fault: Mapping[str, str] = field(default_factory=dict)
    postgres: Sequence[str] = ()
    encoding: str = "UTF8"
    pooler: str = ""
    limited: bool = False


@dataclass(slots=True)
class Jobs:
    """The jobs sent: photo id → picture, comparison id → person.

    `albums` contains the photo ids of each comparison that was sent while its photos were still being processed.
    """

    photos: dict[str, Kind] = field(default_factory=dict)
    comparisons: dict[str, str] = field(default_factory=dict)
    albums: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.photos) + len(self.comparisons)


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica of the world's Redis."""

    server: EmbeddedRedis
    client: Redis


class World:
    """Use it in a `with` block in the main thread: the servers and runners end when that thread does."""

    def __init__(self, pictures: Mapping[str, Kind], setup: Setup, *, short: bool = False) -> None:
        self.setup = setup
        self.short = short
        self.pictures = dict(pictures)
        self.random = random.Random(11)
        self.jobs = Jobs()
        self.reference = Jobs()
        self.deleted: set[str] = set()
        self.finals: dict[str, list[str]] = {}  # comparison id → its first final answer, as a guest sees it
        self.seen: Counter[str] = Counter()  # how often each event occurred
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if "FAULT_MEMORY" in self.setup.fault:  # the runners' cgroups, empty by now
            for pattern in ("memory/spottmee-faults-*", "spottmee-faults-*"):
                for group in Path("/sys/fs/cgroup").glob(pattern):
                    group.rmdir()

    def _open(self, stack: ExitStack) -> None:
        setup = self.setup
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spottmee-faults-")))
        self.postgres = stack.enter_context(EmbeddedPostgres(durable=setup.durable, settings=setup.postgres))
        self.redis_server = stack.enter_context(EmbeddedRedis(appendonly=setup.appendonly))
        self.redis_gate = stack.enter_context(Gate(self.redis_server.port))
        self.postgres_gate = stack.enter_context(Gate(self.postgres.port))
        self.images = stack.enter_context(PictureServer(self.pictures))
        self.redis = stack.enter_context(Redis.from_url(self.redis_server.url))
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            how = f"ENCODING '{setup.encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
            for name in ("api", "faces"):
                connection.execute(f"CREATE DATABASE {name} {how}".encode())
        with self.database("api") as connection:
            create_table(connection)
        gate = self.postgres_gate.port
        if setup.pooler:
            gate = stack.enter_context(PgBouncer(gate, setup.pooler, size=2)).port
        self.entrance = gate  # where the runners reach PostgreSQL
        urls = {name: f"postgresql://postgres@127.0.0.1:{gate}/{name}" for name in ("api", "faces")}
        self.notes = self.folder / "notes"
        self.notes.touch()
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ},
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_gate.port}/0",
            "DATABASE_URL": urls["api"],
            **({"EMBEDDINGS_DATABASE_URL": urls["faces"]} if setup.separate else {}),
            "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true",
            "RUNNER_LOG_FORMAT": "json",
            "RUNNER_LEASE_SECONDS": "3" if self.short else "5",
            "RUNNER_RETRY_BASE_SECONDS": "0.3",
            "RUNNER_RETRY_MAX_SECONDS": "10",
            "RUNNER_THREADS": "1",
            **setup.environment,
        }
        self.fault = {"FAULT_NOTES": str(self.notes), "FAULT_DATABASE": self.postgres.database_url("api")}
        self._command("migrate")
        if setup.limited:
            self._limit()
        forked = not LIMITS & setup.fault.keys()
        scaled = [ScaledJob(name, setup.jobs_per_runner, setup.max_runners) for name in ("compare", "process")]
        self.scaler = Scaler(
            self.redis,
            scaled,
            environment={**self.environment, **self.fault, **setup.fault},
            folder=self.folder,
            polling_seconds=0.4,
            command=(FORKED,) if forked else FRESH,
            start=Fork if forked else subprocess.Popen,
        )
        stack.callback(self.scaler.stop)

    def _limit(self) -> None:
        with self.database("api") as connection:
            connection.execute("CREATE ROLE worker LOGIN")
            for right in RIGHTS:
                connection.execute(f"GRANT {right} TO worker".encode())
        self.environment["DATABASE_URL"] = self.environment["DATABASE_URL"].replace("postgres@", "worker@")

    def scaled(self, seconds: float) -> float:
        """Return `seconds` scaled to the length of the campaign: a third in a short one."""
        return seconds / 3 if self.short else seconds

    def times(self, count: int) -> int:
        """Return `count` scaled to the length of the campaign: a quarter, and at least 1, in a short one."""
        return max(1, count // 4) if self.short else count

    def database(self, name: str) -> Connection:
        """Return a connection that bypasses the gate."""
        return psycopg.connect(self.postgres.database_url(name), autocommit=True, client_encoding="UTF8")

    def faces_database(self) -> Connection:
        """Return a connection to the database with the faces."""
        return self.database("faces" if self.setup.separate else "api")

    def replica(self) -> Replica:
        """Start a replica of Redis and wait until it is connected; it stops with the world."""
        self.redis.config_set("repl-diskless-sync-delay", 0)
        follow = ["--replicaof", "127.0.0.1", str(self.redis_server.port)]
        server = self._stack.enter_context(EmbeddedRedis(arguments=follow))
        client = self._stack.enter_context(Redis.from_url(server.url))
        while client.info("replication").get("master_link_status") != "up":
            time.sleep(TURN_SECONDS)
        return Replica(server, client)

    def command(
        self, *arguments: str, fault: Mapping[str, str] | None = None, fresh: bool = False
    ) -> subprocess.Popen[str]:
        """Start a runner independently of the scaler; a `fresh` one imports everything itself."""
        start: Callable[..., subprocess.Popen[str]] = subprocess.Popen if fresh else Fork
        environment = {**self.environment, **self.fault, **(fault or {})}
        command = [*(FRESH if fresh else (FORKED,)), *arguments]
        return start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _command(self, *arguments: str) -> None:
        process = self.command(*arguments)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"{arguments}: {out}{errors}"

    # Sending

    def upload(self, count: int, *, names: Sequence[str] = ()) -> list[str]:
        """Send `count` photos of the pictures `names` (default: all but selfies and `huge`); return their ids."""
        chosen = names or [name for name in self.pictures if not name.startswith(SELFIE) and name != "huge"]
        sent = self._upload([chosen[number % len(chosen)] for number in range(count)])
        self.jobs.photos |= sent
        return list(sent)

    def _upload(self, names: Sequence[str]) -> dict[str, Kind]:
        with self.database("api") as connection:
            api = Api(self.redis, connection)
            urls = {f"{number}": self.images.url(name, number) for number, name in enumerate(names)}
            return {photo_id: self.pictures[names[int(number)]] for number, photo_id in api.upload(urls).items()}

    def prepare_comparisons(self) -> None:
        """Store the photos that selfies are compared with, before the fault."""
        people = [name.removeprefix(SELFIE) for name in self.pictures if name.startswith(SELFIE)]
        self.reference.photos = self._upload([people[number % len(people)] for number in range(REFERENCE)])
        self._command("run", "--queues", "process", "--max-jobs", str(REFERENCE))

    def compare(self, count: int) -> None:
        """Send `count` comparisons with the photos of `prepare_comparisons`."""
        people = [name.removeprefix(SELFIE) for name in self.pictures if name.startswith(SELFIE)]
        with self.database("api") as connection:
            api = Api(self.redis, connection)
            for number in range(count):
                person = people[number % len(people)]
                selfie = self.pictures[f"{SELFIE}{person}"].data
                self.jobs.comparisons[api.compare(selfie, list(self.reference.photos))] = person

    def guest(self, person: str, photo_ids: Sequence[str]) -> None:
        """Send a comparison with photos that are still being processed."""
        with self.database("api") as connection:
            job_id = Api(self.redis, connection).compare(self.pictures[f"{SELFIE}{person}"].data, photo_ids)
        self.jobs.comparisons[job_id], self.jobs.albums[job_id] = person, list(photo_ids)

    def delete(self, photo_id: str) -> None:
        """Delete a photo's row, as its owner would."""
        with self.database("api") as connection:
            Api(self.redis, connection).delete(photo_id)
        self.deleted.add(photo_id)

    def poll(self) -> None:
        """Poll the answers like the guests, who stop at the first final one."""
        for job_id in self.jobs.albums.keys() - self.finals.keys():
            value = self.redis.get(keys.match_result(job_id))
            if value is not None and value not in (b"INITIATED", b"PROCESSING"):
                self.finals[job_id] = json.loads(value)

    # Running

    def play(self, fault: Fault | None = None, *, seconds: float = 400) -> None:
        """Run the scaler and the fault until no job is left. Raises `AssertionError` after `seconds`."""
        began = time.monotonic()
        turns = fault(self) if fault is not None else iter(())
        next_turn: float | None = 0.0
        while True:
            now = time.monotonic()
            if next_turn is not None and now >= next_turn:
                pause = next(turns, None)
                next_turn = None if pause is None else time.monotonic() + pause
            with suppress(RedisError):
                self.scaler.step()
                self.poll()
                if next_turn is None and self.scaler.idle():
                    return
            assert now - began < seconds, f"jobs left after {seconds:g} s: {self.where()}"
            time.sleep(TURN_SECONDS)

    def where(self) -> str:
        """Return the current state, for a message."""
        depths = {name: self.scaler.depth(name) for name in ("compare", "process")}
        running = [runner.process.pid for runner in self.living()]
        return f"(waiting, leased) {depths}, running {running}, seen {dict(self.seen)}, exits {self.exits()}"

    def living(self) -> list[Runner]:
        """Return the runners that are still running."""
        return [runner for runner in self.scaler.runners if runner.process.poll() is None]

    def exits(self) -> Counter[int]:
        """Return how many runners ended with each exit code."""
        return Counter(runner.exit_code for runner in self.scaler.runners if runner.exit_code is not None)

    def faults_noted(self) -> Counter[str]:
        """Return how many faults `crashing_runner` has injected, by point and action."""
        lines = self.notes.read_text("utf-8").splitlines()
        return Counter(" ".join(line.split()[:2]) for line in lines)

    def noted_subjects(self) -> set[str]:
        """Return the photos that a fault has affected."""
        return {one for line in self.notes.read_text("utf-8").splitlines() for one in line.split()[2].split(",")}

    def logs(self) -> Iterator[dict[str, object]]:
        """Yield every log line of the runners."""
        for runner in self.scaler.runners:
            for line in runner.log.read_text("utf-8", "replace").splitlines():
                with suppress(ValueError):
                    document = json.loads(line)
                    if isinstance(document, dict):
                        yield document
