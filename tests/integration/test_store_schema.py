"""Migrations and the check of the schema, on a real server."""

from __future__ import annotations

import shutil
import threading
from importlib import resources
from pathlib import Path

import psycopg
import pytest

from runner.errors import SchemaError
from runner.store import schema
from tests.support.store_tools import opened

MIGRATIONS = Path(str(resources.files("runner.store") / "migrations"))
TABLES = "SELECT count(*) FROM pg_tables WHERE tablename = 'faces' AND schemaname = %s"


def test_a_fresh_database_is_migrated_to_the_newest_version_once(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        with pytest.raises(SchemaError, match=r"spottmee-worker migrate.*has none"):
            schema.check(connection)
        assert schema.migrate(connection) == [migration.name for migration in schema.migrations()]
        schema.check(connection)
        assert schema.migrate(connection) == []
        assert schema.current_version(connection) == schema.migrations()[-1].version


def test_the_table_has_the_documented_columns(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        schema.migrate(connection)
        columns = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'faces'::regclass AND attnum > 0 ORDER BY attnum"
        ).fetchall()
        key = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'faces'::regclass AND contype = 'p'"
        ).fetchone()
    assert columns == [
        ("photo_id", "text"),
        ("model", "text"),
        ("face_index", "smallint"),
        ("embedding", "halfvec(512)"),
        ("box", "real[]"),
        ("score", "real"),
        ("landmarks", "real[]"),
        ("created_at", "timestamp with time zone"),
    ]
    assert key == ("PRIMARY KEY (photo_id, model, face_index)",)


