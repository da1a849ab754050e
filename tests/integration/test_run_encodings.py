"""Databases in encodings other than UTF-8: ids are unchanged, and every job ends as with UTF-8."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg
import pytest

from demo.api import PROCESS_LIST, create_table
from runner.store import schema
from tests.support.run_tools import Service
from tests.support.run_tools import service as a_service
from tests.support.store_tools import opened

if TYPE_CHECKING:
    from redis import Redis

    from demo.album import Album
    from demo.images import ImageServer
    from demo.servers import EmbeddedPostgres

PHOTO = "Cleo & friends.jpg"
# Encoding of the database → an id that it can hold.
IDS = {"SQL_ASCII": "фото-é", "LATIN1": "photo-é", "UTF8": "写真-é"}


def _service(redis: Redis, redis_url: str, server: EmbeddedPostgres, encoding: str) -> Iterator[Service]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0".encode()
        )
        url = server.database_url(name)
        with opened(url) as fresh:
            create_table(fresh)
            schema.migrate(fresh)
        with a_service(redis, redis_url, url) as found:
            found.connection.execute("SET client_encoding = 'UTF8'")
            yield found
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(params=sorted(IDS))
def encoded(
    request: pytest.FixtureRequest, redis: Redis, redis_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[tuple[str, Service]]:
    """The encoding of a fresh database, and the service on it."""
    for found in _service(redis, redis_url, postgres_server, request.param):
        yield request.param, found


def test_a_photo_is_stored_and_matched_whatever_the_encoding_of_the_database(
    encoded: tuple[str, Service], images: ImageServer, album: Album
) -> None:
    encoding, service = encoded
    photo_id = IDS[encoding]
    service.connection.execute('INSERT INTO "Photo" (id) VALUES (%s)', (photo_id,))
    service.redis.rpush(PROCESS_LIST, json.dumps({"id": photo_id, "imageUrl": images.url(PHOTO)}))
    assert service.run("--queues", "process").summary["photos"] == 1
    assert (service.status(photo_id), service.faces(photo_id) > 0) == ("READY", True)
    selfie = next(selfie.data for selfie in album.selfies if selfie.person == "Cleo")
    job = service.api.compare(selfie, [photo_id])
    service.run("--queues", "compare", RUNNER_RESULT_WATCH_SECONDS="1")
    assert service.api.result(job) == [photo_id]


@pytest.mark.parametrize("where", ["URL", "environment"])
def test_a_client_encoding_set_elsewhere_is_ignored(service: Service, images: ImageServer, where: str) -> None:
    photo_id = IDS["UTF8"]
    service.connection.execute('INSERT INTO "Photo" (id) VALUES (%s)', (photo_id,))
    service.redis.rpush(PROCESS_LIST, json.dumps({"id": photo_id, "imageUrl": images.url(PHOTO)}))
    variables = (
        {"DATABASE_URL": service.environment["DATABASE_URL"] + "&client_encoding=SQL_ASCII"}
        if where == "URL"
        else {"PGCLIENTENCODING": "SQL_ASCII"}
    )
    ended = service.command("run", "--queues", "process", **variables)
    assert (ended.code, ended.summary["photos"], service.status(photo_id)) == (0, 1, "READY"), ended.errors
