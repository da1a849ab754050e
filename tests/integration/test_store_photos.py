"""Statuses in the API's table, and storing the outcomes of a batch in both databases."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from demo import api
from runner.errors import PhotosInvisibleError, SettingsError, UnstorableError
from runner.store import schema
from runner.store.embeddings import EmbeddingStore
from runner.store.photos import NotStored, PhotoStatus, PhotoTable
from tests.support.proxy import Proxy, Verdict
from tests.support.store_tools import (
    MODEL,
    UNSTORABLE_FACTORS,
    Runner,
    add_photos,
    faces,
    opened,
    round_trips,
    statuses,
    stored_faces,
    unstorable_face,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from psycopg import Connection

    from runner.store.session import Session

ALL = [str(status) for status in PhotoStatus]
SUCCESS = {"READY", "NO_FACES_FOUND"}


@pytest.fixture
def table(database_url: str) -> Iterator[PhotoTable]:
    with opened(database_url) as connection:
        yield PhotoTable(connection)


@pytest.fixture(params=["one database", "two databases"])
def runner(request: pytest.FixtureRequest, database_url: str) -> Iterator[Runner]:
    """Both tables over one connection, or over one each (another parameter makes another URL)."""
    faces_url = database_url if request.param == "one database" else f"{database_url}?schema=public"
    with Runner(database_url, faces_url) as runner:
        yield runner


def in_every_status(connection: Session) -> None:
    for status in ALL:
        add_photos(connection, [f"was {status}"], status)


def test_beginning_does_not_change_photos_that_have_succeeded(table: PhotoTable) -> None:
    in_every_status(table.connection)
    ids = [f"was {status}" for status in ALL]
    assert table.begin([*ids, *ids, "unknown"]) == set(ids)
    assert statuses(table.connection) == {
        f"was {status}": status if status in SUCCESS else "PROCESSING" for status in ALL
    }
    assert table.begin([]) == set()


@pytest.mark.parametrize("final", ["READY", "NO_FACES_FOUND", "FAILED"])
def test_failure_never_replaces_success(table: PhotoTable, final: str) -> None:
    in_every_status(table.connection)
    updated = set(table.finish({f"was {status}": PhotoStatus(final) for status in [*ALL]} | {"?": PhotoStatus.READY}))
    kept = SUCCESS if final == "FAILED" else set()
    assert updated == {f"was {status}" for status in ALL if status not in kept}
    assert statuses(table.connection) == {f"was {status}": status if status in kept else final for status in ALL}


def test_each_photo_of_a_batch_gets_its_own_status(table: PhotoTable) -> None:
    ids = [f"p{number}" for number in range(3000)]
    add_photos(table.connection, ids)
    finals = [PhotoStatus.READY, PhotoStatus.NO_FACES_FOUND, PhotoStatus.FAILED]
    wanted = {photo_id: finals[number % 3] for number, photo_id in enumerate(ids)}
    assert table.begin(ids) == set(ids)
    assert set(table.finish(wanted)) == set(ids)
    assert statuses(table.connection) == {photo_id: str(status) for photo_id, status in wanted.items()}
    assert table.finish({}) == {}


def test_a_success_that_commits_while_begin_waits_is_kept(database_url: str, table: PhotoTable) -> None:
    add_photos(table.connection, ["a", "b"])
    with opened(database_url) as other:
        other.execute("BEGIN")
        other.execute("UPDATE \"Photo\" SET status = 'READY' WHERE id = 'a'")
        begun: list[set[str]] = []
        thread = threading.Thread(target=lambda: begun.append(table.begin(["b", "a"])))
        thread.start()
        wait_for_lock(other)
        other.execute("COMMIT")
        thread.join()
        assert begun == [{"a", "b"}]
        assert statuses(other) == {"a": "READY", "b": "PROCESSING"}


def test_a_success_that_commits_while_a_failure_waits_is_kept(database_url: str, table: PhotoTable) -> None:
    add_photos(table.connection, ["a"])
    with opened(database_url) as other:
        other.execute("BEGIN")
        other.execute("UPDATE \"Photo\" SET status = 'NO_FACES_FOUND' WHERE id = 'a'")
        updated: list[set[str]] = []
        thread = threading.Thread(target=lambda: updated.append(set(table.finish({"a": PhotoStatus.FAILED}))))
        thread.start()
        wait_for_lock(other)
        other.execute("COMMIT")
        thread.join()
        assert updated == [set()]
        assert statuses(other) == {"a": "NO_FACES_FOUND"}


def test_a_failure_is_kept_if_begin_arrives_after_the_lease(database_url: str, table: PhotoTable) -> None:
    """The run is frozen, or its connection stalls, between the check of its lease and the statement."""
    add_photos(table.connection, ["a", "b"])
    server = conninfo_to_dict(database_url)
    with Proxy(int(str(server["port"]))) as proxy, opened(proxy.url(database_url)) as slow:
        held, released = threading.Event(), threading.Event()

        def hold(_: int) -> Verdict:
            held.set()
            assert released.wait(60)
            return Verdict.PASS

        proxy.watch(hold)
        begun: list[set[str]] = []
        until = time.monotonic() + 0.5
        thread = threading.Thread(target=lambda: begun.append(PhotoTable(slow).begin(["a", "b"], until=until)))
        thread.start()
        assert held.wait(60)
        time.sleep(max(0.0, until - time.monotonic()) + 0.1)
        table.finish({"a": PhotoStatus.FAILED})  # by the run that has taken the jobs over
        released.set()
        thread.join()
    assert begun == [{"a", "b"}]
    assert statuses(table.connection) == {"a": "FAILED", "b": "UPLOADED"}
    assert table.begin(["a", "b"], until=time.monotonic() + 60) == {"a", "b"}
    assert statuses(table.connection) == {"a": "PROCESSING", "b": "PROCESSING"}, "a job that was pushed again"


def test_a_failure_that_commits_while_begin_waits_beyond_its_lease_is_kept(
    database_url: str, table: PhotoTable
) -> None:
    add_photos(table.connection, ["a"])
    with opened(database_url) as other:
        other.execute("BEGIN")
        other.execute("UPDATE \"Photo\" SET status = 'FAILED' WHERE id = 'a'")
        until = time.monotonic() + 0.5
        thread = threading.Thread(target=lambda: table.begin(["a"], until=until))
        thread.start()
        wait_for_lock(other)
        time.sleep(max(0.0, until - time.monotonic()) + 0.1)
        other.execute("COMMIT")
        thread.join()
        assert statuses(other) == {"a": "FAILED"}


def test_a_row_that_is_deleted_while_begin_waits_does_not_exist(database_url: str, table: PhotoTable) -> None:
    add_photos(table.connection, ["a", "b"])
    with opened(database_url) as other:
        other.execute("BEGIN")
        other.execute("DELETE FROM \"Photo\" WHERE id = 'a'")
        begun: list[set[str]] = []
        thread = threading.Thread(target=lambda: begun.append(table.begin(["a", "b"])))
        thread.start()
        wait_for_lock(other)
        other.execute("COMMIT")
        thread.join()
        assert begun == [{"b"}]


def wait_for_lock(connection: Connection) -> None:
    """Wait until some session of this database waits for a row lock."""
    for _ in range(1000):
        row = connection.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE NOT granted AND datname = current_database()"
        ).fetchone()
        if row and row[0]:
            return
        threading.Event().wait(0.005)
    raise AssertionError("nobody waits")


def test_a_locked_row_stays_until_the_transaction_ends(database_url: str, table: PhotoTable) -> None:
    add_photos(table.connection, ["a", "b"], "READY")
    with opened(database_url) as other:
        other.execute("SET lock_timeout = '50ms'")
        with table.connection.transaction():
            assert table.lock(["a", "b", "c", "a"]) == {"a": PhotoStatus.READY, "b": PhotoStatus.READY}
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("DELETE FROM \"Photo\" WHERE id = 'a'")
            # The API's own foreign keys and reads are not blocked.
            other.execute("SELECT * FROM \"Photo\" WHERE id = 'a' FOR KEY SHARE")
        other.execute("DELETE FROM \"Photo\" WHERE id = 'a'")
        assert table.lock(["a"]) == {}


def test_runners_with_the_same_photos_in_any_order_never_deadlock(runner: Runner) -> None:
    ids = [f"p{number}" for number in range(30)]
    add_photos(runner.api, ids)
    failures: list[Exception] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            with runner.another() as mine:
                for _ in range(15):
                    part = [ids[i] for i in rng.permutation(30)[:12]]
                    mine.photos.begin(part)
                    mine.store({photo_id: faces(1) if i % 3 else None for i, photo_id in enumerate(part)})
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    ready = {photo_id for photo_id, status in statuses(runner.api).items() if status == "READY"}
    assert {photo_id for photo_id, _ in stored_faces(runner.faces)} >= ready


def test_every_outcome_gives_the_status_of_the_contract(runner: Runner) -> None:
    add_photos(runner.api, ["faces", "nobody", "broken"], "PROCESSING")
    not_stored = runner.store({"faces": faces(3), "nobody": [], "broken": None, "gone": faces(2), "gone too": None})
    assert not_stored == NotStored(gone=frozenset({"gone", "gone too"}))
    assert statuses(runner.api) == {"faces": "READY", "nobody": "NO_FACES_FOUND", "broken": "FAILED"}
    assert stored_faces(runner.faces) == [("faces", 0), ("faces", 1), ("faces", 2)]


def test_storing_twice_has_the_effect_of_storing_once(runner: Runner) -> None:
    add_photos(runner.api, ["a", "b"], "PROCESSING")
    outcomes = {"a": faces(3), "b": []}
    assert runner.store(outcomes) == runner.store(outcomes)
    assert statuses(runner.api) == {"a": "READY", "b": "NO_FACES_FOUND"}
    assert len(stored_faces(runner.faces)) == 3


def test_what_an_earlier_attempt_left_of_a_photo_that_is_gone_is_removed(runner: Runner) -> None:
    runner.embeddings.replace({"gone": faces(2), "other": faces(1)})
    EmbeddingStore(runner.faces, "another model").replace({"gone": faces(2)})
    assert runner.store({"gone": faces(2)}) == NotStored(gone=frozenset({"gone"}))
    left = runner.faces.execute("SELECT photo_id, model FROM faces").fetchall()
    assert left == [("other", MODEL)]


def test_what_an_earlier_attempt_left_of_a_photo_that_fails_is_removed(runner: Runner) -> None:
    add_photos(runner.api, ["half done"], "PROCESSING")
    add_photos(runner.api, ["done before"], "READY")
    runner.embeddings.replace({"half done": faces(2), "done before": faces(1)})
    assert runner.store({"half done": None, "done before": None}) == NotStored()
    assert statuses(runner.api) == {"half done": "FAILED", "done before": "READY"}
    assert stored_faces(runner.faces) == [("done before", 0)]


def test_nothing_is_touched_after_a_lost_lease(runner: Runner) -> None:
    add_photos(runner.api, ["lost", "mine", "lost failure"], "PROCESSING")
    runner.embeddings.replace({"lost and gone": faces(1)})
    outcomes = {"lost": faces(1), "mine": faces(1), "lost failure": None, "lost and gone": faces(1)}
    not_stored = runner.store(outcomes, lambda photo_id: not photo_id.startswith("lost"))
    assert not_stored == NotStored(lost=frozenset(outcomes) - {"mine"})
    assert statuses(runner.api) == {"lost": "PROCESSING", "mine": "READY", "lost failure": "PROCESSING"}
    assert stored_faces(runner.faces) == [("lost and gone", 0), ("mine", 0)]


def test_ownership_is_checked_after_the_rows_are_locked(runner: Runner) -> None:
    add_photos(runner.api, ["a"], "PROCESSING")
    locked = []
    with runner.another() as other:

        def still_owned(photo_id: str) -> bool:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.api.execute('SELECT 1 FROM "Photo" WHERE id = %s FOR NO KEY UPDATE NOWAIT', (photo_id,))
            locked.append(photo_id)
            return True

        runner.store({"a": faces(1)}, still_owned)
    assert locked == ["a"]


def test_a_failed_check_of_ownership_stores_nothing(runner: Runner) -> None:
    add_photos(runner.api, ["a"], "PROCESSING")

    def still_owned(_photo_id: str) -> bool:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        runner.store({"a": faces(1)}, still_owned)
    assert statuses(runner.api) == {"a": "PROCESSING"}
    assert stored_faces(runner.faces) == []


@pytest.mark.parametrize("factor", UNSTORABLE_FACTORS)
def test_a_batch_that_the_database_rejects_is_not_stored_at_all(runner: Runner, factor: float) -> None:
    add_photos(runner.api, ["a", "b", "c"], "PROCESSING")
    runner.embeddings.replace({"a": faces(1)})
    for outcomes in (
        {"a": faces(2), "b": [*faces(1), unstorable_face(factor)], "c": []},
        {"b": [unstorable_face(factor)]},
    ):
        with pytest.raises(UnstorableError) as caught:
            runner.store(outcomes)
        assert caught.value.detail == "", "the message of the server may repeat the data"
        assert statuses(runner.api) == dict.fromkeys("abc", "PROCESSING")
        assert stored_faces(runner.faces) == [("a", 0)]


def test_ids_with_any_characters_are_stored(runner: Runner) -> None:
    ids = ["%", "_", "a_b", "{a,b}", 'q"uote', "back\\slash", "NULL", "été", "🎉", "x" * 256, "'; --", "%s", " "]
    add_photos(runner.api, ids)
    assert runner.photos.begin(ids) == set(ids)
    assert runner.store({photo_id: faces(1) for photo_id in ids}) == NotStored()
    assert set(statuses(runner.api).values()) == {"READY"}
    assert {photo_id for photo_id, _ in stored_faces(runner.faces)} == set(ids)


def test_thousands_of_photos_are_stored_in_one_batch(runner: Runner) -> None:
    ids = [f"p{number}" for number in range(2000)]
    add_photos(runner.api, ids)
    found = faces(3)
    assert runner.store(dict.fromkeys(ids, found)) == NotStored()
    assert set(statuses(runner.api).values()) == {"READY"}
    assert len(stored_faces(runner.faces)) == 6000


def test_a_batch_is_begun_in_one_round_trip_and_stored_in_three(database_url: str, tmp_path: Path) -> None:
    """The limits of a transaction are sent with its first statement: locks, then the faces, then COMMIT."""
    ids = [f"p{number}" for number in range(8)]
    with Runner(database_url, database_url) as runner:
        add_photos(runner.api, ids)
        begun, _ = round_trips(runner.api, tmp_path / "begin", lambda: runner.photos.begin(ids))
        stored, _ = round_trips(runner.api, tmp_path / "store", lambda: runner.store(dict.fromkeys(ids, faces(3))))
    assert (begun, stored) == (1, 3)


def test_the_tables_may_be_in_separate_schemas(empty_database_url: str) -> None:
    api_url, faces_url = f"{empty_database_url}?schema=The%20API", f"{empty_database_url}?schema=faces"
    with opened(empty_database_url) as admin:
        admin.execute('CREATE SCHEMA "The API"; SET search_path = "The API"')
        api.create_table(admin)
    with opened(faces_url) as connection:
        schema.migrate(connection)
    with Runner(api_url, faces_url) as runner:
        runner.photos.check()
        add_photos(runner.api, ["a"])
        assert runner.store({"a": faces(1)}) == NotStored()
        assert runner.embeddings.match([faces(1)[0].embedding], ["a"], 0.5).with_embeddings == 1


def test_a_database_without_the_apis_table_is_refused(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection, pytest.raises(SettingsError, match="Photo"):
        PhotoTable(connection).check()


def test_photos_hidden_by_row_security_after_begin_keep_their_faces(database_url: str) -> None:
    role = f"worker_{uuid.uuid4().hex}"
    with opened(database_url) as owner:
        add_photos(owner, ["one", "two"])
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        owner.execute(f'GRANT SELECT, UPDATE ON "Photo" TO {role}'.encode())
        owner.execute(f"GRANT SELECT, INSERT, DELETE ON faces TO {role}".encode())
        owner.execute(f"GRANT SELECT ON spottmee_schema TO {role}".encode())
        url = database_url.replace("postgres@", f"{role}@")
        with Runner(url, url) as runner:
            runner.store({"one": faces(2)})
            owner.execute('ALTER TABLE "Photo" ENABLE ROW LEVEL SECURITY')
            with pytest.raises(PhotosInvisibleError, match="row-level security hides every row"):
                runner.store({"one": faces(1), "two": faces(1)})
            assert (statuses(owner), stored_faces(owner)) == (
                {"one": "READY", "two": "UPLOADED"}, [("one", 0), ("one", 1)],
            )  # fmt: skip
            owner.execute('ALTER TABLE "Photo" DISABLE ROW LEVEL SECURITY')
            runner.store({"two": faces(1)})
        assert statuses(owner)["two"] == "READY"
        owner.execute(f"DROP OWNED BY {role}".encode())
        owner.execute(f"DROP ROLE {role}".encode())
