"""Importing the table of the replaced worker, on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.errors import SettingsError
from runner.store.legacy import Imported, find_source, import_legacy
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
    return import_legacy(runner.api, runner.faces, find_source(runner.faces), model=MODEL, batch=batch)


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
    assert run(runner) == Imported(rows=2, already_imported=2)
    assert runner.faces.execute("SELECT * FROM faces ORDER BY face_index").fetchall() == before


def test_faces_stored_by_a_runner_are_kept(runner: Runner) -> None:
    add_photos(runner.api, ["a", "b"])
    runner.store({"a": faces(1)})
    write(runner.faces, {f"{p}_{i}": faces(1, i)[0].embedding for p in "ab" for i in range(3)})
    assert run(runner) == Imported(rows=6, imported=3, already_processed=3)
    assert stored_faces(runner.faces) == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]


def test_a_runner_replaces_what_was_imported(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    write(runner.faces, {f"a_{i}": faces(1, i)[0].embedding for i in range(3)})
    run(runner)
    runner.store({"a": faces(1)})
    assert stored_faces(runner.faces) == [("a", 0)]


def test_embeddings_of_deleted_photos_are_not_imported(runner: Runner) -> None:
    add_photos(runner.api, ["kept"])
    write(runner.faces, {"kept_0": faces(1)[0].embedding, "deleted_0": faces(1)[0].embedding})
    assert run(runner) == Imported(rows=2, imported=1, deleted_photos=1)
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


def test_gaps_in_the_old_tables_ids_do_not_end_the_import(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    write(runner.faces, {f"a_{i}": faces(1, i)[0].embedding for i in range(9)})
    runner.faces.execute("DELETE FROM face_embeddings WHERE id BETWEEN 3 AND 6")
    runner.faces.execute("UPDATE face_embeddings SET id = id - 5000 WHERE id = 1")
    assert run(runner, batch=2).imported == 5


def test_a_missing_table_is_an_error(runner: Runner) -> None:
    with pytest.raises(SettingsError, match="no table nothing_here"):
        find_source(runner.faces, "nothing_here")
    with pytest.raises(SettingsError, match="no table"):
        find_source(runner.faces, 'a"; DROP TABLE faces; --')
    assert stored_faces(runner.faces) == []


def test_the_old_table_may_have_another_name(runner: Runner) -> None:
    add_photos(runner.api, ["a"])
    write(runner.faces, {"a_0": faces(1)[0].embedding})
    runner.faces.execute('ALTER TABLE face_embeddings RENAME TO "Old ""faces"""')
    source = find_source(runner.faces, 'Old "faces"')
    assert import_legacy(runner.api, runner.faces, source, model=MODEL).imported == 1


GOOD = faces(1)[0].embedding.astype(float)
DIRTY: dict[str, tuple[str | None, str | None, str]] = {
    "a NULL name": (None, str(GOOD.tolist()), "the name is NULL"),
    "a NULL embedding": ("a_1", None, "the embedding is NULL"),
    "both NULL": (None, None, "the name is NULL"),
    "an empty name": ("", str(GOOD.tolist()), "the name is not PHOTO_INDEX"),
    "no index": ("a", str(GOOD.tolist()), "the name is not PHOTO_INDEX"),
    "an index beyond smallint": ("a_40000", str(GOOD.tolist()), "the name is not PHOTO_INDEX"),
    "an index of 5,000 digits": ("a_" + "1" * 5000, str(GOOD.tolist()), "the name is not PHOTO_INDEX"),
    "an empty embedding": ("a_2", "", "the embedding is not a list of numbers"),
    "no array": ("a_3", '{"x": 1}', "the embedding is not a list of numbers"),
    "a number": ("a_4", "5", "the embedding does not have 512 numbers"),
    "too few numbers": ("a_5", str(GOOD.tolist()[:128]), "the embedding does not have 512 numbers"),
    "too many numbers": ("a_6", str([*GOOD.tolist(), 0.5]), "the embedding does not have 512 numbers"),
    "NaN": ("a_7", str([*GOOD.tolist()[:511], float("nan")]).replace("nan", "NaN"), "zero or not finite"),
    "nan as Python writes it": ("a_8", str([*GOOD.tolist()[:511], float("nan")]), "is not a list of numbers"),
    "infinity": ("a_9", str([*GOOD.tolist()[:511], 1]).replace(" 1]", " -Infinity]"), "zero or not finite"),
    "a zero vector": ("a_10", str([0.0] * 512), "zero or not finite"),
    "a nested list": ("a_11", str([GOOD.tolist()]), "the embedding does not have 512 numbers"),
    "a NULL among the numbers": ("a_12", str([*GOOD.tolist()[:511], None]).replace("None", "null"), "zero or not"),
    "a number of 5,000 digits": ("a_13", "[" + "9" * 5000 + ", 1" * 511 + "]", "is not a list of numbers"),
    "code": ("a_14", "__import__('os').abort()", "is not a list of numbers"),
}


