"""Bringing the table of the replaced worker over, on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.errors import SettingsError
from runner.store.legacy import Imported, import_legacy
from tests.support.store_tools import LEGACY_TABLE, MODEL, Runner, add_photos, faces, resembling, stored_faces

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from psycopg import Connection


@pytest.fixture
def runner(database_url: str) -> Iterator[Runner]:
    with Runner(database_url, database_url) as runner:
        runner.faces.execute(LEGACY_TABLE)
        yield runner


def write(connection: Connection, rows: dict[str, NDArray[np.float32] | str]) -> None:
    """Write rows as the replaced worker did: `str` of a Python list."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO face_embeddings (name, embedding) VALUES (%s, %s)",
            [(name, value if isinstance(value, str) else str(value.tolist())) for name, value in rows.items()],
        )


def run(runner: Runner, batch: int = 1000) -> Imported:
    return import_legacy(runner.api, runner.faces, model=MODEL, batch=batch)


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_rows_are_imported_normalised_and_comparable(runner: Runner, batch: int) -> None:
    person = faces(1)[0]
    add_photos(runner.api, ["photo1", "photo10", "a_b_c", "photo_1"], "READY")
    write(
        runner.faces,
        {
            "photo1_0": resembling(person, 0.8).embedding * 23.5,
            "photo1_1": faces(1, seed=3)[0].embedding * 17,
            "photo10_0": faces(1, seed=4)[0].embedding * 20,
            "a_b_c_0": resembling(person, 0.6, 5).embedding * 0.001,
            "photo_1_0": resembling(person, 0.4, 6).embedding * 22,
        },
    )
    assert run(runner, batch) == Imported(rows=5, imported=5)
    found = runner.embeddings.match([person.embedding], ["photo1", "photo10", "a_b_c", "photo_1", "photo"], -1)
    assert found.with_embeddings == 4
    assert found.scores["photo1"] == pytest.approx(0.8, abs=1e-3)
    assert found.scores["a_b_c"] == pytest.approx(0.6, abs=1e-3)
    assert found.scores["photo_1"] == pytest.approx(0.4, abs=1e-3)
    assert ("photo1", 1) in stored_faces(runner.faces)


def test_importing_again_changes_nothing(runner: Runner) -> None:
    add_photos(runner.api, ["a"], "READY")
    write(runner.faces, {"a_0": faces(1)[0].embedding, "a_1": faces(1, 1)[0].embedding})
    assert run(runner) == Imported(rows=2, imported=2)
    before = runner.faces.execute("SELECT * FROM faces ORDER BY face_index").fetchall()
    assert run(runner) == Imported(rows=2, already_there=2)
    assert runner.faces.execute("SELECT * FROM faces ORDER BY face_index").fetchall() == before


def test_what_a_runner_has_done_stands(runner: Runner) -> None:
    add_photos(runner.api, ["a", "b"])
    runner.store({"a": faces(1)})
    write(runner.faces, {f"{p}_{i}": faces(1, i)[0].embedding for p in "ab" for i in range(3)})
    assert run(runner) == Imported(rows=6, imported=3, done_by_a_runner=3)
    assert stored_faces(runner.faces) == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]


def test_a_runner_replaces_what_was_imported(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    write(runner.faces, {f"a_{i}": faces(1, i)[0].embedding for i in range(3)})
    run(runner)
    runner.store({"a": faces(1)})
    assert stored_faces(runner.faces) == [("a", 0)]


def test_embeddings_of_deleted_photos_stay_behind(runner: Runner) -> None:
    add_photos(runner.api, ["kept"])
    write(runner.faces, {"kept_0": faces(1)[0].embedding, "deleted_0": faces(1)[0].embedding})
    assert run(runner) == Imported(rows=2, imported=1, of_deleted_photos=1)
    assert stored_faces(runner.faces) == [("kept", 0)]


def test_rows_that_cannot_be_read_are_named_and_left_out(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    good = faces(1)[0].embedding
    write(
        runner.faces,
        {"a_0": good, "a": good, "a_x": good, "a_2": "[1, 2]", "a_3": "nonsense", "a_4": str([0.0] * 512)},
    )
    counts = run(runner, batch=2)
    assert (counts.rows, counts.imported, counts.unreadable_rows) == (6, 1, 5)
    assert set(counts.unreadable) == {"a", "a_x", "a_2", "a_3", "a_4"}
    assert "512" in counts.unreadable["a_2"]
    assert stored_faces(runner.faces) == [("a", 0)]


def test_only_the_first_unreadable_rows_are_named(runner: Runner) -> None:
    write(runner.faces, {f"a_{i}": "nonsense" for i in range(100)})
    counts = run(runner, batch=7)
    assert counts.unreadable_rows == 100
    assert 0 < len(counts.unreadable) <= 20


def test_gaps_in_the_old_tables_ids_are_no_end(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    write(runner.faces, {f"a_{i}": faces(1, i)[0].embedding for i in range(9)})
    runner.faces.execute("DELETE FROM face_embeddings WHERE id BETWEEN 3 AND 6")
    runner.faces.execute("UPDATE face_embeddings SET id = id - 5000 WHERE id = 1")
    assert run(runner, batch=2).imported == 5


def test_a_missing_table_is_an_error(runner: Runner) -> None:
    with pytest.raises(SettingsError, match="no table nothing_here"):
        import_legacy(runner.api, runner.faces, model=MODEL, table="nothing_here")
    with pytest.raises(SettingsError, match="no table"):
        import_legacy(runner.api, runner.faces, model=MODEL, table='a"; DROP TABLE faces; --')
    assert stored_faces(runner.faces) == []


def test_the_old_table_may_have_another_name(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    write(runner.faces, {"a_0": faces(1)[0].embedding})
    runner.faces.execute('ALTER TABLE face_embeddings RENAME TO "Old ""faces"""')
    assert import_legacy(runner.api, runner.faces, model=MODEL, table='Old "faces"').imported == 1
