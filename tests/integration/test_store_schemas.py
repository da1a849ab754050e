"""Schemas that a URL names: each is a separate installation, and none is substituted for another."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import psycopg
import pytest

from demo import api
from runner.errors import SchemaError, SettingsError
from runner.settings import load
from runner.store import schema
from runner.store.photos import NotStored, PhotoTable
from runner.store.sweep import Swept, sweep
from tests.support.store_tools import LEGACY_TABLE, MODEL, Runner, add_photos, faces, opened, statuses, stored_faces

if TYPE_CHECKING:
    from tests.support.run_tools import Service
    from tests.support.store_tools import Command

COMMANDS = [["migrate"], ["migrate", "--check"], ["run"], ["sweep"], ["import-legacy", "--model", "w600k_mbf"]]


def execute(database_url: str, statements: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statements.encode())


def named(database_url: str, name: str) -> str:
    return f"{database_url}?schema={name}"


def create(database_url: str, name: str) -> str:
    """Create a schema with the API's table, and return the URL that names it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"; SET search_path = "{name}"'.encode())
        api.create_table(connection)
    return named(database_url, name)


def migrate(url: str) -> list[str]:
    with opened(url) as connection:
        return schema.migrate(connection)


def fill(url: str, prefix: str = "photo", count: int = 6) -> None:
    """Add photos of three faces each."""
    with Runner(url, url) as runner:
        ids = [f"{prefix}{number}" for number in range(count)]
        add_photos(runner.api, ids)
        assert runner.store(dict.fromkeys(ids, faces(3))) == NotStored()


def count(database_url: str, name: str) -> int:
    """Return how many faces the schema `name` contains."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(f'SELECT count(*) FROM "{name}".faces'.encode()).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def production(empty_database_url: str) -> str:
    """The URL of an installation in `public`, with pgvector there too, and 18 faces."""
    url = create(empty_database_url, "public")
    migrate(url)
    fill(url)
    return url


@pytest.mark.usefixtures("production")
def test_a_second_schema_of_a_database_gets_tables_of_its_own(command: Command, empty_database_url: str) -> None:
    staging = create(empty_database_url, "staging")
    code, out, _ = command(["migrate", "--json"], staging)
    assert (code, json.loads(out)["applied"]) == (0, ["0001_faces.sql"])
    code, out, _ = command(["sweep", "--force", "--json"], staging)
    assert (code, json.loads(out)["removed_faces"]) == (0, 0)
    fill(staging, "photo", 2)
    assert (count(empty_database_url, "public"), count(empty_database_url, "staging")) == (18, 6)


@pytest.mark.usefixtures("production")
def test_sweep_never_touches_the_faces_of_another_schema(command: Command, empty_database_url: str) -> None:
    staging = create(empty_database_url, "staging")
    code, out, error = command(["sweep", "--force"], staging)
    assert (code, out) == (3, "")
    assert 'schema "staging" has none' in error
    assert count(empty_database_url, "public") == 18


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("exists", [True, False])
def test_a_mistyped_schema_ends_every_command(
    service: Service, empty_database_url: str, arguments: list[str], exists: bool
) -> None:
    if exists:
        execute(empty_database_url, "CREATE SCHEMA stagging")
    ended = service.command(*arguments, DATABASE_URL=named(empty_database_url, "stagging"))
    assert ended.code == 2, ended.errors
    assert '"stagging"' in ended.errors.replace('\\"', '"')
    assert "Traceback" not in ended.errors
    assert count(empty_database_url, "public") == 18
    with psycopg.connect(empty_database_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'stagging'").fetchone()
    assert tables == (0,)


@pytest.mark.usefixtures("production")
def test_doctor_names_the_schema_without_the_table_and_those_with_it(service: Service, empty_database_url: str) -> None:
    execute(empty_database_url, "CREATE SCHEMA stagging")
    ended = service.command("doctor", "--json", DATABASE_URL=named(empty_database_url, "stagging"))
    assert ended.code == 2
    findings = {check["name"]: check for check in json.loads(ended.output)}
    assert not findings["API database"]["ok"]
    assert re.search(r'"stagging".*"Photo".*have them: "public"', findings["API database"]["message"])
    assert not findings["embeddings database"]["ok"]
    assert 'schema "stagging" has none' in findings["embeddings database"]["message"]


def test_a_named_schema_for_embeddings_alone_is_created(
    command: Command, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, production: str
) -> None:
    monkeypatch.setenv("EMBEDDINGS_DATABASE_URL", named(empty_database_url, "vectors"))
    assert command(["migrate"], production)[0] == 0
    assert count(empty_database_url, "vectors") == 0


def shared_by_earlier_version(database_url: str, name: str) -> str:
    """Make what earlier versions made of `?schema=name`: its photos' faces in `public`, where pgvector is."""
    url = create(database_url, name)
    with opened(url) as own, opened(database_url) as public:
        add_photos(own, ["own1", "own2"], "READY")
        add_photos(own, ["own3"])
        Runner(database_url, database_url).close()
        with public.transaction():
            store_faces(public, ["own1", "own2"])
    return url


