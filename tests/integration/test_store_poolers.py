"""PostgreSQL behind PgBouncer, whose server connections are shared with clients that have settings of their own."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, cast

import psycopg
import pytest

from demo import api
from demo.api import Api
from runner.errors import SettingsError
from runner.store import schema
from runner.store.photos import NotStored
from tests.integration import pgbouncer
from tests.integration.pgbouncer import PgBouncer
from tests.support.run_tools import Service
from tests.support.store_tools import Runner, add_photos, faces, opened, statuses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.album import Album
    from demo.images import ImageServer
    from demo.servers import EmbeddedPostgres
    from runner.store.session import Session

# Session settings of another client of the pool, as the server shows them.
NEIGHBOURS = {
    "search_path": "other",
    "statement_timeout": "700ms",
    "lock_timeout": "600ms",
    "idle_in_transaction_session_timeout": "5s",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "random_page_cost": "7",
    "jit": "on",
    "role": "pg_monitor",  # which may read none of the tables
}

pytestmark = pytest.mark.usefixtures("_pgbouncer")


@pytest.fixture
def _pgbouncer() -> None:
    pgbouncer.needed()


@pytest.fixture(params=["session", "transaction"])
def mode(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def pool(postgres_server: EmbeddedPostgres, mode: str) -> Iterator[PgBouncer]:
    """A pool of one server connection where clients can share it, so that every setting that leaks is seen."""
    with PgBouncer(postgres_server.port, mode, size=1 if mode == "transaction" else 20) as pool:
        yield pool


@pytest.fixture
def direct(empty_database_url: str) -> str:
    """The URL of a database without the pooler: the API's table in `app` and in `other`, pgvector in `extensions`."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
        for name in ("app", "other"):
            connection.execute(f"CREATE SCHEMA {name}; SET search_path = {name}".encode())
            api.create_table(connection)
    return empty_database_url


@pytest.fixture
def neighbour(pool: PgBouncer, direct: str) -> Iterator[psycopg.Connection]:
    """Another client of the pool, whose settings are those of `NEIGHBOURS`."""
    with psycopg.connect(pool.url(direct), autocommit=True, prepare_threshold=None) as connection:
        for name, value in NEIGHBOURS.items():
            connection.execute(f"SET {name} = '{value}'".encode())
        yield connection


def settings_of(connection: psycopg.Connection) -> dict[str, str]:
    row = connection.execute(
        b"SELECT " + b", ".join(f"current_setting('{name}')".encode() for name in NEIGHBOURS)
    ).fetchone()
    assert row is not None
    return dict(zip(NEIGHBOURS, row, strict=True))


