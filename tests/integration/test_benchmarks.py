"""`make bench` on a small scale: that it measures and reports, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import comparison, material, reference
from benchmarks.world import World, world
from runner.store.database import connect
from runner.store.embeddings import EmbeddingStore

REPOSITORY = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)


def test_both_workers_store_the_photo_and_the_table_and_the_file_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    done = bench("--only", "cold-start", "--only", "inference", "--rounds", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text("utf-8"))
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["onnxruntime"]
    rows = {row["what"]: row for row in document["rows"]}
    assert len(rows) == 4
    for what, row in rows.items():
        assert what in done.stdout
        assert row["ours"]["median"] > 0
        assert row["baseline"]["median"] > 0
        assert row["verdict"] in ("met", "NOT MET", None)
    limit = rows["recogniser, CPU time per face"]
    assert limit["verdict"] == "met", f"this onnxruntime is slow at the recogniser: {limit}"


def test_unknown_parts_are_rejected_in_one_line() -> None:
    done = bench("--only", "everything")
    assert done.returncode == 2
    assert "invalid choice: 'everything'" in done.stderr
    assert "Traceback" not in bench("--rounds", "0").stderr


@pytest.fixture(scope="module")
def servers() -> Iterator[World]:
    with world() as opened:
        yield opened


def test_the_reference_gives_the_expected_answer(servers: World) -> None:
    servers.empty()
    album = comparison.fill(servers.connection, 40)
    wanted = comparison.vectors(120)[[0, 63]]
    with connect(servers.environment["DATABASE_URL"], seconds=5, application_name="test") as connection:
        ours = EmbeddingStore(connection, comparison.model()).match(wanted, album, 0.5)
        theirs = reference.matches(connection, list(wanted), album, 0.5)
        assert theirs == [album[0], album[21]]
        assert set(ours.scores) == set(theirs)
        rows = comparison.measure(servers, 1, albums=(20, 40))
    assert [row.what for row in rows] == [
        f"a selfie against {size} photos of 40, {comparison.FACES_A_PHOTO} faces each" for size in (20, 40)
    ]


def test_the_photos_show_what_the_table_says() -> None:
    from runner.faces.engine import Engine
    from runner.images.decode import decode
    from tests.support.engine_tools import MODEL, analyse

    with Engine.open(MODEL, threads=1) as engine:
        faces = {}
        for name in material.SETS:
            photos = [decode(data, max_pixels=10**8, max_bytes=10**8) for data in material.photo_set(name)[:4]]
            faces[name] = float(np.mean([len(analyse(engine, photo)) for photo in photos]))
            if name == "phone":
                assert {photo.shape for photo in photos} == {(4000, 3000, 3)}
    assert 3 <= faces["web"] <= 6
    assert 2 <= faces["phone"] <= 3
    assert faces["group"] == 20