def store_faces(connection: psycopg.Connection, ids: list[str]) -> None:
    connection.execute(
        "INSERT INTO faces (photo_id, model, face_index, embedding)"
        " SELECT id, %s, 0, l2_normalize(array_fill(1, '{512}')::halfvec(512)) FROM unnest(%s::text[]) AS id",
        (MODEL, ids),
    )


def statements_in(message: str) -> str:
    """Return the SQL that a message says to execute."""
    found = re.search(r"(?:ALTER TABLE|INSERT INTO).*?;(?: ALTER TABLE.*?;)?", message)
    assert found is not None, message
    return found[0]


def test_embeddings_that_an_earlier_version_stored_elsewhere_are_named_and_can_be_moved(
    command: Command, empty_database_url: str
) -> None:
    migrate(empty_database_url)
    app = shared_by_earlier_version(empty_database_url, "app")
    for arguments in (["migrate"], ["migrate", "--check"], ["sweep"]):
        code, out, error = command(arguments, app)
        assert (code, out) == (3, ""), arguments
        assert 'Schema "public"' in error
    execute(empty_database_url, statements_in(error))
    assert command(["migrate", "--check"], app)[0] == 0
    assert count(empty_database_url, "app") == 2
    with Runner(app, app) as runner:
        assert sweep(runner.api, runner.faces) == Swept(photos=2)
        assert runner.store({"own3": faces(2)}) == NotStored()
        assert len(stored_faces(runner.faces)) == 4


@pytest.mark.usefixtures("production")
def test_embeddings_that_two_installations_shared_can_be_copied(command: Command, empty_database_url: str) -> None:
    app = shared_by_earlier_version(empty_database_url, "app")
    code, _, error = command(["migrate"], app)
    assert code == 3
    assert "migrate --ignore-other-schemas" in error
    assert command(["migrate", "--ignore-other-schemas"], app)[0] == 0
    execute(empty_database_url, statements_in(error))
    assert (count(empty_database_url, "app"), count(empty_database_url, "public")) == (2, 20)
    code, out, _ = command(["sweep", "--json"], app)
    assert (code, json.loads(out)["deleted_photos"]) == (0, 0)
    code, out, _ = command(["sweep", "--json"], named(empty_database_url, "public"))
    assert (code, json.loads(out)["removed_faces"]) == (0, 2)
    assert command(["migrate"], app)[0] == 0


