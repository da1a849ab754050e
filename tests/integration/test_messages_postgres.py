"""Messages about an unusable PostgreSQL: what is wrong, with which variable, and what to do."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trustme

from demo import api
from demo.api import PROCESS_LIST
from demo.servers import EmbeddedPostgres
from runner.errors import DatabaseUnreachableError, SettingsError
from runner.store.database import connect
from tests.support.debian_postgres import DebianPostgres
from tests.support.queue_tools import places
from tests.support.redis_topologies import Relay
from tests.support.run_tools import Service
from tests.support.store_tools import Command

OPTIONS = "options=-c%20statement_timeout%3D12345"


def test_a_server_that_never_answers_is_given_up_within_seconds() -> None:
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(DatabaseUnreachableError, match=r"timeout expired \(tried for ([7-9]\.\d|1\d) s\)"):
            connect(url, seconds=1, application_name="test")
    assert 6.5 < time.monotonic() - start < 18


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TlsRelay(Relay):
    """Forwards to a server of PostgreSQL, and uses TLS with the client as its protocol requires."""

    def _serve(self, client: socket.socket) -> None:
        if client.recv(8) != struct.pack("!ii", 8, 80877103):  # SSLRequest
            client.close()
            return
        client.sendall(b"S")
        super()._serve(client)


@pytest.fixture(scope="module")
def tls_url(authority: trustme.CA, postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL, by address, of a server with TLS, whose certificate is for localhost alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with TlsRelay(lambda: postgres_server.port, context) as relay:
        yield f"postgresql://postgres@127.0.0.1:{relay.port}/api_template"


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


TLS_CASES = {
    "another host name": ("127.0.0.1", "sslmode=verify-full&sslrootcert={ca}", "is for another host name"),
    "an unknown authority": ("localhost", "sslmode=verify-full&sslrootcert={other}", "sslrootcert=FILE"),
    "no file": ("localhost", "sslmode=verify-full&sslrootcert=/nowhere.pem", "sslrootcert=FILE"),
    "Prisma's sslcert, another name": (
        "127.0.0.1",
        "sslcert={ca}&sslaccept=strict",
        "is for another host name",
    ),
}


@pytest.mark.parametrize("name", TLS_CASES)
def test_a_certificate_that_cannot_be_accepted_is_explained_at_once(
    command: Command, tls_url: str, ca_file: Path, tmp_path: Path, name: str
) -> None:
    host, query, words = TLS_CASES[name]
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    url = f"{tls_url.replace('127.0.0.1', host)}?{query.format(ca=ca_file, other=other)}"
    code, _, errors = command(["migrate", "--check"], url)
    assert code == 2
    assert words in errors
    assert "DATABASE_URL" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "query",
    ["sslcert={ca}&sslaccept=strict", "sslcert={ca}", "sslmode=no-verify", "ssl=true", "sslmode=require&ssl=no-verify"],
)
def test_tls_as_prisma_and_node_postgres_write_it_is_used(tls_url: str, ca_file: Path, query: str) -> None:
    url = f"{tls_url.replace('127.0.0.1', 'localhost')}?{query.format(ca=ca_file)}"
    with connect(url, seconds=0, application_name="test") as connection:
        assert connection.pgconn.ssl_in_use


def test_tls_to_a_server_without_it_is_explained(command: Command, empty_database_url: str) -> None:
    code, _, errors = command(["migrate", "--check"], f"{empty_database_url}?sslmode=require")
    assert (code, "does not support SSL" in errors, "Remove sslmode" in errors) == (2, True, True), errors


@pytest.mark.parametrize(
    "query",
    [
        "connection_limit=5&pool_timeout=10&socket_timeout=5&pgbouncer=true&statement_cache_size=0",
        "max_connection_lifetime=9&max_idle_connection_lifetime=9&single_use_connections=true&sslaccept=strict",
        "uselibpqcompat=true&max=20&idleTimeoutMillis=30000&connectionTimeoutMillis=2000&statement_timeout=5000",
        "query_timeout=9&lock_timeout=9&idle_in_transaction_session_timeout=9&keepAlive=true",
        "pgbouncer=true&workaround=supabase-pooler.vercel&supa=base-pooler.x",
    ],
)
def test_parameters_of_other_clients_pools_are_ignored(empty_database_url: str, query: str) -> None:
    if "strict" in query:
        query = query.replace("&sslaccept=strict", "&sslaccept=accept_invalid_certs")
    with connect(f"{empty_database_url}?{query}", seconds=0, application_name="test") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_encoded_space_in_options_reaches_the_server(empty_database_url: str) -> None:
    with connect(f"{empty_database_url}?{OPTIONS}", seconds=0, application_name="test") as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("12345ms",)


@pytest.mark.parametrize(
    "query",
    [
        "target_session_attrs=any-server", "channel_binding=no", "require_auth=secret", "gssencmode=no",
        "load_balance_hosts=true", "ssl_min_protocol_version=1", "sslmode=yes", "keepalives_idle=0",
        "service=nowhere", "hostaddr=localhost", "host=..", "replication=perhaps",
        "options=statement_timeout", "options=-c%20statement_timeout", "options=-c%20nothing%3D1",
        "options=-c%20statement_timeout%3Dsoon", "options=-c%20work_mem%3D-5", "options=-c%20shared_buffers%3D1",
    ],
)  # fmt: skip
def test_a_parameter_with_an_unusable_value_is_refused_at_once(empty_database_url: str, query: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        connect(f"{empty_database_url}?{query}", seconds=30, application_name="test")


def test_a_schema_name_that_is_too_long_is_explained(command: Command, empty_database_url: str) -> None:
    code, _, errors = command(["migrate"], f"{empty_database_url}?schema={'x' * 64}")
    assert (code, "?schema=" in errors, "63 bytes" in errors) == (2, True, True), errors


def test_a_read_only_role_is_explained(command: Command, postgres_server: EmbeddedPostgres, database_url: str) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER".encode())
        connection.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on".encode())
        code, _, errors = command(["sweep"], database_url.replace("postgres@", f"{role}@"))
        connection.execute(f"DROP ROLE {role}".encode())
    assert code == 75
    assert "replica" in errors
    assert "RESET default_transaction_read_only" in errors
    assert "DATABASE_URL" in errors


def test_a_real_server_with_ssl_is_verified_and_another_host_name_is_explained(
    command: Command, authority: trustme.CA, ca_file: Path
) -> None:
    with DebianPostgres(certificate=authority.issue_cert("localhost")) as server:
        url = f"{server.url}?sslmode=verify-full&sslrootcert={ca_file}"
        code, _, errors = command(["migrate", "--check"], url)
        assert (code, "is for another host name" in errors, len(errors.splitlines())) == (2, True, 1), errors
        with connect(url.replace("127.0.0.1", "localhost"), seconds=0, application_name="test") as connection:
            assert connection.pgconn.ssl_in_use
    with DebianPostgres() as server:
        code, _, errors = command(["migrate", "--check"], f"{server.url}?sslmode=require")
        assert (code, "Remove sslmode" in errors) == (2, True), errors


def test_a_streaming_replica_is_explained_and_keeps_the_jobs(service: Service) -> None:
    with DebianPostgres() as primary:
        with psycopg.connect(primary.url, autocommit=True) as connection:
            api.create_table(connection)
            connection.execute("""INSERT INTO "Photo" (id, status) VALUES ('one', 'UPLOADED')""")
        with DebianPostgres(primary=primary) as replica:
            service.redis.rpush(PROCESS_LIST, json.dumps({"imageUrl": "http://127.0.0.1:1/a.jpg", "id": "one"}))
            own = service.environment["DATABASE_URL"]
            more = {"DATABASE_URL": replica.url, "EMBEDDINGS_DATABASE_URL": own, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1"}
            ended = service.command("run", **more)
            assert ended.code == 75, ended.errors
            assert "replica" in ended.errors
            assert "DATABASE_URL" in ended.errors
            assert len(places(service.redis).all) == 1
            assert places(service.redis).dead == {}
        assert service.command("run", **{**more, "DATABASE_URL": primary.url}).code == 0
