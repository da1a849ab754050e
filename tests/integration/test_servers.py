"""The embedded servers: where PostgreSQL's programs are run, and that a stop leaves nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psycopg
import pytest

from demo import servers
from demo.servers import NOBODY, EmbeddedPostgres, EmbeddedRedis, EmbeddedServerError, postgres_binaries


def test_a_stopped_server_leaves_no_folder() -> None:
    with EmbeddedRedis() as valkey:
        folder, pid = valkey.directory, valkey.pid
        assert folder.exists()
    assert not folder.exists()
    assert not Path("/proc", str(pid)).exists()


def test_data_survive_a_restart(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with EmbeddedPostgres(settings=["max_connections=11"]) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.restart()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
            assert connection.execute("SHOW max_connections").fetchone() == ("11",)


def test_a_server_reports_a_port_in_use() -> None:
    with EmbeddedRedis() as first, pytest.raises(EmbeddedServerError, match="in use"), EmbeddedRedis(port=first.port):
        pass


def test_programs_in_an_inaccessible_folder_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_enterable", lambda _: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    first = postgres_binaries(NOBODY)
    assert tmp_path in first.parents
    made = first.stat().st_mtime_ns
    assert postgres_binaries(NOBODY) == first
    assert first.stat().st_mtime_ns == made
    assert os.access(first / "postgres", os.X_OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_copy_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_enterable", lambda _: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    copy = postgres_binaries(NOBODY).parents[2]
    os.chown(copy, NOBODY, NOBODY)
    with pytest.raises(EmbeddedServerError, match="another user"):
        postgres_binaries(NOBODY)