@pytest.fixture
def dirty(runner: Runner) -> Runner:
    """A table that has lost its constraints, with a clean row of photo a between the others."""
    runner.faces.execute("ALTER TABLE face_embeddings DROP CONSTRAINT face_embeddings_pkey")
    runner.faces.execute("ALTER TABLE face_embeddings DROP CONSTRAINT face_embeddings_name_key")
    for column in ("id", "name", "embedding"):
        runner.faces.execute(f"ALTER TABLE face_embeddings ALTER COLUMN {column} DROP NOT NULL".encode())
    runner.faces.execute("ALTER TABLE face_embeddings ALTER COLUMN name TYPE text")
    add_photos(runner.api, ["a"], "READY")
    return runner


def add_row(runner: Runner, row_id: int | None, name: str | None, embedding: str | None) -> None:
    runner.faces.execute("INSERT INTO face_embeddings VALUES (%s, %s, %s)", (row_id, name, embedding))


@pytest.mark.parametrize("kind", DIRTY)
def test_a_dirty_row_is_counted_and_the_others_are_imported(dirty: Runner, kind: str) -> None:
    name, embedding, reason = DIRTY[kind]
    add_row(dirty, 1, "a_100", str(GOOD.tolist()))
    add_row(dirty, 2, name, embedding)
    add_row(dirty, 3, "a_101", str(GOOD.tolist()))
    counts = run(dirty)
    assert (counts.rows, counts.imported, counts.unreadable_rows) == (3, 2, 1)
    ((shown, why),) = counts.unreadable.items()
    assert reason in why
    assert shown == ("id 2" if name is None else name[:200])
    assert stored_faces(dirty.faces) == [("a", 100), ("a", 101)]


def test_all_dirty_rows_together_do_not_stop_an_import(dirty: Runner) -> None:
    for row_id, (name, embedding, _) in enumerate(DIRTY.values()):
        add_row(dirty, row_id, name, embedding)
    add_row(dirty, 1000, "a_0", str(GOOD.tolist()))
    for batch in (1, 7, 1000):
        counts = run(dirty, batch)
        assert (counts.rows, counts.unreadable_rows) == (len(DIRTY) + 1, len(DIRTY))
    assert stored_faces(dirty.faces) == [("a", 0)]


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_the_first_row_of_duplicate_names_is_imported(dirty: Runner, batch: int) -> None:
    first, second = (faces(1, seed)[0].embedding for seed in (1, 2))
    for row_id, name, embedding in ((1, "a_0", first), (2, "a_0", second), (3, "a_00", second), (4, "a_1", second)):
        add_row(dirty, row_id, name, str(embedding.tolist()))
    assert run(dirty, batch) == Imported(rows=4, imported=2, duplicates=2)
    scores = dirty.embeddings.match([first], ["a"], -1).scores
    assert scores["a"] == pytest.approx(1, abs=1e-3)
    assert run(dirty, batch) == Imported(rows=4, already_imported=2, duplicates=2)


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_rows_without_an_id_or_with_the_same_one_are_imported(dirty: Runner, batch: int) -> None:
    for index, row_id in enumerate((None, 1, 1, 1, None, 2)):
        add_row(dirty, row_id, f"a_{index}", str(GOOD.tolist()))
    assert run(dirty, batch) == Imported(rows=6, imported=6)


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e160, 1e300])
def test_embeddings_of_any_length_are_normalised(dirty: Runner, factor: float) -> None:
    add_row(dirty, 1, "a_0", str((GOOD * factor).tolist()))
    assert run(dirty) == Imported(rows=1, imported=1)
    assert dirty.embeddings.match([faces(1)[0].embedding], ["a"], -1).scores["a"] == pytest.approx(1, abs=1e-3)


def test_a_dry_run_counts_what_an_import_does_and_writes_nothing(dirty: Runner) -> None:
    add_photos(dirty.api, ["b"])
    dirty.store({"b": faces(1)})
    for row_id, (name, embedding, _) in enumerate(DIRTY.values()):
        add_row(dirty, row_id, name, embedding)
    for row_id, name in enumerate(("a_0", "a_0", "b_0", "deleted_0"), 1000):
        add_row(dirty, row_id, name, str(GOOD.tolist()))
    source = find_source(dirty.faces)
    expected = import_legacy(dirty.api, dirty.faces, source, model=MODEL, dry_run=True)
    assert stored_faces(dirty.faces) == [("b", 0)]
    assert (expected.imported, expected.duplicates) == (1, 1)
    assert (expected.already_processed, expected.deleted_photos) == (1, 1)
    assert import_legacy(dirty.api, dirty.faces, source, model=MODEL) == expected


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE face_embeddings DROP COLUMN embedding", "has no column embedding"),
        ("ALTER TABLE face_embeddings ALTER COLUMN id TYPE text", "has ids that are no integers"),
    ],
)
def test_a_table_of_another_program_is_refused(runner: Runner, statement: str, message: str) -> None:
    runner.faces.execute(statement.encode())
    with pytest.raises(SettingsError, match=message):
        find_source(runner.faces)
