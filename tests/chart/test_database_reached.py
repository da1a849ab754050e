"""The environment that the chart gives a pod connects to a real PostgreSQL: password of its own, and verify-full."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import trustme
from psycopg import sql

from demo.servers import EmbeddedPostgres
from runner import settings
from runner.errors import SettingsError
from runner.store.database import connect
from tests.support.redis_topologies import Relay, server_context
from tools import binaries
from tools.render import environment, render

AWKWARD = "p@ss:w/ö%41 #?&$(HOME)\"'\\"
USER = "api app"
MOUNT = "/etc/ca-postgresql"


def _require_password(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(USER), sql.Literal(AWKWARD))
        connection.execute(role)
        (server.data / "pg_hba.conf").write_text(
            f'host all "{USER}" 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust\n'
        )
        connection.execute("SELECT pg_reload_conf()")


def _given(port: int, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a pod whose Secrets are in `tmp_path` and hold the awkward password."""
    values = {
        # libpq then speaks TLS from the first byte, so that a plain TLS relay can stand before the embedded server.
        "database": {"host": "127.0.0.1", "port": port, "name": "postgres", "username": USER,
                     "parameters": {"sslnegotiation": "direct", "schema": "public"}},
        "authorities": {"postgresql": {"existingSecret": "pg-ca"}},
    }  # fmt: skip
    objects = render(binaries.HELM_4, values)
    given = environment(dict(objects.pods())["faces-process"], objects)
    return {name: value.replace(MOUNT, str(tmp_path)) for name, value in given.items()} | {"DATABASE_PASSWORD": AWKWARD}


def test_a_password_of_its_own_and_a_private_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = server_context(authority)
    context.set_alpn_protocols(["postgresql"])
    with EmbeddedPostgres() as server, Relay(lambda: server.port, context) as relay:
        _require_password(server)
        given = _given(relay.port, tmp_path)
        url = settings.load(given).database_url
        for name in ("PGSSLROOTCERT", "PGSSLMODE"):
            monkeypatch.setenv(name, given[name])
        authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
        session = connect(url, seconds=5, application_name="test")
        assert session.execute("SELECT current_user").fetchone() == (USER,)
        session.close()
        other.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
        with pytest.raises(SettingsError, match="certificate verify failed") as caught:
            connect(url, seconds=5, application_name="test")
        assert AWKWARD not in str(caught.value)
