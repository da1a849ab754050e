"""The migration guide, step by step: the replaced worker's data, its losses, this worker, and the rollback."""

from __future__ import annotations

import ast
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest

from demo.api import Api, create_table
from runner.faces.engine import Engine
from runner.images.decode import decode
from runner.settings import default_model_dir
from tests.support.pages import Reader, blocks, script
from tests.support.store_tools import LEGACY_TABLE
from tools.prose import ROOT

if TYPE_CHECKING:
    from redis import Redis

    from demo.album import Album, Selfie
    from demo.images import ImageServer

PAGE = ROOT / "docs/how-to/moving-in.md"
LENGTH = 21.5  # of the replaced worker's embeddings, which are not normalised
DONE = ("Everyone (1).jpg", "office.png", "Cleo & friends.jpg", "Ben 100%.webp", "Yao 1.jpg", "姚明.jpg")
STUCK, WAITING, DELETED = "Hal + Ben.jpg", "team.jpg", "Dan and Eve.png"


class OldWorker:
    """The data of the replaced worker, and how that worker reads it."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def store(self, photo_id: str, image: bytes) -> None:
        with Engine.open(default_model_dir(), threads=1) as engine:
            faces = engine.submit(lambda: decode(image, max_pixels=10**8, max_bytes=10**8)).result()
        for index, face in enumerate(faces):
            self._connection.execute(
                "INSERT INTO face_embeddings (name, embedding) VALUES (%s, %s)",
                (f"{photo_id}_{index}", str((face.embedding * LENGTH).tolist())),
            )
        self._connection.execute("UPDATE \"Photo\" SET status = 'READY' WHERE id = %s", (photo_id,))

    def rows(self) -> dict[str, str]:
        return dict(self._connection.execute("SELECT name, embedding FROM face_embeddings").fetchall())

    def similarity(self, name: str, other: str) -> float:
        first, second = (np.array(ast.literal_eval(self.rows()[row])) for row in (name, other))
        return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.fixture
def connection(empty_database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        create_table(connection)
        connection.execute(LEGACY_TABLE.encode())
        yield connection


@pytest.fixture
def reader(tmp_path: Path, redis_url: str, empty_database_url: str, images: ImageServer) -> Reader:
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "KUBECONFIG": str(tmp_path / "no-cluster"),
        "LANG": "C.UTF-8",
        "REDIS_URL": redis_url,
        "DATABASE_URL": f"{empty_database_url}?schema=public",
        "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true",
    }
    template = "https://storage.googleapis.com/BUCKET/albums/{album_id}/{normalized_name}"
    return Reader(tmp_path, environment, {template: images.url("{normalized_name}")})


def test_the_guide_leads_to_complete_answers_and_back(
    reader: Reader, connection: psycopg.Connection, redis: Redis, album: Album, images: ImageServer
) -> None:
    api, old = Api(redis, connection), OldWorker(connection)
    data = {photo.name: photo.data for photo in album.photos}
    photos = api.upload({name: images.url(name) for name in (*DONE, STUCK, WAITING, DELETED)})
    connection.execute("UPDATE \"Photo\" SET created_at = now() - interval '1 day'")
    for name in (*DONE, DELETED):
        old.store(photos[name], data[name])
    api.delete(photos[DELETED])
    redis.delete("face_embeddings:process")  # the old worker has taken all jobs, and lost one
    redis.rpush("face_embeddings:process", json.dumps({"id": photos[WAITING], "imageUrl": images.url(WAITING)}))
    before = old.rows()
    early = api.compare(album.selfies[0].data, list(photos.values()))  # sent while no worker runs

    output = reader.follow(script(PAGE))
    there = sum(name.rpartition("_")[0] != photos[DELETED] for name in before)
    assert f"{len(before)} rows: {there} would be imported" in output
    assert f"{len(before)} rows: {there} imported, 0 imported earlier" in output
    assert f"{len(before)} rows: 0 imported, {there} imported earlier" in output
    assert "1 pushed, 0 dead letters requeued" in output
    reader.follow("spottmee-worker run")

    assert set(api.statuses().values()) == {"READY"}
    names = {photo_id: name for name, photo_id in photos.items()}
    kept = [name for name in photos if name != DELETED]

    def answer(job: str) -> list[str]:
        return [names[photo_id] for photo_id in api.result(job) or []]

    def expected(selfie: Selfie) -> list[str]:
        return [name for name in kept if name in album.expectation(selfie)]

    assert answer(early) == expected(album.selfies[0])
    jobs = {selfie: api.compare(selfie.data, list(photos.values())) for selfie in album.selfies}
    reader.follow("spottmee-worker run")
    assert {selfie.name: answer(job) for selfie, job in jobs.items()} == {
        selfie.name: expected(selfie) for selfie in album.selfies
    }

    check, back, drop = (block.text.encode() for block in blocks(PAGE) if block.language == "sql")
    assert connection.execute(check).fetchone() == (0,)
    assert old.rows() == before  # a rollback is possible at any time
    connection.execute(back)
    after = old.rows()
    assert {name: after[name] for name in before} == before
    assert {name.rpartition("_")[0] for name in after.keys() - before.keys()} == {photos[STUCK], photos[WAITING]}
    yao = f"{photos['姚明.jpg']}_0"
    team = [name for name in after if name.startswith(photos[WAITING])]
    assert max(old.similarity(yao, name) for name in team) > 0.5
    connection.execute(drop)
    assert connection.execute("SELECT to_regclass('face_embeddings')").fetchone() == (None,)


def test_the_check_of_the_guide_counts_photos_that_were_not_imported(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE faces (photo_id text)")
    for name in ("photo", "ph_oto_1", "other"):
        connection.execute('INSERT INTO "Photo" (id) VALUES (%s)', (name,))
    for name in ("photo_0", "photo_1", "ph_oto_1_0", f"{uuid.uuid4()}_0", "unreadable"):
        connection.execute("INSERT INTO face_embeddings (name, embedding) VALUES (%s, '[]')", (name,))
    check = next(block.text.encode() for block in blocks(PAGE) if block.language == "sql")
    assert connection.execute(check).fetchone() == (2,)
    connection.execute("INSERT INTO faces VALUES ('photo')")
    assert connection.execute(check).fetchone() == (1,)
