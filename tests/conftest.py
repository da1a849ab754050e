"""Fixtures of all tests: a clean environment, and real servers that are started once per session."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import shutil
import signal
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import psycopg
import pytest
from redis import Redis
from xdist.remote import Producer

from demo import api
from demo.album import Album, sample_album
from demo.images import ImageServer
from demo.servers import FOLDER, TEMPLATES, EmbeddedPostgres, EmbeddedRedis, remove_stale_folders
from runner.bake.samples import sample_images
from runner.cli import main
from runner.store import schema
from tests.support.clock import Clock
from tests.support.run_tools import Service
from tests.support.run_tools import service as a_service
from tests.support.scheduling import Arranged, apart, arrange, scope
from tests.support.store_tools import Command, opened

_OURS = re.compile(r"^(RUNNER_|REDIS_|DATABASE_URL|EMBEDDINGS_|PG|KUBE|.*_proxy$)", re.IGNORECASE)


KEPT_BYTES = 50 << 20
# Where Linux keeps files in memory, and how much of it must be free for the servers of all processes.
IN_MEMORY, FREE_BYTES = Path("/dev/shm"), 4 << 30

# The duration of one example depends on the machine and its load, not on the code.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folders with a target of their own unless the command line names them; None leaves it to pytest."""
    return True if apart(collection_path, config.args) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = arrange(item.nodeid for item in items)
    items.sort(key=lambda item: places[scope(item.nodeid)])


def pytest_collection_finish() -> None:
    """Let the garbage collector ignore the tests, which stay: it would traverse them all over again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Arranged | None:
    return Arranged(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Restore Ctrl-C: a shell makes its background processes ignore it, and the tests' commands would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _stripped_environment() -> None:
    """Remove the settings of the person who runs the tests."""
    for name in [name for name in os.environ if _OURS.match(name)]:
        del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def _servers_are_in_memory(_stripped_environment: None) -> Iterator[None]:
    """Keep the servers' data in memory if there is enough: a database has 300 files, which are slow to create."""
    if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free >= FREE_BYTES:
        os.environ[FOLDER] = str(IN_MEMORY)
    remove_stale_folders()
    yield
    remove_stale_folders()


@pytest.fixture(autouse=True, scope="session")
def _databases_are_copied(tmp_path_factory: pytest.TempPathFactory, _stripped_environment: None) -> None:
    """Let all PostgreSQL servers of all processes of this session be copies of the first, which initdb has created."""
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    os.environ[TEMPLATES] = str(session)


@pytest.fixture(autouse=True, scope="module")
def _memory_is_returned() -> Iterator[None]:
    """Return what a module has freed to the system: the allocator keeps it, several hundred MiB after a bake."""
    before = _resident()
    yield
    if _resident() > before + KEPT_BYTES:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


def _resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that takes the place of the real one in the whole process."""
    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", clock.sleep)
    return clock


@pytest.fixture(scope="session")
def album() -> Album:
    """The demonstration's photos and selfies."""
    return sample_album(sample_images())


@pytest.fixture(scope="session")
def images(album: Album) -> Iterator[ImageServer]:
    """The album's photos over HTTP on loopback."""
    with ImageServer({photo.name: photo.data for photo in album.photos}) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis, redis: Redis) -> str:
    """The URL of the empty database that `redis` is connected to."""
    return redis_server.url


@pytest.fixture
def redis(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    """A client of an empty database; its responses are bytes."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings=["max_connections=60"]) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE api_template")
        with opened(server.database_url("api_template")) as connection:
            api.create_table(connection)
            schema.migrate(connection)
        yield server


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A fresh database with the API's table and the migrated embeddings."""
    yield from _fresh(postgres_server, "TEMPLATE api_template")


@pytest.fixture
def empty_database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A fresh database with nothing in it."""
    yield from _fresh(postgres_server, "")


@pytest.fixture
def service(redis: Redis, redis_url: str, database_url: str) -> Iterator[Service]:
    """The whole service: an empty Redis, a fresh database, the API, and `spottmee-worker` as a subprocess."""
    with a_service(redis, redis_url, database_url) as found:
        yield found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with DATABASE_URL set, and return its exit code, standard output and standard error."""

    def run(arguments: Sequence[str], database_url: str | None) -> tuple[int, str, str]:
        monkeypatch.setenv("RUNNER_CONNECT_TIMEOUT_SECONDS", "0.2")
        if database_url is None:
            monkeypatch.delenv("DATABASE_URL", raising=False)
        else:
            monkeypatch.setenv("DATABASE_URL", database_url)
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def _fresh(server: EmbeddedPostgres, source: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {source}".encode())
    yield server.database_url(name)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
