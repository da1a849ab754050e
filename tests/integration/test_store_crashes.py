"""Storing a batch while the connection breaks, or the photo is deleted, at every step of it (`tests.support.proxy`)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from demo.servers import EmbeddedPostgres
from runner import settings
from runner.store.database import is_transient
from runner.store.photos import NotStored
from runner.store.repository import Repository
from runner.store.sweep import sweep
from tests.support.proxy import Proxy, Verdict
from tests.support.store_tools import MODEL, Runner, add_photos, faces, opened, statuses, stored_faces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection

    from runner.store.session import Session

OUTCOMES = {"three": faces(3), "nobody": [], "broken": None, "was ready": None, "gone": faces(2), "again": faces(1)}
EXPECTED = NotStored(gone=frozenset({"gone"}))
FINAL = {"three": "READY", "nobody": "NO_FACES_FOUND", "broken": "FAILED", "was ready": "READY", "again": "READY"}
FINAL_FACES = [("again", 0), ("three", 0), ("three", 1), ("three", 2), ("was ready", 0), ("was ready", 1)]
MOST_STEPS = 60


@pytest.fixture(params=["one connection", "two connections"])
def direct(request: pytest.FixtureRequest, database_url: str) -> Iterator[Runner]:
    """A runner that bypasses the proxy, and prepares and checks the data."""
    faces_url = database_url if request.param == "one connection" else f"{database_url}?schema=public"
    with Runner(database_url, faces_url) as runner:
        yield runner


@pytest.fixture
def proxy(postgres_server: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(postgres_server.port) as proxy:
        yield proxy


def urls(direct: Runner, proxy: Proxy) -> tuple[str, str]:
    """Return the URLs of `direct` through the proxy."""
    through = proxy.url(direct.api_url)
    return through, through if direct.faces is direct.api else f"{through}&schema=public"


def prepare(direct: Runner) -> None:
    direct.api.execute('TRUNCATE "Photo"; TRUNCATE faces')
    add_photos(direct.api, ["three", "nobody", "broken", "again"], "PROCESSING")
    add_photos(direct.api, ["was ready"], "READY")
    # Data of earlier runners: complete, incomplete, and of a photo that has been deleted since.
    direct.embeddings.replace({"was ready": faces(2), "again": faces(3), "broken": faces(1), "gone": faces(1)})


def breaking(at: int, how: Verdict) -> Callable[[int], Verdict]:
    return lambda number: how if number == at else Verdict.PASS


def breaks(runner: Runner) -> bool:
    """Store, and return whether that failed because of a broken connection, which must be a transient error."""
    try:
        stored = runner.store(OUTCOMES)
    except psycopg.Error as error:
        transient = is_transient(error)
    else:
        assert stored == EXPECTED
        return False
    assert transient
    return True


def wait_until_alone(connection: Connection) -> None:
    """Wait until the server has noticed that the runner's connections are gone."""
    for _ in range(2000):
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
            " AND pid <> pg_backend_pid()"
        ).fetchone()
        if row == (0,):
            return
        threading.Event().wait(0.002)
    raise AssertionError("a broken connection is still active")


def broken_attempts(direct: Runner, proxy: Proxy, how: Verdict) -> Iterator[None]:
    """Break an attempt at each of its steps in turn, and yield after each, until an attempt gets through."""
    for at in range(1, MOST_STEPS):
        prepare(direct)
        with Runner(*urls(direct, proxy)) as broken:
            proxy.watch(breaking(at, how))
            if not breaks(broken):
                return
        wait_until_alone(direct.api)
        yield
    raise AssertionError("it never got through")


@pytest.mark.parametrize("how", [Verdict.LOSE_REQUEST, Verdict.LOSE_REPLY])
def test_a_connection_that_breaks_at_any_step_leaves_nothing_half_done(
    direct: Runner, proxy: Proxy, how: Verdict
) -> None:
    """Each step or its reply is lost in turn; then the job is delivered again."""
    attempts = 0
    for _ in broken_attempts(direct, proxy, how):
        attempts += 1
        between, stored = statuses(direct.api), stored_faces(direct.faces)
        # READY means that exactly all faces are stored, even if an attempt that broke has written it.
        assert between["three"] in {"PROCESSING", "READY"}
        complete = [("three", index) for index in range(3)]
        assert [face for face in stored if face[0] == "three"] in ([], complete)
        assert between["three"] == "PROCESSING" or set(complete) <= set(stored)
        assert between["was ready"] == "READY"
        assert {("was ready", 0), ("was ready", 1)} <= set(stored)
        assert direct.store(OUTCOMES) == EXPECTED
        assert statuses(direct.api) == FINAL
        assert stored_faces(direct.faces) == FINAL_FACES
    assert attempts >= 15, "the statements of a transaction were not broken one by one"


