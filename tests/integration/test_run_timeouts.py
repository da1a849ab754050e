"""Lock and statement timeouts of PostgreSQL: a job that hits one is retried and dead-lettered, others continue."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from demo.album import Album, jpeg, landscape
from demo.images import ImageServer
from tests.support.odd_server import OddServer
from tests.support.queue_tools import places
from tests.support.run_tools import Ended, Service

PHOTO = "Cleo & friends.jpg"
# Two attempts, with short limits: what is tested takes seconds.
QUICK = {
    "RUNNER_LOCK_TIMEOUT_SECONDS": "0.3",
    "RUNNER_MAX_ATTEMPTS": "2",
    "RUNNER_RESULT_WATCH_SECONDS": "0.2",
    "RUNNER_CONNECT_TIMEOUT_SECONDS": "2",
}


@pytest.fixture(scope="module")
def server() -> Iterator[OddServer]:
    with OddServer({"lake.jpg": jpeg(landscape(320, 200))}) as found:
        yield found


@pytest.fixture
def other(service: Service) -> Iterator[psycopg.Connection]:
    """Another client of the database, in a transaction that holds its locks until the end of the test."""
    info = service.connection.info
    with psycopg.connect(f"postgresql://{info.user}@{info.host}:{info.port}/{info.dbname}") as connection:
        yield connection
        connection.rollback()


def _upload(service: Service, server: OddServer, count: int) -> list[str]:
    return [service.api.upload({"lake.jpg": server.url("lake.jpg")})["lake.jpg"] for _ in range(count)]


def _dead(ended: Ended) -> list[tuple[str, str, int]]:
    """Return for each dead letter its id, error code and attempts."""
    return [
        (line.get("photo", line.get("comparison", "")), line["error"]["code"], line["attempt"])
        for line in ended.lines(outcome="dead_lettered")
    ]


@pytest.mark.parametrize("waiting_before", [False, True])
def test_a_locked_photo_is_dead_lettered_and_everything_claimed_with_it_is_done(
    service: Service,
    server: OddServer,
    images: ImageServer,
    album: Album,
    other: psycopg.Connection,
    *,
    waiting_before: bool,
) -> None:
    (known,) = service.api.upload({PHOTO: images.url(PHOTO)}).values()
    service.run()
    selfie = next(selfie.data for selfie in album.selfies if selfie.person == "Cleo")
    comparisons = [service.api.compare(selfie, [known]) for _ in range(4)]
    photo_ids = _upload(service, server, 12)
    locked, *others = photo_ids
    other.execute('SELECT id FROM "Photo" WHERE id = %s FOR UPDATE', (locked,))
    if waiting_before:  # then the run waits for another kind of lock: for the place behind this one
        with psycopg.connect(other.info.dsn) as waiting:
            waiting.execute("SET statement_timeout = 20000")
            waiting.pgconn.send_query(f"SELECT 1 FROM \"Photo\" WHERE id = '{locked}' FOR UPDATE".encode())
            ended = service.command("run", RUNNER_CLAIM_SIZE="20", **QUICK)
            waiting.cancel_safe()
            waiting.close()
    else:
        ended = service.command("run", RUNNER_CLAIM_SIZE="20", **QUICK)
    assert ended.code == 0, ended.errors
    assert {service.status(photo_id) for photo_id in others} == {"NO_FACES_FOUND"}
    assert [service.api.result(job) for job in comparisons] == [[known]] * 4
    assert _dead(ended) == [(locked, "lock_timeout", 2)]
    assert ended.lines(photo=locked, outcome="retried", code="lock_timeout")
    assert service.leftovers() == {"process dead": 1}


def test_a_locked_table_belongs_to_no_job(service: Service, server: OddServer, other: psycopg.Connection) -> None:
    photo_ids = _upload(service, server, 3)
    other.execute('LOCK TABLE "Photo" IN ACCESS EXCLUSIVE MODE')
    ended = service.command("run", **QUICK)
    assert ended.code == 75, ended.errors
    assert "lock timeout" in ended.lines(event="run ended")[0]["error"]["message"]
    assert ended.summary["released"] + ended.summary["unsettled"] == 3 - len(places(service.redis).waiting)
    other.rollback()
    assert service.run().summary["photos"] == 3
    assert {service.status(photo_id) for photo_id in photo_ids} == {"NO_FACES_FOUND"}


@pytest.fixture
def slow(service: Service) -> Iterator[tuple[Service, str]]:
    """The service with a role to which one photo's embeddings come slowly, and the id of that photo."""
    name, photo_id = f"worker_{uuid.uuid4().hex}", str(uuid.uuid4())
    run = service.connection.execute
    run(f"CREATE ROLE {name} LOGIN".encode())
    run(f'GRANT SELECT, UPDATE ON "Photo" TO {name}'.encode())
    run(f"GRANT SELECT, INSERT, DELETE ON faces, spottmee_schema TO {name}".encode())
    run(
        "CREATE FUNCTION slowly() RETURNS boolean LANGUAGE plpgsql COST 100000 AS"
        " 'BEGIN PERFORM pg_sleep(30); RETURN true; END'"
    )
    run("ALTER TABLE faces ENABLE ROW LEVEL SECURITY")
    run(f"CREATE POLICY slow ON faces USING (CASE photo_id WHEN '{photo_id}' THEN slowly() ELSE true END)".encode())
    url = service.environment["DATABASE_URL"].replace("postgres@", f"{name}@")
    yield replace(service, environment={**service.environment, "DATABASE_URL": url}), photo_id
    run(f"DROP OWNED BY {name}".encode())
    run(f"DROP ROLE {name}".encode())


def test_a_comparison_over_its_limit_is_answered_empty_and_its_neighbours_are_matched(
    slow: tuple[Service, str], images: ImageServer, album: Album
) -> None:
    service, slow_id = slow
    (known,) = service.api.upload({PHOTO: images.url(PHOTO)}).values()
    service.run()
    service.connection.execute("""INSERT INTO "Photo" (id, status) VALUES (%s, 'READY')""", (slow_id,))
    columns = "model, face_index, embedding, box, score, landmarks"
    service.connection.execute(
        f"INSERT INTO faces (photo_id, {columns}) SELECT %s, {columns} FROM faces LIMIT 1".encode(), (slow_id,)
    )
    selfie = next(selfie.data for selfie in album.selfies if selfie.person == "Cleo")
    before, over, after = (service.api.compare(selfie, ids) for ids in ([known], [known, slow_id], [known]))
    ended = service.command("run", RUNNER_STATEMENT_TIMEOUT_SECONDS="0.5", **QUICK)
    assert ended.code == 0, ended.errors
    assert [service.api.result(job) for job in (before, over, after)] == [[known], [], [known]]
    assert _dead(ended) == [(over, "statement_timeout", 2)]
    error = service.api.detail(over)["error"]
    assert isinstance(error, dict)
    assert "RUNNER_STATEMENT_TIMEOUT_SECONDS" in error["message"]
    assert service.leftovers() == {"compare dead": 1}
