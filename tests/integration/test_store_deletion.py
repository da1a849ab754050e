"""Four albums that the API deletes leave no embeddings, in one database and in two."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from demo import api
from runner.store import schema
from runner.store.deletion import install, removal
from tests.support.store_tools import Runner, add_photos, faces, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.store.session import Session
    from tests.support.run_tools import Service
    from tests.support.store_tools import Command

ALBUM = 2000


@pytest.fixture
def connection(database_url: str) -> Iterator[Session]:
    """The database of photos and embeddings, with the trigger."""
    with opened(database_url) as found:
        assert install(found, found).by_trigger
        yield found


def _fill(connection: Session, count: int, album: str = "album", each: int = 1) -> list[str]:
    ids = [f"{album}-{number}" for number in range(count)]
    with connection.cursor() as cursor:
        cursor.executemany('INSERT INTO "Photo" (id, album_id) VALUES (%s, %s)', [(one, album) for one in ids])
    connection.execute(
        "INSERT INTO faces (photo_id, model, face_index, embedding)"
        " SELECT id, 'm', face, (SELECT array_agg(1 / sqrt(512)) FROM generate_series(1, 512))::halfvec"
        f' FROM "Photo", generate_series(0, {each - 1}) AS face WHERE album_id = %s',
        (album,),
    )
    return ids


def _left(connection: Session) -> int:
    row = connection.execute("SELECT count(*) FROM faces").fetchone()
    assert row is not None
    return int(row[0])


def _delete_albums(service: Service, photos: dict[str, list[str]]) -> None:
    """Delete each album in a different way that the API and its owners have."""
    connection = service.connection
    first, second, third, fourth = photos.values()
    for photo_id in first:
        service.api.delete(photo_id)
    connection.execute('DELETE FROM "Photo" WHERE id = ANY(%s)', (second,))
    connection.execute('DELETE FROM "Photo" WHERE album_id = %s', (list(photos)[2],))
    with connection.transaction():
        for photo_id in fourth:
            service.api.delete(photo_id)
    assert len(third) == len(second)


@pytest.mark.parametrize("databases", [1, 2])
def test_four_deleted_albums_leave_nothing(
    service: Service, images: Any, album: Any, databases: int, empty_database_url: str
) -> None:
    more = {"EMBEDDINGS_DATABASE_URL": empty_database_url} if databases == 2 else {}
    migrated = service.command("migrate", "--json", **more)
    assert json.loads(migrated.output)["deletion"] == ("trigger" if databases == 1 else "sweep")
    names = [photo.name for photo in album.photos][:3]
    photos = {one: list(service.api.upload({name: images.url(name) for name in names}, one).values()) for one in "abcd"}
    service.run(**more)
    where = empty_database_url if databases == 2 else service.environment["DATABASE_URL"]
    doctor = service.command("doctor", **more).output
    with opened(where) as embeddings:
        assert _left(embeddings) >= 8
        _delete_albums(service, photos)
        if databases == 1:
            assert "in the same transaction (trigger)" in doctor
        else:
            assert "they are not in the database of the photos" in doctor
            assert service.command("sweep", "--force", **more).code == 0
        assert _left(embeddings) == 0


def test_a_delete_that_is_rolled_back_removes_nothing(connection: Session) -> None:
    ids = _fill(connection, 3)
    with connection.transaction(force_rollback=True):
        connection.execute('DELETE FROM "Photo" WHERE id = %s', (ids[0],))
        assert _left(connection) == 2
    assert _left(connection) == 3


def test_a_cascade_from_another_table_removes_them_too(connection: Session) -> None:
    connection.execute("CREATE TABLE album (id text PRIMARY KEY)")
    connection.execute("INSERT INTO album VALUES ('x'), ('y')")
    _fill(connection, 5, "x")
    _fill(connection, 4, "y")
    connection.execute('ALTER TABLE "Photo" ADD FOREIGN KEY (album_id) REFERENCES album ON DELETE CASCADE')
    connection.execute("DELETE FROM album WHERE id = 'x'")
    assert _left(connection) == 4


def test_an_album_of_2000_photos_is_deleted_quickly(connection: Session) -> None:
    _fill(connection, ALBUM, "large", each=3)
    _fill(connection, 1000, "other", each=3)
    connection.execute("ANALYZE")
    began = time.monotonic()
    connection.execute("DELETE FROM \"Photo\" WHERE album_id = 'large'")
    seconds = time.monotonic() - began
    assert _left(connection) == 3000
    assert seconds < 2, seconds


@pytest.mark.parametrize("kind", ["uuid", "bigint", "varchar(40)"])
def test_ids_of_other_types_are_matched(empty_database_url: str, kind: str) -> None:
    photo_id = {"uuid": "6ff4c6ce-60d7-4ca5-a36f-8a0c7f8a7a6e"}.get(kind, "12")
    with opened(empty_database_url) as found:
        api.create_table(found)
        schema.migrate(found)
        found.execute(f'ALTER TABLE "Photo" ALTER COLUMN id TYPE {kind} USING id::{kind}'.encode())
        found.locate()
        assert install(found, found).by_trigger
        found.execute('INSERT INTO "Photo" (id, album_id) VALUES (%s, %s)', (photo_id, "a"))
        found.execute(
            "INSERT INTO faces (photo_id, model, face_index, embedding) VALUES (%s, 'm', 0,"
            " (SELECT array_agg(1 / sqrt(512)) FROM generate_series(1, 512))::halfvec)",
            (photo_id,),
        )
        found.execute('DELETE FROM "Photo"')
        assert _left(found) == 0


def test_a_role_without_rights_on_the_embeddings_deletes_photos(connection: Session, database_url: str) -> None:
    ids = _fill(connection, 2)
    name = f"api_{time.monotonic_ns()}"
    connection.execute(f"CREATE ROLE {name} LOGIN".encode())
    connection.execute(f'GRANT SELECT, DELETE ON "Photo" TO {name}'.encode())
    try:
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute(f"SET ROLE {name}".encode())
            other.execute("SET search_path = pg_temp")
            other.execute('DELETE FROM public."Photo" WHERE id = %s', (ids[0],))
        assert _left(connection) == 1
    finally:
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def test_the_apis_delete_succeeds_where_the_embeddings_cannot_be_removed(connection: Session) -> None:
    ids = _fill(connection, 2)
    warnings: list[str] = []
    connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    connection.execute("ALTER TABLE faces RENAME TO moved")
    connection.execute('DELETE FROM "Photo" WHERE id = %s', (ids[0],))
    assert connection.execute('SELECT count(*) FROM "Photo"').fetchone() == (1,)
    assert "sweep removes them" in warnings[0]


def test_a_missing_right_is_named_and_leaves_the_rest_to_the_sweep(
    command: Command, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"worker_{time.monotonic_ns()}"
    with opened(empty_database_url) as owner:
        api.create_table(owner)
        owner.execute("CREATE EXTENSION vector")
        owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'; GRANT CREATE, USAGE ON SCHEMA public TO {name}".encode())
        owner.execute(f'GRANT SELECT, UPDATE ON "Photo" TO {name}'.encode())
        url = empty_database_url.replace("postgres@", f"{name}:x@")
        try:
            code, out, _ = command(["migrate"], url)
            assert code == 0
            assert f'GRANT TRIGGER ON "public"."Photo" TO "{name}"' in out
            owner.execute(f'GRANT TRIGGER ON "Photo" TO {name}'.encode())
            for _ in range(2):
                code, out, _ = command(["migrate", "--json"], url)
                assert (code, json.loads(out)["deletion"]) == (0, "trigger")
            # Embeddings and photos over two URLs of one database.
            monkeypatch.setenv("EMBEDDINGS_DATABASE_URL", url)
            assert json.loads(command(["migrate", "--json"], empty_database_url)[1])["deletion"] == "trigger"
        finally:
            owner.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())


def test_a_disabled_trigger_is_reported(connection: Session) -> None:
    assert removal(connection, connection).by_trigger
    connection.execute('ALTER TABLE "Photo" DISABLE TRIGGER spottmee_photos_deleted')
    assert "disabled" in removal(connection, connection).reason
    connection.execute('DROP TRIGGER spottmee_photos_deleted ON "Photo"')
    assert "run `spottmee-worker migrate`" in removal(connection, connection).reason


def test_a_locked_table_delays_neither_migrate_nor_the_api(database_url: str) -> None:
    with opened(database_url) as connection, psycopg.connect(database_url) as busy:
        busy.execute('LOCK TABLE "Photo" IN ROW EXCLUSIVE MODE')
        began = time.monotonic()
        assert "locked" in install(connection, connection).reason
        assert time.monotonic() - began < 6


def test_faces_stored_while_their_photo_is_deleted_are_removed(connection: Session, database_url: str) -> None:
    with Runner(database_url, database_url) as runner, opened(database_url) as owner:
        for number in range(30):
            (photo_id,) = ids = [f"race-{number}"]
            add_photos(connection, ids)
            deleting = threading.Thread(
                target=lambda one=photo_id: owner.execute('DELETE FROM "Photo" WHERE id = %s', (one,))
            )
            deleting.start()
            time.sleep(number / 10_000)
            runner.store({photo_id: faces(2)})
            deleting.join()
        assert _left(connection) == 0
