"""Runs that cannot see the photos of their jobs: they stop and release the jobs, unless the photos were deleted."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from demo.album import jpeg, landscape
from demo.api import PROCESS_LIST
from runner.errors import PhotosInvisibleError, RedisRefusedError, SettingsError
from runner.queue import keys
from runner.store.embeddings import EmbeddingStore
from runner.store.visibility import identity
from tests.support.odd_server import OddServer
from tests.support.queue_tools import pass_time, places
from tests.support.run_tools import wait_for
from tests.support.store_tools import MODEL, faces, opened

if TYPE_CHECKING:
    from demo.servers import EmbeddedPostgres
    from tests.support.run_tools import Ended, Service

INVISIBLE = PhotosInvisibleError.exit_code
OPEN = 'CREATE POLICY open_{0} ON "Photo" FOR {0} TO {1} USING (true)'


@pytest.fixture(scope="module")
def server() -> Iterator[OddServer]:
    with OddServer({"lake.jpg": jpeg(landscape(320, 200))}) as found:
        yield found


@pytest.fixture
def role(service: Service) -> Iterator[str]:
    """A role that owns nothing and has every right that a run needs."""
    name = f"worker_{uuid.uuid4().hex}"
    service.connection.execute(f"CREATE ROLE {name} LOGIN".encode())
    service.connection.execute(f'GRANT SELECT, UPDATE ON "Photo" TO {name}'.encode())
    yield name
    service.connection.execute(f"DROP OWNED BY {name}".encode())
    service.connection.execute(f"DROP ROLE {name}".encode())


@pytest.fixture
def restricted(service: Service, role: str) -> Service:
    """The service with the API's table under row-level security, its runs connecting as `role`."""
    service.connection.execute('ALTER TABLE "Photo" ENABLE ROW LEVEL SECURITY')
    url = service.environment["DATABASE_URL"]
    ours = {"DATABASE_URL": url.replace("postgres@", f"{role}@"), "EMBEDDINGS_DATABASE_URL": url}
    return replace(service, environment={**service.environment, **ours})


