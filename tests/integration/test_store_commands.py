"""The commands of the store: output, exit codes, and error messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.store_tools import LEGACY_TABLE, MODEL, Runner, add_photos, faces, opened, stored_faces

if TYPE_CHECKING:
    from tests.support.store_tools import Command


def test_migrate_creates_the_tables_once(command: Command, empty_database_url: str) -> None:
    code, _, error = command(["migrate", "--check"], empty_database_url)
    assert code == 3
    assert "spottmee-worker migrate" in error
    code, out, error = command(["migrate"], empty_database_url)
    assert (code, error) == (0, "")
    assert "0001_faces.sql" in out
    code, out, _ = command(["migrate", "--json"], empty_database_url)
    assert (code, json.loads(out)) == (0, {"version": 1, "applied": [], "deletion": "sweep"})
    code, out, _ = command(["migrate", "--check", "--json"], empty_database_url)
    assert (code, json.loads(out)["version"]) == (0, 1)


def test_migrate_uses_the_schema_of_the_url(
    command: Command, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDINGS_DATABASE_URL", f"{empty_database_url}?schema=Its%20own&connection_limit=3")
    assert command(["migrate"], None)[0] == 0
    with opened(empty_database_url) as connection:
        tables = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'faces'").fetchall()
    assert tables == [("Its own",)]


def test_missing_settings_are_reported(command: Command) -> None:
    for arguments in (["migrate"], ["sweep"], ["import-legacy", "--model", "m"]):
        code, out, error = command(arguments, None)
        assert (code, out) == (2, "")
        assert "DATABASE_URL" in error


def test_unusable_servers_are_reported(command: Command, database_url: str) -> None:
    secret = "hunter2"
    for url, expected in (
        (f"postgresql://u:{secret}@127.0.0.1:1/x", 75),
        (database_url.replace("postgres@", f"nobody:{secret}@"), 2),
        (database_url + "_nonexistent", 2),
        (database_url + f"?wrong={secret}", 2),
    ):
        for arguments in (["migrate"], ["sweep"], ["import-legacy", "--model", "m"]):
            code, out, error = command(arguments, url)
            assert (code, out) == (expected, ""), error
            assert "DATABASE_URL" in error
            assert secret not in error
            assert len(error.splitlines()) == 1


def test_a_database_without_the_apis_table_ends_every_command(command: Command, empty_database_url: str) -> None:
    code, _, error = command(["sweep"], empty_database_url)
    assert code == 2
    assert '"Photo"' in error


def test_sweep_of_a_database_without_schema_exits_with_3(command: Command, empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        from demo import api

        api.create_table(connection)
    code, _, error = command(["sweep"], empty_database_url)
    assert code == 3
    assert "spottmee-worker migrate" in error


def test_sweep_removes_the_faces_of_deleted_photos(command: Command, database_url: str) -> None:
    with Runner(database_url, database_url) as runner:
        add_photos(runner.api, ["kept"])
        runner.embeddings.replace({"kept": faces(1), "deleted": faces(2)})
        expected = {"photos": 2, "deleted_photos": 1, "removed_faces": 2}
        code, out, _ = command(["sweep", "--dry-run", "--json"], database_url)
        assert (code, json.loads(out)) == (0, {**expected, "dry_run": True})
        assert len(stored_faces(runner.faces)) == 3
        code, out, _ = command(["sweep", "--json"], database_url)
        assert (code, json.loads(out)) == (0, {**expected, "dry_run": False})
        assert stored_faces(runner.faces) == [("kept", 0)]
        code, out, _ = command(["sweep"], database_url)
        assert (code, out) == (0, "1 photos have embeddings; 0 of them are deleted; 0 faces were removed\n")
        runner.api.execute('DELETE FROM "Photo"')
        code, _, error = command(["sweep"], database_url)
        assert code == 5
        assert "--force" in error
        assert command(["sweep", "--force"], database_url)[0] == 0
        assert stored_faces(runner.faces) == []


def test_import_legacy_imports_every_readable_row(command: Command, database_url: str) -> None:
    with Runner(database_url, database_url) as runner:
        assert command(["import-legacy", "--model", "w600k_mbf"], database_url)[0] == 2
        runner.faces.execute(LEGACY_TABLE)
        add_photos(runner.api, ["a_b"])
        insert = "INSERT INTO face_embeddings (name, embedding) VALUES (%s, %s)"
        runner.faces.execute(insert, ("a_b_0", str((faces(1)[0].embedding * 20).tolist())))
        code, out, error = command(["import-legacy", "--model", "w600k_mbf", "--dry-run"], database_url)
        assert code == 0
        assert out.startswith("1 rows: 1 would be imported")
        assert 'reads 1 rows of "public"."face_embeddings"' in error
        assert "only counts" in error
        assert stored_faces(runner.faces, "w600k_mbf") == []
        code, out, error = command(["import-legacy", "--model", "w600k_mbf"], database_url)
        assert code == 0
        assert out.startswith("1 rows: 1 imported")
        assert error == (
            'w600k_mbf: reads 1 rows of "public"."face_embeddings", without changing it, and adds the faces that are '
            "not there yet; takes about 1s\n"
        )
        runner.faces.execute(insert, ("a_b_1", "[broken"))
        code, out, error = command(["import-legacy", "--model", "w600k_mbf", "--json"], database_url)
        assert code == 5
        assert "1 rows of face_embeddings could not be read" in error
        counts = json.loads(out)
        assert (counts["rows"], counts["already_imported"], counts["unreadable_rows"]) == (2, 1, 1)
        assert list(counts["unreadable"]) == ["a_b_1"]
        code, _, error = command(["import-legacy", "--model", "w600k_mbf"], database_url)
        assert "'a_b_1'" in error
        assert stored_faces(runner.faces, "w600k_mbf") == [("a_b", 0)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("w600k_mfb", "'w600k_mfb' is not a known model (glintr100, w600k_mbf, w600k_r50): check the name"),
        ("buffalo_sc", "buffalo_sc is a pack, its model is w600k_mbf"),
    ],
)
def test_an_unknown_model_is_not_imported(command: Command, database_url: str, model: str, message: str) -> None:
    with Runner(database_url, database_url) as runner:
        runner.faces.execute(LEGACY_TABLE)
        add_photos(runner.api, ["a"])
        runner.faces.execute(
            "INSERT INTO face_embeddings (name, embedding) VALUES ('a_0', %s)", (str(faces(1)[0].embedding.tolist()),)
        )
        code, out, error = command(["import-legacy", "--model", model], database_url)
        assert (code, out) == (2, "")
        assert message in error
        runner.store({"a": faces(1)})  # by a run with another pack
        assert command(["import-legacy", "--model", MODEL], database_url)[0] == 0


def test_the_import_of_another_model_than_the_packs_says_so(command: Command, database_url: str) -> None:
    with Runner(database_url, database_url) as runner:
        runner.faces.execute(LEGACY_TABLE)
        code, _, error = command(["import-legacy", "--model", "w600k_r50"], database_url)
    assert code == 0
    assert "the pack in RUNNER_MODEL_DIR has the model w600k_mbf" in error