@pytest.mark.parametrize("how", [Verdict.LOSE_REQUEST, Verdict.LOSE_REPLY])
def test_a_run_gets_over_a_connection_that_breaks_at_any_step(direct: Runner, proxy: Proxy, how: Verdict) -> None:
    """The same for a run, at every third step: it reconnects and succeeds."""
    api_url, faces_url = urls(direct, proxy)
    environment = {
        "REDIS_URL": "redis://unused",
        "DATABASE_URL": api_url,
        "EMBEDDINGS_DATABASE_URL": faces_url,
        "RUNNER_CONNECT_TIMEOUT_SECONDS": "20",
    }
    for at in range(1 if how is Verdict.LOSE_REQUEST else 2, MOST_STEPS, 3):
        prepare(direct)
        with Repository(settings.load(environment), MODEL, application_name="test") as repository:
            repository.check()
            proxy.watch(breaking(at, how))
            assert repository.begin(list(OUTCOMES)) == set(OUTCOMES) - {"gone"}
            assert repository.store(OUTCOMES, lambda _: True) == EXPECTED
            assert repository.match(faces(3)[0].embedding, list(OUTCOMES), 0.9).with_embeddings == 3
            through = at > proxy.steps
            proxy.watch(lambda _: Verdict.PASS)
        assert statuses(direct.api) == FINAL
        assert stored_faces(direct.faces) == FINAL_FACES
        if through:
            break
    else:
        raise AssertionError("it never got through")
    assert at > 20, "the statements of a transaction were not broken one by one"


def test_a_photo_that_is_deleted_at_any_step_leaves_no_faces(direct: Runner, proxy: Proxy) -> None:
    """The API deletes a photo before each step in turn, waiting for the row's lock if necessary."""
    seen = set()
    for at in range(1, MOST_STEPS):
        prepare(direct)
        with Runner(*urls(direct, proxy)) as runner, direct.another() as api:
            deletion = threading.Thread(
                target=lambda api=api: api.api.execute("DELETE FROM \"Photo\" WHERE id = 'three'")
            )

            def delete(number: int, at: int = at, deletion: threading.Thread = deletion) -> Verdict:
                if number == at:
                    deletion.start()
                    deletion.join(0.05)  # it may have to wait for the lock, and the lock for this step
                return Verdict.PASS

            proxy.watch(delete)
            was_gone = "three" in runner.store(OUTCOMES).gone
            through = at > proxy.steps
            proxy.watch(lambda _: Verdict.PASS)  # closing the connections is a step too
            if through:
                break
            deletion.join()
        seen.add(was_gone)
        assert "three" not in statuses(direct.api)
        left = {photo_id for photo_id, _ in stored_faces(direct.faces)}
        if was_gone:
            assert "three" not in left
        else:
            # It was deleted after it had been stored: the sweep removes its faces, or a later attempt does.
            assert sweep(direct.api, direct.faces).deleted_photos == (1 if "three" in left else 0)
        assert {photo_id for photo_id, _ in stored_faces(direct.faces)} == {"again", "was ready"}
    else:
        raise AssertionError("it never got through")
    assert seen == {True, False}


@pytest.mark.parametrize("how", [Verdict.LOSE_REQUEST, Verdict.LOSE_REPLY])
def test_a_photo_that_is_deleted_between_a_crash_and_the_next_delivery_leaves_no_faces(
    direct: Runner, proxy: Proxy, how: Verdict
) -> None:
    attempts = 0
    for _ in broken_attempts(direct, proxy, how):
        attempts += 1
        direct.api.execute('DELETE FROM "Photo"')
        assert direct.store(OUTCOMES) == NotStored(gone=frozenset(OUTCOMES))
        left = direct.faces.execute("SELECT DISTINCT photo_id FROM faces").fetchall()
        assert left == []
    assert attempts >= 4


def test_a_connection_that_is_lost_while_the_caller_fails_is_closed(database_url: str) -> None:
    """Otherwise later statements would join the transaction that was never ended."""
    with opened(database_url) as connection, opened(database_url) as other:
        with pytest.raises(KeyError):
            fail_without_server(connection, other)
        assert connection.closed


def fail_without_server(connection: Session, other: Session) -> None:
    with connection.bounded():
        backend = connection.query("SELECT pg_backend_pid()").fetchone()
        other.query("SELECT pg_terminate_backend(%s, 5000)", backend or ())
        raise KeyError


def test_a_server_that_is_read_only_by_default_is_not_written_to() -> None:
    """The server's default of read-only also applies to existing connections."""
    with EmbeddedPostgres() as server, opened(server.url) as connection, opened(server.url) as admin:
        connection.query("CREATE TABLE written (id text)")
        for mode in ("on", "off"):
            admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {mode}")
            admin.execute("SELECT pg_reload_conf()")
            wait_for_mode(connection, mode)
            if mode == "on":
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
                    connection.query("INSERT INTO written VALUES ('a')")
                assert is_transient(caught.value)
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), connection.unlimited():
                    connection.query("CREATE TABLE more (id text)")
            else:
                connection.query("INSERT INTO written VALUES ('a')")


def wait_for_mode(connection: Session, mode: str) -> None:
    for _ in range(500):
        if connection.query("SELECT current_setting('transaction_read_only')").fetchone() == (mode,):
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"transactions never had read-only {mode}")