@pytest.fixture
def elsewhere(postgres_server: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    """Another deployment's database, with its tables."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE api_template".encode())
        with psycopg.connect(postgres_server.database_url(name), autocommit=True) as found:
            yield found
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _url(connection: psycopg.Connection) -> str:
    info = connection.info
    return f"postgresql://{info.user}@{info.host}:{info.port}/{info.dbname}"


def _upload(service: Service, server: OddServer, count: int, album: str = "album") -> list[str]:
    """Upload photos, one after the other, and return their ids."""
    return [service.api.upload({"lake.jpg": server.url("lake.jpg")}, album)["lake.jpg"] for _ in range(count)]


def _delete(service: Service, photo_ids: Sequence[str]) -> None:
    for photo_id in photo_ids:
        service.api.delete(photo_id)


def _counts(ended: Ended) -> dict[str, Any]:
    """Return the counts of the summary that are not zero, and the exit code."""
    named = (
        "succeeded",
        "photo_gone",
        "dead_lettered",
        "retried",
        "released",
        "lease_lost",
        "unsettled",
        "photos",
        "faces",
    )
    return {name: ended.summary[name] for name in named if ended.summary[name]} | {"code": ended.code}


def _stopped(ended: Ended, released: int, because: str) -> None:
    """Check that the run released its jobs, and reported why."""
    assert _counts(ended) == {"code": INVISIBLE, "released": released}, ended.errors
    assert ended.summary["exit_reason"] == PhotosInvisibleError.code
    (line,) = ended.lines(event="run ended")
    assert because in line["error"]["message"]


def _all_are_there(service: Service, photo_ids: Sequence[str]) -> None:
    """Check that every job waits, without a counted attempt, for a run that sees its photo."""
    queued = sorted(json.loads(payload)["id"] for payload in places(service.redis).all)
    assert queued == sorted(photo_ids)
    assert {service.status(photo_id) for photo_id in photo_ids} == {"UPLOADED"}
    fields: Any = service.redis.hgetall(keys.claimed("process"))
    assert {value for name, value in fields.items() if name.endswith(b":attempts")} <= {b"1"}


def _heals(service: Service, photo_ids: Sequence[str], **environment: str) -> None:
    """Check that a run that sees the photos processes them, once the jobs are due."""
    pass_time(service.redis, 61)
    ended = service.command("run", **environment)
    assert _counts(ended) == {"code": 0, "succeeded": len(photo_ids), "photos": len(photo_ids)}, ended.errors
    assert {service.status(photo_id) for photo_id in photo_ids} == {"NO_FACES_FOUND"}
    assert service.leftovers() == {}


# Row-level security


def test_row_security_that_hides_every_photo_stops_the_run(
    restricted: Service, service: Service, server: OddServer, role: str
) -> None:
    photos = _upload(service, server, 4)
    _stopped(restricted.command("run"), 4, "row-level security hides every row")
    _all_are_there(service, photos)
    for command in ("SELECT", "UPDATE"):
        service.connection.execute(OPEN.format(command, role).encode())
    _heals(restricted, photos)


@pytest.mark.parametrize("command", ["SELECT", "UPDATE"])
def test_a_policy_for_one_command_alone_stops_the_run(
    restricted: Service, service: Service, server: OddServer, role: str, command: str
) -> None:
    photos = _upload(service, server, 2)
    service.connection.execute(OPEN.format(command, role).encode())
    _stopped(restricted.command("run"), 2, "row-level security hides every row")
    _all_are_there(service, photos)


def test_one_hidden_photo_alone_in_the_list_stops_the_run_where_none_is_visible(
    restricted: Service, service: Service, server: OddServer
) -> None:
    photos = _upload(service, server, 1)
    _stopped(restricted.command("run"), 1, "row-level security hides every row")
    _all_are_there(service, photos)


def test_a_batch_that_row_security_may_hide_stops_the_run(
    restricted: Service, service: Service, server: OddServer, role: str
) -> None:
    service.connection.execute(f"CREATE POLICY ours ON \"Photo\" TO {role} USING (album_id = 'ours')".encode())
    seen = _upload(service, server, 2, "ours")
    assert _counts(restricted.command("run")) == {"code": 0, "succeeded": 2, "photos": 2}
    hidden = _upload(service, server, 3, "theirs")
    _stopped(restricted.command("run"), 3, "none of 3 photos is there, and row-level security may hide them")
    _all_are_there(service, hidden)
    assert {service.status(photo_id) for photo_id in seen} == {"NO_FACES_FOUND"}


def test_a_restrictive_policy_counts_as_hiding(
    restricted: Service, service: Service, server: OddServer, role: str
) -> None:
    service.connection.execute(f'CREATE POLICY open ON "Photo" TO {role} USING (true)'.encode())
    service.connection.execute("CREATE POLICY ours ON \"Photo\" AS RESTRICTIVE USING (album_id = 'ours')")
    _upload(service, server, 1, "ours")
    assert _counts(restricted.command("run")) == {"code": 0, "succeeded": 1, "photos": 1}
    hidden = _upload(service, server, 2, "theirs")
    _stopped(restricted.command("run"), 2, "row-level security may hide them")
    _all_are_there(service, hidden)


def test_a_deleted_album_ends_as_gone_under_open_policies(
    restricted: Service, service: Service, server: OddServer, role: str
) -> None:
    service.connection.execute(f'CREATE POLICY open ON "Photo" TO {role} USING (true)'.encode())
    _upload(service, server, 1)
    assert _counts(restricted.command("run")) == {"code": 0, "succeeded": 1, "photos": 1}
    _delete(service, _upload(service, server, 5))
    assert _counts(restricted.command("run")) == {"code": 0, "photo_gone": 5}


# Another deployment's database


@pytest.mark.parametrize("count", [1, 10])
def test_an_empty_photo_table_stops_the_run(
    service: Service, server: OddServer, elsewhere: psycopg.Connection, count: int
) -> None:
    photos = _upload(service, server, count)
    ended = service.command("run", DATABASE_URL=_url(elsewhere))
    _stopped(ended, min(count, 8), 'the table "Photo" is empty')
    _all_are_there(service, photos)
    _heals(service, photos)


@pytest.mark.parametrize("claim_size", ["1", "8"])
def test_another_deployments_photos_stop_the_run(
    service: Service, server: OddServer, elsewhere: psycopg.Connection, claim_size: str
) -> None:
    elsewhere.execute("INSERT INTO \"Photo\" (id, status) VALUES ('theirs', 'READY')")
    _upload(service, server, 1)
    assert service.run().summary["photos"] == 1
    photos = _upload(service, server, 3)
    ended = service.command("run", DATABASE_URL=_url(elsewhere), RUNNER_CLAIM_SIZE=claim_size)
    _stopped(ended, min(3, int(claim_size)), "photos of this list were found in another database")
    _all_are_there(service, photos)
    _heals(service, photos)


def test_a_batch_that_no_known_database_explains_stops_the_run(
    service: Service, server: OddServer, elsewhere: psycopg.Connection
) -> None:
    elsewhere.execute("INSERT INTO \"Photo\" (id, status) VALUES ('theirs', 'READY')")
    photos = _upload(service, server, 2)
    ended = service.command("run", DATABASE_URL=_url(elsewhere))
    _stopped(ended, 2, "no photo of this list was ever found in this database")
    _all_are_there(service, photos)


def test_run_job_does_not_record_a_database_for_the_list(
    service: Service, server: OddServer, elsewhere: psycopg.Connection, tmp_path: Path
) -> None:
    elsewhere.execute("INSERT INTO \"Photo\" (id) VALUES ('theirs')")
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"id": "theirs", "imageUrl": server.url("lake.jpg")}))
    ended = service.run("--job", str(job), DATABASE_URL=_url(elsewhere))
    assert _counts(ended) == {"code": 0, "succeeded": 1, "photos": 1}
    assert service.redis.keys("*databases") == []


# Deleted photos


def test_a_deleted_album_ends_as_gone_where_the_database_is_known(service: Service, server: OddServer) -> None:
    _upload(service, server, 1)
    assert service.run().summary["photos"] == 1
    _delete(service, _upload(service, server, 50))
    ended = service.run("--max-jobs", "100")
    assert _counts(ended) == {"code": 0, "photo_gone": 50}
    assert len(ended.lines(level="warning", outcome="photo_gone")) == 50
    assert service.leftovers() == {}


def test_a_single_deleted_photo_is_gone_in_a_database_that_is_not_known_yet(
    service: Service, server: OddServer
) -> None:
    service.connection.execute("INSERT INTO \"Photo\" (id, status) VALUES ('older', 'READY')")
    _delete(service, _upload(service, server, 1))
    assert _counts(service.run()) == {"code": 0, "photo_gone": 1}


def test_a_job_pushed_twice_is_a_single_photo(service: Service, server: OddServer) -> None:
    service.connection.execute("INSERT INTO \"Photo\" (id, status) VALUES ('older', 'READY')")
    (photo,) = _upload(service, server, 1)
    service.redis.rpush(PROCESS_LIST, service.redis.lindex(PROCESS_LIST, 0) or b"")
    service.api.delete(photo)
    assert _counts(service.run()) == {"code": 0, "photo_gone": 2}


def test_a_deleted_album_does_not_keep_a_new_deployment_from_its_other_photos(
    service: Service, server: OddServer
) -> None:
    deleted, others = _upload(service, server, 8), _upload(service, server, 3)
    _delete(service, deleted)
    _stopped(service.command("run"), 8, "no photo of this list was ever found in this database")
    assert _counts(service.run()) == {"code": 0, "succeeded": 3, "photos": 3}
    assert {service.status(photo_id) for photo_id in others} == {"NO_FACES_FOUND"}
    pass_time(service.redis, 61)
    assert _counts(service.run()) == {"code": 0, "photo_gone": 8}
    assert service.leftovers() == {}


def test_an_upload_ends_the_stop_after_everything_was_deleted(service: Service, server: OddServer) -> None:
    _upload(service, server, 1)
    assert service.run().summary["photos"] == 1
    deleted = _upload(service, server, 4)
    service.connection.execute('DELETE FROM "Photo"')
    _stopped(service.command("run"), 4, "If all photos were deleted, the next upload ends this")
    _upload(service, server, 1)
    pass_time(service.redis, 61)
    assert _counts(service.run()) == {"code": 0, "succeeded": 1, "photo_gone": len(deleted), "photos": 1}


# The other commands


def _api_database(service: Service, **environment: str) -> tuple[int, str]:
    """Return the exit code of doctor, and what it says about the API's database."""
    ended = service.command("doctor", "--json", **environment)
    checks = {check["name"]: check for check in json.loads(ended.output)}
    assert checks["API database"]["ok"] == (ended.code == 0)
    return ended.code, checks["API database"]["message"]


def test_doctor_shows_what_the_role_can_see(
    restricted: Service, service: Service, server: OddServer, role: str, elsewhere: psycopg.Connection
) -> None:
    code, finding = _api_database(service)
    assert (code, finding.partition("; ")[2].partition(":")[0]) == (0, "it is empty")
    photo = _upload(service, server, 1)
    code, finding = _api_database(restricted)
    assert (code, "row-level security hides every row" in finding) == (INVISIBLE, True)
    service.connection.execute(f'CREATE POLICY ours ON "Photo" TO {role} USING (size = 0)'.encode())
    code, finding = _api_database(restricted)
    assert (code, "row-level security may hide rows" in finding) == (0, True)
    assert service.run().summary["photos"] == len(photo)
    assert _api_database(service)[1].endswith('table "Photo" found in schema "public"')
    elsewhere.execute("INSERT INTO \"Photo\" (id) VALUES ('theirs')")
    code, finding = _api_database(service, DATABASE_URL=_url(elsewhere))
    assert (code, "found the photos of this queue in another database" in finding) == (0, True)


def test_doctor_reports_a_role_that_may_not_read_photos(restricted: Service, service: Service, role: str) -> None:
    service.connection.execute(f'REVOKE SELECT ON "Photo" FROM {role}'.encode())
    ended = restricted.command("doctor")
    assert (ended.code, f'GRANT SELECT ON "public"."Photo" TO "{role}"' in ended.output) == (
        SettingsError.exit_code,
        True,
    )


@pytest.mark.parametrize("command", [("sweep",), ("sweep", "--force"), ("import-legacy", "--model", "any")])
def test_commands_that_drop_deleted_photos_refuse_to_run_if_photos_may_be_hidden(
    restricted: Service, service: Service, role: str, command: Sequence[str]
) -> None:
    service.connection.execute(f"CREATE POLICY ours ON \"Photo\" TO {role} USING (album_id = 'ours')".encode())
    service.connection.execute("INSERT INTO \"Photo\" (id, album_id) VALUES ('ours', 'ours'), ('theirs', 'theirs')")
    with opened(service.environment["DATABASE_URL"]) as connection, connection.transaction():
        EmbeddingStore(connection, MODEL).replace({"ours": faces(1), "theirs": faces(1)})
    ended = restricted.command(*command)
    assert ended.code == INVISIBLE
    assert "row-level security may hide rows" in ended.errors
    assert (service.faces("ours"), service.faces("theirs")) == (1, 1)


# What Redis records


def test_a_databases_key_of_another_type_ends_the_run_and_loses_no_job(service: Service, server: OddServer) -> None:
    photos = _upload(service, server, 2)
    service.redis.set(keys.databases("process"), "theirs")
    ended = service.command("run")
    assert _counts(ended) == {"code": RedisRefusedError.exit_code, "released": 2}
    assert "rename or delete it" in ended.lines(event="run ended")[0]["error"]["message"]
    service.redis.delete(keys.databases("process"))
    assert service.run().summary["photos"] == len(photos)


def test_photos_are_processed_on_a_full_redis(service: Service, server: OddServer) -> None:
    photos = _upload(service, server, 2)
    service.redis.config_set("maxmemory", "1")
    try:
        ended = service.command("run", "--queues", "process", RUNNER_CONNECT_TIMEOUT_SECONDS="1")
    finally:
        service.redis.config_set("maxmemory", "0")
    assert {service.status(photo_id) for photo_id in photos} == {"NO_FACES_FOUND"}, ended.errors
    assert (ended.code, ended.summary["photos"]) == (0, 2), ended.errors


# The identity of a database


def test_a_database_is_the_same_over_every_connection_and_no_other_is(
    restricted: Service, service: Service, elsewhere: psycopg.Connection
) -> None:
    url = service.environment["DATABASE_URL"]
    with (
        opened(url) as ours,
        opened(restricted.environment["DATABASE_URL"]) as limited,
        opened(_url(elsewhere)) as other,
    ):
        before = identity(ours, "db/5432")
        assert identity(limited, "db/5432") == before
        assert identity(other, "db/5432") != before
        assert identity(ours, "restored/5432") != before
    service.connection.execute('ALTER TABLE "Photo" RENAME TO "Old"')
    service.connection.execute('CREATE TABLE "Photo" (LIKE "Old" INCLUDING ALL)')
    with opened(url) as ours:
        assert identity(ours, "db/5432") != before


def test_a_role_that_may_not_ask_for_the_servers_identifier_still_gets_an_identity(
    restricted: Service, service: Service
) -> None:
    service.connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    with opened(restricted.environment["DATABASE_URL"]) as connection:
        assert identity(connection, "db/5432") == identity(connection, "db/5432") != identity(connection, "other/5432")


# Changes while a run works: between the statement that finds a photo and the one that stores its outcome


class _Hooked(dict[str, bytes]):
    """Files of which each is served after `hook`."""

    hook: Callable[[], None] = staticmethod(lambda: None)

    def get(self, name: str, default: Any = None) -> Any:
        self.hook()
        return super().get(name, default)


COPY = (
    'ALTER TABLE "Photo" RENAME TO "Original"; CREATE TABLE "Photo" (LIKE "Original" INCLUDING ALL);'
    """INSERT INTO "Photo" (id, status) VALUES ('another', 'READY')"""
)
# The event, its reversal, and the message of the run.
CHANGES = {
    "the table renamed": ('ALTER TABLE "Photo" RENAME TO "Original"', 'ALTER TABLE "Original" RENAME TO "Photo"', 2),
    "the table replaced by another": (COPY, 'DROP TABLE "Photo"; ALTER TABLE "Original" RENAME TO "Photo"', INVISIBLE),
    "the type of a column changed": (
        'ALTER TABLE "Photo" ALTER status DROP DEFAULT, ALTER status TYPE int USING 1',
        """ALTER TABLE "Photo" ALTER status TYPE "PhotoStatus" USING 'UPLOADED'::"PhotoStatus",
           ALTER status SET DEFAULT 'UPLOADED'""",
        2,
    ),
    "USAGE of the schema revoked": (
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
        "GRANT USAGE ON SCHEMA public TO PUBLIC",
        2,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_database_that_changes_while_a_run_works_loses_no_photo(service: Service, role: str, change: str) -> None:
    happens, undone, code = CHANGES[change]
    url = service.environment["DATABASE_URL"]
    ours = {"DATABASE_URL": url.replace("postgres@", f"{role}@"), "EMBEDDINGS_DATABASE_URL": url}
    found = threading.Event()

    def hook() -> None:
        wait_for(lambda: "PROCESSING" in service.api.statuses().values())
        if not found.is_set():
            found.set()
            wait_for(lambda: service.redis.zcard(keys.databases("process")))
            service.connection.execute(happens.encode())
            service.connection.execute(
                f'GRANT SELECT, UPDATE ON "Photo" TO {role}'.encode() if "another" in change else b""
            )

    files = _Hooked({"lake.jpg": jpeg(landscape(320, 200))})
    with OddServer(files) as server:
        (photo_id,) = _upload(service, server, 1)
        files.hook = hook
        ended = service.command("run", **ours, RUNNER_FAILURE_DELAY_SECONDS="0")
        assert found.is_set()
        assert (ended.code, _counts(ended).get("photo_gone", 0)) == (code, 0), ended.errors
        assert len(places(service.redis).all) == 1
        assert places(service.redis).dead == {}
        service.connection.execute(undone.encode())
        service.connection.execute("""UPDATE "Photo" SET status = 'UPLOADED'""")
        files.hook = lambda: None
        _heals(service, [photo_id], **ours)
