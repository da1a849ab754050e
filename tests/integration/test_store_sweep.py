"""Removing the embeddings of deleted photos, on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.errors import CheckFailedError
from runner.store.embeddings import EmbeddingStore
from runner.store.sweep import Swept, sweep
from tests.support.store_tools import MODEL, Runner, add_photos, faces, stored_faces

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def runner(database_url: str) -> Iterator[Runner]:
    with Runner(database_url, f"{database_url}?schema=public") as runner:
        yield runner


def fill(runner: Runner, kept: list[str], deleted: list[str]) -> None:
    add_photos(runner.api, kept, "READY")
    with runner.faces.transaction():
        runner.embeddings.replace(dict.fromkeys([*kept, *deleted], faces(2)))


@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_the_faces_deleted_photos_are_removed(runner: Runner, batch: int) -> None:
    kept, deleted = ["a", "c_", "é", "%"], ["b", "_", "c", "d", "🎉", "%%"]
    fill(runner, kept, deleted)
    EmbeddingStore(runner.faces, "another model").replace({"b": faces(1), "a": faces(1)})
    assert sweep(runner.api, runner.faces, batch=batch) == Swept(photos=10, deleted_photos=6, removed_faces=13)
    assert {photo_id for photo_id, _ in stored_faces(runner.faces)} == set(kept)
    assert sweep(runner.api, runner.faces, batch=batch) == Swept(photos=4)


def test_a_dry_run_counts_and_removes_nothing(runner: Runner) -> None:
    fill(runner, ["a"], ["b", "c"])
    before = stored_faces(runner.faces)
    assert sweep(runner.api, runner.faces, dry_run=True) == Swept(photos=3, deleted_photos=2, removed_faces=4)
    assert stored_faces(runner.faces) == before


def test_nothing_is_removed_by_default_if_every_photo_seems_deleted(runner: Runner) -> None:
    fill(runner, [], ["a", "b"])
    with pytest.raises(CheckFailedError, match=r"DATABASE_URL.*--force.*Nothing was removed"):
        sweep(runner.api, runner.faces)
    assert len(stored_faces(runner.faces)) == 4
    assert sweep(runner.api, runner.faces, dry_run=True).removed_faces == 4
    assert sweep(runner.api, runner.faces, allow_all=True).removed_faces == 4
    assert stored_faces(runner.faces) == []
    assert sweep(runner.api, runner.faces) == Swept()


def test_too_large_a_share_of_many_photos_is_not_removed_by_default(runner: Runner) -> None:
    fill(runner, [f"kept {number}" for number in range(200)], [f"gone {number}" for number in range(101)])
    with pytest.raises(CheckFailedError, match=r"101 of 301 photos .* more than 10% .* Nothing was removed"):
        sweep(runner.api, runner.faces)
    assert len(stored_faces(runner.faces)) == 602
    assert sweep(runner.api, runner.faces, dry_run=True).removed_faces == 202
    assert sweep(runner.api, runner.faces, max_share=0.34).removed_faces == 202
    assert len(stored_faces(runner.faces)) == 400


def test_a_deleted_album_of_a_small_installation_is_removed(runner: Runner) -> None:
    fill(runner, ["kept"], [f"gone {number}" for number in range(100)])
    assert sweep(runner.api, runner.faces).deleted_photos == 100


def test_a_photo_that_comes_back_while_the_sweep_runs_keeps_its_new_faces(runner: Runner) -> None:
    fill(runner, ["other"], ["back", "away"])

    class Slow:
        """The API's connection, with an upload right after the query for existing photos."""

        def query(self, *args: object) -> object:
            answer = runner.api.query(*args).fetchall()  # type: ignore[arg-type]  # passed through
            with runner.another() as api:
                add_photos(api.api, ["back"])
                api.store({"back": faces(1)})
            return answer

    swept = sweep(Slow(), runner.faces)  # type: ignore[arg-type]  # only `query` is used
    assert swept.removed_faces == 2
    assert stored_faces(runner.faces) == [("back", 0), ("other", 0), ("other", 1)]


def test_twenty_thousand_photos_are_swept(runner: Runner) -> None:
    add_photos(runner.api, [f"p{number}" for number in range(0, 20_000, 2)])
    runner.faces.execute(
        "INSERT INTO faces (photo_id, model, face_index, embedding)"
        " SELECT 'p' || n, %s, 0, l2_normalize(array_fill(1, '{512}')::halfvec(512))"
        " FROM generate_series(0, 19999) AS n",
        (MODEL,),
    )
    swept = sweep(runner.api, runner.faces, max_share=0.5)
    assert swept == Swept(photos=20_000, deleted_photos=10_000, removed_faces=10_000)