def tables_of(direct: str) -> set[str]:
    """Return the schemas that have embeddings."""
    with psycopg.connect(direct) as connection:
        return {row[0] for row in connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'faces'")}


def test_no_setting_leaks_either_way(pool: PgBouncer, direct: str, neighbour: psycopg.Connection) -> None:
    url = f"{pool.url(direct)}?schema=app"
    with Runner(url, url) as runner:
        assert schema.migrate(runner.faces)
        schema.check(runner.faces)
        runner.photos.check()
        assert settings_of(neighbour) == NEIGHBOURS
        add_photos(runner.api, ["a", "b"])
        assert runner.photos.begin(["a", "b"]) == {"a", "b"}
        person = faces(1)
        assert runner.store({"a": person, "b": []}) == NotStored()
        assert runner.embeddings.match([person[0].embedding], ["a"], 0.5).with_embeddings == 1
        assert statuses(runner.api) == {"a": "READY", "b": "NO_FACES_FOUND"}
        shown = runner.api.query("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
        assert shown.fetchone() == ("1min", "5s")
        runner.api.query("SELECT pg_sleep(0.8)")  # longer than the neighbour's limit
    assert settings_of(neighbour) == NEIGHBOURS
    assert tables_of(direct) == {"app"}


def test_a_pool_gets_its_server_back_after_each_transaction(postgres_server: EmbeddedPostgres, direct: str) -> None:
    # With COMMIT in a pipeline, PgBouncer 1.18 kept the server after one transaction in about a hundred.
    with PgBouncer(postgres_server.port, "transaction", size=1) as pool:
        url = f"{pool.url(direct)}?schema=app"
        with opened(url) as one, opened(url) as other:
            for _ in range(300):
                assert one.query("SELECT 1").fetchone() == (1,)
                assert other.query("SELECT 2").fetchone() == (2,)


def test_an_error_leaves_neither_a_transaction_nor_a_setting(
    pool: PgBouncer, direct: str, neighbour: psycopg.Connection
) -> None:
    with opened(f"{pool.url(direct)}?schema=app") as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.query("SELECT 1 / 0")
        with pytest.raises(KeyError):
            fail_inside(connection)
        assert settings_of(neighbour) == NEIGHBOURS
        assert connection.query("SELECT 1").fetchone() == (1,)


def fail_inside(connection: Session) -> None:
    with connection.bounded():
        connection.query("SELECT 1").fetchone()
        raise KeyError


def test_migrations_at_once_through_a_pool_wait_for_each_other(postgres_server: EmbeddedPostgres, direct: str) -> None:
    applied: list[list[str]] = []

    def migrate(url: str) -> None:
        with opened(url) as connection:
            applied.append(schema.migrate(connection))

    with PgBouncer(postgres_server.port, "transaction", size=3) as pool:
        urls = [f"{pool.url(direct)}?schema={name}" for name in ("app", "other")] * 4
        threads = [threading.Thread(target=migrate, args=(url,)) for url in urls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(len, applied)) == [0] * 6 + [1] * 2
    assert tables_of(direct) == {"app", "other"}


def behind(pool: PgBouncer, service: Service, direct: str, name: str) -> Service:
    """Return an installation in the schema `name`, reached through the pool; its API goes around it."""
    connection = psycopg.connect(direct, autocommit=True)
    connection.execute(f"SET search_path = {name}".encode())
    environment = {
        **service.environment,
        "DATABASE_URL": f"{pool.url(direct)}?schema={name}&pgbouncer=true",
        "RUNNER_CONNECT_TIMEOUT_SECONDS": "10",
    }
    return Service(service.redis, connection, Api(service.redis, connection), environment)


@pytest.mark.usefixtures("neighbour")
def test_every_command_works_behind_a_pool(
    service: Service, pool: PgBouncer, direct: str, album: Album, images: ImageServer
) -> None:
    service = behind(pool, service, direct, "app")
    with service.connection:
        assert service.command("migrate").code == 0
        doctor = service.command("doctor", "--json")
        assert doctor.code == 0, doctor.output
        names = [photo.name for photo in album.photos if photo.status == "READY"][:6]
        photos = service.api.upload({name: images.url(name) for name in names})
        selfie = album.selfies[0]
        job = service.api.compare(selfie.data, list(photos.values()))
        service.run("--queues", "process")
        summary = service.run("--queues", "compare").summary
        assert (summary["claimed"], summary["succeeded"]) == (1, 1)
        assert list(service.api.statuses().values()) == ["READY"] * 6
        assert service.api.result(job)
        removed = service.command("sweep", "--json")
        assert (removed.code, json.loads(removed.output)["deleted_photos"]) == (0, 0)
        assert service.leftovers() == {}
    assert tables_of(direct) == {"app"}


def test_runs_of_two_schemas_share_a_pool(
    service: Service, postgres_server: EmbeddedPostgres, direct: str, images: ImageServer
) -> None:
    """Each takes its jobs from a list of its own: they are the two databases of one Redis."""
    from redis import Redis

    url = service.environment["REDIS_URL"].replace("/0", "/1")
    with PgBouncer(postgres_server.port, "transaction", size=2) as pool, Redis.from_url(url) as redis:
        second = Service(redis, service.connection, service.api, {**service.environment, "REDIS_URL": url})
        installations = [behind(pool, service, direct, "app"), behind(pool, second, direct, "other")]
        for one in installations:
            assert one.command("migrate").code == 0
            one.api.upload({f"{number}": images.url("office.png") for number in range(12)})
        runs = [one.start("run") for one in installations]
        for one, run in zip(installations, runs, strict=True):
            output, errors = run.communicate(timeout=120)
            assert run.returncode == 0, errors
            assert json.loads(output.splitlines()[-1])["photos"] == 12
            assert list(one.api.statuses().values()) == ["READY"] * 12
            assert one.connection.execute("SELECT count(DISTINCT photo_id) FROM faces").fetchone() == (12,)
            one.connection.close()


@pytest.mark.parametrize("arguments", [["doctor"], ["run"], ["migrate"], ["sweep"]], ids=" ".join)
def test_statement_mode_is_refused(
    service: Service, postgres_server: EmbeddedPostgres, direct: str, arguments: list[str]
) -> None:
    with PgBouncer(postgres_server.port, "statement") as pool:
        service = behind(pool, service, direct, "app")
        with service.connection:
            ended = service.command(*arguments)
    assert ended.code == 2
    reported = ended.output + ended.errors
    assert "DATABASE_URL" in reported
    assert "statement mode" in reported
    assert "pool_mode = transaction" in reported
    assert "Traceback" not in reported


def test_statement_mode_is_named_where_a_connection_is_opened(postgres_server: EmbeddedPostgres, direct: str) -> None:
    with PgBouncer(postgres_server.port, "statement") as pool, pytest.raises(SettingsError, match="statement mode"):
        opened(pool.url(direct))