@pytest.mark.usefixtures("production")
def test_a_schema_without_photos_gets_no_table_by_default(
    command: Command, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(empty_database_url, "CREATE SCHEMA vectors")
    monkeypatch.setenv("EMBEDDINGS_DATABASE_URL", named(empty_database_url, "vectors"))
    code, _, error = command(["migrate"], None)
    assert code == 3
    assert "SET SCHEMA" in error
    assert command(["migrate", "--ignore-other-schemas"], None)[0] == 0
    assert count(empty_database_url, "vectors") == 0


@pytest.mark.parametrize("name", ["app", "My Schema", 'quo"te', "sélect; DROP TABLE faces", "a,b", "{faces}", "%s"])
@pytest.mark.parametrize("path", ["", "pg_catalog", "nowhere", "public, extensions"])
def test_nothing_depends_on_the_search_path(empty_database_url: str, name: str, path: str) -> None:
    from urllib.parse import quote

    execute(empty_database_url, "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        quoted = name.replace('"', '""')
        connection.execute(f'CREATE SCHEMA "{quoted}"; SET search_path = "{quoted}"'.encode())
        api.create_table(connection)
    url = f"{empty_database_url}?schema={quote(name)}"
    with Runner(url, url) as runner:
        runner.api.execute("SELECT set_config('search_path', %s, false)", (path,))
        assert schema.migrate(runner.faces)
        schema.check(runner.faces)
        runner.photos.check()
        add_photos(runner.api, ["a", "b"])
        assert runner.photos.begin(["a", "b"]) == {"a", "b"}
        person = faces(1)
        assert runner.store({"a": person, "b": None}) == NotStored()
        assert runner.embeddings.match([person[0].embedding], ["a", "b"], 0.5).with_embeddings == 1
        assert statuses(runner.api) == {"a": "READY", "b": "FAILED"}
        runner.api.query('DELETE FROM {photos}."Photo"')
        assert sweep(runner.api, runner.faces, allow_all=True).removed_faces == 1


def test_a_url_without_schema_finds_the_tables_along_the_roles_own_path(empty_database_url: str) -> None:
    create(empty_database_url, "public")
    url = f"{empty_database_url}?options=-csearch_path%3Dnowhere,faces_first,public"
    execute(empty_database_url, "CREATE SCHEMA faces_first")
    migrate(url)
    assert count(empty_database_url, "faces_first") == 0
    with Runner(url, url) as runner:
        runner.photos.check()
        schema.check(runner.faces)
        runner.api.execute("SET search_path = nowhere")
        add_photos(runner.api, ["a"])
        assert runner.store({"a": faces(2)}) == NotStored()
    assert count(empty_database_url, "faces_first") == 2


def test_removing_one_installation_leaves_the_other(empty_database_url: str) -> None:
    for name in ("one", "two"):
        migrate(create(empty_database_url, name))
        fill(named(empty_database_url, name), count=1)
    execute(empty_database_url, "DROP SCHEMA one CASCADE")
    assert count(empty_database_url, "two") == 3


def test_the_type_of_the_apis_table_may_be_in_another_schema(empty_database_url: str) -> None:
    url = create(empty_database_url, "app")
    migrate(url)
    execute(empty_database_url, 'ALTER TYPE app."PhotoStatus" SET SCHEMA public')
    fill(url, count=2)
    with opened(url) as connection:
        assert set(statuses(connection).values()) == {"READY"}


def test_a_read_only_connection_changes_nothing(empty_database_url: str) -> None:
    url = create(empty_database_url, "app")
    with opened(url) as connection:
        connection.read_only = True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            add_photos(connection, ["a"])
        assert statuses(connection) == {}


def test_triggers_of_the_apis_table_see_the_schema_of_the_url(empty_database_url: str) -> None:
    url = create(empty_database_url, "app")
    execute(
        empty_database_url,
        """
        SET search_path = app;
        CREATE TABLE audit (id text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN INSERT INTO audit VALUES (new.id); RETURN new; END $$;
        CREATE TRIGGER note AFTER UPDATE ON "Photo" FOR EACH ROW EXECUTE FUNCTION note();
        """,
    )
    with opened(url) as connection:
        add_photos(connection, ["a"])
        assert PhotoTable(connection).begin(["a"]) == {"a"}
        assert connection.execute("SELECT id FROM app.audit").fetchall() == [("a",)]


def test_the_old_table_of_another_schema_is_imported_if_named(command: Command, empty_database_url: str) -> None:
    execute(empty_database_url, LEGACY_TABLE)
    app = create(empty_database_url, "app")
    migrate(app)
    with Runner(app, app) as runner:
        add_photos(runner.api, ["a"])
    execute(
        empty_database_url,
        f"INSERT INTO face_embeddings (name, embedding) VALUES ('a_0', '{faces(1)[0].embedding.tolist()}')",
    )
    code, _, error = command(["import-legacy", "--model", "w600k_mbf"], app)
    assert code == 2
    assert "--table can name public.face_embeddings" in error
    assert command(["import-legacy", "--model", "w600k_mbf", "--table", "public.face_embeddings"], app)[0] == 0
    assert count(empty_database_url, "app") == 1


def test_a_version_without_its_table_is_an_error(empty_database_url: str) -> None:
    url = create(empty_database_url, "app")
    with opened(url) as connection:
        schema.migrate(connection)
        connection.query("DROP TABLE {faces}.faces")
    for work in (schema.check, schema.migrate):
        with opened(url) as connection, pytest.raises(SchemaError, match=r'"app".*without the table faces'):
            work(connection)


@pytest.mark.parametrize("name", ["x" * 64, "é" * 32, "a%00b", "a%1B[31m"])
def test_a_name_that_no_schema_can_have_is_refused(name: str) -> None:
    url = f"postgresql://h/x?schema={name}"
    with pytest.raises(SettingsError, match=r"DATABASE_URL names an invalid schema .* 63 bytes of printable"):
        load({"DATABASE_URL": url}, required=())
