"""Messages about an unusable Redis: what is wrong, what to do, and the exit code."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from redis import Redis

from demo.servers import EmbeddedRedis
from runner.cli import main
from tests.support.redis_topologies import Cluster, Relay, Sentinels, server_context

Result = tuple[int, str, float]


def _status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, *, retry_seconds: str = "1"
) -> Result:
    """Return the exit code of a command, its messages, and its duration."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("RUNNER_CONNECT_TIMEOUT_SECONDS", retry_seconds)
    start = time.monotonic()
    code = main(["dead", "list"])
    return code, capsys.readouterr().err, time.monotonic() - start


@pytest.fixture
def limited(redis: Redis, redis_url: str) -> Iterator[str]:
    """The URL of a user who may do everything."""
    redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "+@all")
    yield redis_url.replace("://", "://limited:secret@")
    redis.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.parametrize(("command", "code"), [("eval", 2), ("select", 2), ("hello", 0)])
def test_a_command_that_the_acl_refuses_is_named(
    request: pytest.FixtureRequest, redis: Redis, limited: str, command: str, code: int
) -> None:
    redis.execute_command("ACL", "SETUSER", "limited", f"-{command}")
    url = limited.rsplit("/", 1)[0] + ("/1" if command == "select" else "/0?protocol=3")
    result = _status(request.getfixturevalue("monkeypatch"), request.getfixturevalue("capsys"), url)
    assert result[0] == code, result  # HELLO is not needed
    assert code == 0 or f"grant +{command}" in result[1]
    assert len(result[1].splitlines()) == 1


def test_a_server_that_never_answers_is_given_up_within_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, errors, seconds = _status(
            monkeypatch, capsys, f"redis://:secret@127.0.0.1:{silent.getsockname()[1]}", retry_seconds="0"
        )
    assert code == 75
    assert re.search(r"\(tried for (5\.\d|[6-9]\.\d) s\)", errors), errors
    assert 4 < seconds < 15


def test_a_command_that_the_server_does_not_have_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with EmbeddedRedis(arguments=["--rename-command", "EVAL", ""]) as server:
        code, errors, _ = _status(monkeypatch, capsys, server.url)
    assert code == 2, errors
    assert "renamed or disabled" in errors


def test_tls_to_a_plain_port_is_explained_within_seconds(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):  # whether Redis answers depends on the random bytes of the handshake
        code, errors, seconds = _status(monkeypatch, capsys, redis_server.url.replace("redis://", "rediss://"))
        assert code == 2, errors
        assert "does not speak TLS" in errors
        assert seconds < 8


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_tls_to_plain_ports_of_a_cluster_or_of_sentinels_is_explained_within_seconds(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with Cluster("key") if kind == "cluster" else Sentinels() as servers:
        code, errors, seconds = _status(monkeypatch, capsys, servers.url.replace("redis+", "rediss+"))
        assert code == 2, errors
        assert "does not speak TLS" in errors
        assert seconds < 13  # two nodes of the cluster are tried, 5 s each


def test_a_certificate_for_another_host_name_is_explained(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Relay(lambda: redis_server.port, server_context(authority)) as relay:
        url = f"rediss://localhost:{relay.port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        code, errors, _ = _status(monkeypatch, capsys, url)
        assert (code, "another host name" in errors) == (2, True), errors
        assert _status(monkeypatch, capsys, url.replace("localhost", "127.0.0.1"))[0] == 0


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("ssl_ciphers=none", "ssl_ciphers names no cipher"),
        ("ssl_ca_certs={file}", "PEM format"),
        ("ssl_certfile={file}", "PEM format"),
    ],
)
def test_tls_files_and_ciphers_that_cannot_be_used_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], redis_url: str, parameter: str, message: str
) -> None:
    url = f"{redis_url.replace('redis://', 'rediss://')}?{parameter.format(file=__file__)}"
    code, errors, _ = _status(monkeypatch, capsys, url)
    assert (code, message in errors) == (2, True), errors


def test_a_socket_path_that_is_too_long_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, errors, _ = _status(monkeypatch, capsys, f"unix:///{'a' * 200}")
    assert (code, "socket is too long" in errors) == (2, True), errors