def test_concurrent_migrations_wait_for_each_other(empty_database_url: str) -> None:
    applied: list[list[str]] = []

    def migrate() -> None:
        with opened(empty_database_url) as connection:
            applied.append(schema.migrate(connection))

    threads = [threading.Thread(target=migrate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[]] * 7 + [[migration.name for migration in schema.migrations()]]


def test_a_newer_database_is_refused_by_check_and_by_migrate(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        schema.migrate(connection)
        connection.execute("INSERT INTO spottmee_schema (version, name) VALUES (999, '0999_later.sql')")
        for refuse in (schema.check, schema.migrate):
            with pytest.raises(SchemaError, match=r"999.*newer"):
                refuse(connection)


def _release(folder: Path, *headers: str) -> Path:
    """Make the migrations of a release: the real ones, and one more for each header."""
    shutil.copytree(MIGRATIONS, folder)
    last = schema.migrations()[-1].version
    for version, header in enumerate(headers, last + 1):
        sql = f"{header}CREATE INDEX later_{version} ON {{faces}}.faces (created_at);\n"
        (folder / f"{version:04d}_later.sql").write_text(sql)
    return folder


def test_two_releases_on_one_database_are_upgraded_one_after_the_other(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older release continues to work, unless a migration says that it cannot."""
    first = schema.migrations()[-1].version
    old = _release(tmp_path / "old")
    new = _release(tmp_path / "new", f"-- compatible-from: {first}\n")
    incompatible = _release(tmp_path / "incompatible", f"-- compatible-from: {first}\n", "")

    def use(release: Path) -> None:
        monkeypatch.setattr(schema, "_FOLDER", release)

    with opened(empty_database_url) as connection:
        use(old)
        schema.migrate(connection)
        use(new)
        with pytest.raises(SchemaError, match=rf"is at version {first}, and this version needs {first + 1}"):
            schema.check(connection)
        assert schema.migrate(connection) == [f"{first + 1:04d}_later.sql"]
        use(old)
        schema.check(connection)
        assert schema.migrate(connection) == []
        assert schema.current_version(connection) == first + 1
        use(incompatible)
        assert schema.migrate(connection) == [f"{first + 2:04d}_later.sql"]
        for release, knows in ((old, first), (new, first + 1)):
            use(release)
            for refuse in (schema.check, schema.migrate):
                with pytest.raises(SchemaError, match=rf"that know version {first + 2}, and this one knows {knows}:"):
                    refuse(connection)


def test_the_table_of_the_first_version_gains_the_column(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(empty_database_url) as connection:
        schema.migrate(connection)
        connection.execute("ALTER TABLE spottmee_schema DROP COLUMN compatible_from")
        schema.check(connection)
        release = _release(tmp_path / "new", "-- compatible-from: 1\n")
        monkeypatch.setattr(schema, "_FOLDER", release)
        assert len(schema.migrate(connection)) == 1
        monkeypatch.undo()
        schema.check(connection)


def test_an_older_database_is_refused_by_check(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        connection.query(schema._VERSIONS)
        with pytest.raises(SchemaError, match="migrate"):
            schema.check(connection)


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = schema.Migration.text
    monkeypatch.setattr(schema.Migration, "text", lambda self: text(self) + "\nSELECT 1 / 0;")
    with opened(empty_database_url) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            schema.migrate(connection)
        assert schema.current_version(connection) == 0
        assert connection.execute(TABLES, ("public",)).fetchone() == (0,)
        monkeypatch.undo()
        assert schema.migrate(connection)
        schema.check(connection)


def test_a_migration_has_no_time_limit(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = schema.Migration.text
    limits = "current_setting('statement_timeout') || current_setting('lock_timeout') = '00'"
    monkeypatch.setattr(schema.Migration, "text", lambda self: f"{text(self)}\nSELECT 1 / ({limits})::integer;")
    with opened(empty_database_url) as connection:
        assert schema.migrate(connection)


@pytest.mark.parametrize("name", ["app", "My Schema", 'quo"te', "sélect; DROP TABLE faces", "a,b", "public"])
@pytest.mark.parametrize("extension_first", [False, True])
def test_the_schema_of_the_url_is_created_and_used(empty_database_url: str, name: str, extension_first: bool) -> None:
    from urllib.parse import quote

    if extension_first:
        with opened(empty_database_url) as connection:
            connection.execute("CREATE EXTENSION vector")
    url = f"{empty_database_url}?schema={quote(name)}"
    with opened(url) as connection:
        with pytest.raises(SchemaError):
            schema.check(connection)
        schema.migrate(connection)
        schema.check(connection)
        assert connection.execute(TABLES, (name,)).fetchone() == (1,)
    with opened(url) as connection:
        schema.check(connection)
        assert connection.query("SELECT '[1]'::{vector}.halfvec IS NOT NULL").fetchone() == (True,)


def test_a_schema_that_does_not_exist_is_not_replaced_by_another(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        schema.migrate(connection)
    with opened(f"{empty_database_url}?schema=typo") as connection, pytest.raises(SchemaError, match="has none"):
        schema.check(connection)


def test_two_schemas_of_one_database_are_independent(empty_database_url: str) -> None:
    for name in ("one", "two"):
        with opened(f"{empty_database_url}?schema={name}") as connection:
            assert schema.migrate(connection)
    with opened(f"{empty_database_url}?schema=one") as connection:
        connection.query("DROP TABLE {faces}.faces")
    with opened(f"{empty_database_url}?schema=two") as connection:
        assert connection.execute(TABLES, ("two",)).fetchone() == (1,)


def test_a_role_that_may_not_create_the_extension_gets_advice(empty_database_url: str) -> None:
    with opened(empty_database_url) as admin:
        admin.execute("DROP ROLE IF EXISTS spottmee_weak")
        admin.execute("CREATE ROLE spottmee_weak LOGIN")
        try:
            weak = empty_database_url.replace("postgres@", "spottmee_weak@")
            with opened(weak) as connection, pytest.raises(SchemaError, match=r"CREATE EXTENSION vector"):
                schema.migrate(connection)
            admin.execute("CREATE EXTENSION vector; CREATE SCHEMA weak AUTHORIZATION spottmee_weak")
            with opened(f"{weak}?schema=weak") as connection:
                assert schema.migrate(connection)
                schema.check(connection)
        finally:
            admin.execute("DROP OWNED BY spottmee_weak CASCADE; DROP ROLE spottmee_weak")


def test_an_old_pgvector_is_refused(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        # The wheel cannot install an old version: the catalogue says that this one is.
        connection.execute("CREATE EXTENSION vector; UPDATE pg_extension SET extversion = '0.6.2'")
        with pytest.raises(SchemaError, match=r"0\.6\.2.*ALTER EXTENSION vector UPDATE"):
            schema.migrate(connection)
        assert schema.current_version(connection) == 0


@pytest.mark.parametrize(
    "change",
    [
        "embedding = (SELECT array_agg(0.1 * i)::halfvec(512) FROM generate_series(1, 512) AS i)",
        "embedding = array_fill(0, '{512}')::halfvec(512)",
        "face_index = -1",
        "box = '{1,2,3}'",
        "landmarks = '{1,2}'",
        "landmarks = '{{1,2},{1,2},{1,2},{1,2}}'",
    ],
)
def test_the_table_rejects_invalid_faces(empty_database_url: str, change: str) -> None:
    with opened(empty_database_url) as connection:
        schema.migrate(connection)
        connection.execute(
            "INSERT INTO faces (photo_id, model, face_index, embedding)"
            " VALUES ('a', 'm', 0, l2_normalize(array_fill(1, '{512}')::halfvec(512)))"
        )
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"UPDATE faces SET {change}")
