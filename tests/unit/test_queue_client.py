"""The connection to Redis: what a URL says, what is retried, and what never appears in a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis import exceptions

from runner.errors import RedisFullError, RedisUnreachableError, SettingsError
from runner.queue.client import parse_url
from runner.queue.failures import reason
from runner.queue.retrying import CommandRetries, is_refusal, is_transient
from tests.support.clock import Clock

SECRET = "hunter2"


def fields_of(url: str) -> tuple[Any, ...]:
    address = parse_url(url)
    return (address.kind, address.hosts, address.master, address.database, address.options)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", ("standalone", [("h", 6379)], "", 0, {})),
        ("redis://h:7/3", ("standalone", [("h", 7)], "", 3, {})),
        ("redis://h/?db=4", ("standalone", [("h", 6379)], "", 4, {})),
        ("redis://[::1]:7", ("standalone", [("::1", 7)], "", 0, {})),
        ("redis://:p%40%2F%25@h", ("standalone", [("h", 6379)], "", 0, {"password": "p@/%"})),
        ("redis://u%3A:p@h", ("standalone", [("h", 6379)], "", 0, {"username": "u:", "password": "p"})),
        ("rediss://h", ("standalone", [("h", 6379)], "", 0, {"ssl": True})),
        ("redis://h?socket_timeout=1.5", ("standalone", [("h", 6379)], "", 0, {"socket_timeout": 1.5})),
        (
            "rediss://h?ssl_check_hostname=false&ssl_cert_reqs=none",
            ("standalone", [("h", 6379)], "", 0, {"ssl": True, "ssl_check_hostname": False, "ssl_cert_reqs": "none"}),
        ),
        ("redis+cluster://a,b:7,[::1]:8", ("cluster", [("a", 6379), ("b", 7), ("::1", 8)], "", 0, {})),
        ("rediss+cluster://:p@a/0", ("cluster", [("a", 6379)], "", 0, {"password": "p", "ssl": True})),
        ("redis+sentinel://a,b:7/main/2", ("sentinel", [("a", 26379), ("b", 7)], "main", 2, {})),
        ("redis+sentinel://:p@a/my%20main", ("sentinel", [("a", 26379)], "my main", 0, {"password": "p"})),
    ],
)  # fmt: skip
def test_every_form_of_url_is_parsed(url: str, expected: tuple[Any, ...]) -> None:
    assert fields_of(url) == expected


def test_a_unix_socket_url_is_parsed() -> None:
    address = parse_url("unix:///run/redis.sock?db=2")
    assert (address.kind, address.socket, address.database, address.hosts) == ("standalone", "/run/redis.sock", 2, [])


def test_sentinels_have_their_own_credentials_and_the_same_tls(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("")
    url = f"rediss+sentinel://u:p@a/main?sentinel_username=s&sentinel_password=q&ssl_ca_certs={authority}"
    address = parse_url(url)
    assert address.options == {"username": "u", "password": "p", "ssl": True, "ssl_ca_certs": str(authority)}
    assert address.sentinel_options == {
        "username": "s", "password": "q", "ssl": True, "ssl_ca_certs": str(authority),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"redis://u:{SECRET}@h:port", "hosts, ports"),
        (f"redis://u:{SECRET}@h:70000", "hosts, ports"),
        (f"redis://u:{SECRET}@[::1", "hosts, ports"),
        (f"redis://u:{SECRET}@", "host is missing"),
        (f"redis://u:{SECRET}@a,b", "several hosts"),
        (f"redis+cluster://u:{SECRET}@a,,b", "host is missing"),
        (f"redis+cluster://u:{SECRET}@a/1", "only number 0"),
        (f"redis+sentinel://u:{SECRET}@a", "no master"),
        (f"redis+sentinel://u:{SECRET}@a/main/x", "database must be a number"),
        (f"redis://u:{SECRET}@a/x", "database must be a number"),
        (f"redis://u:{SECRET}@a/-1", "database must be a number"),
        (f"redis://u:{SECRET}@a/1/2", "database must be a number"),
        (f"redis://u:{SECRET}@a?decode_responses=1", "unknown parameter decode_responses"),
        (f"rediss://u:{SECRET}@a?ssl_ca_certs=%00", "cannot be read"),
        (f"redis://u:{SECRET}@a?{SECRET}=1", "unknown parameter"),
        (f"redis://u:{SECRET}@a?sentinel_password=x", "unknown parameter sentinel_password"),
        (f"redis://u:{SECRET}@a?nonsense", "parameters"),
        (f"redis://u:{SECRET}@a/{'9' * 5000}", "database must be a number"),
        (f"redis://u:{SECRET}@a?socket_timeout=soon", "value of socket_timeout"),
        (f"redis://u:{SECRET}@a?socket_timeout=0", "value of socket_timeout"),
        (f"redis://u:{SECRET}@a?socket_connect_timeout=1e400", "value of socket_connect_timeout"),
        (f"redis+cluster://u:{SECRET}@a?socket_timeout=nan", "value of socket_timeout"),
        (f"redis://u:{SECRET}@a?client_name=a%20b", "value of client_name"),
        (f"redis://u:{SECRET}@a?client_name=%C3%BC", "value of client_name"),
        (f"redis+sentinel://u:{SECRET}@a/main?protocol=4", "value of protocol"),
        (f"rediss://u:{SECRET}@a?ssl_cert_reqs=maybe", "value of ssl_cert_reqs"),
        (f"redis://u:{SECRET}@a?ssl_cert_reqs=none", "rediss"),
        (f"rediss://u:{SECRET}@a?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs names a file that cannot be read"),
    ],
)
def test_malformed_urls_are_rejected(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        parse_url(url)
    assert SECRET not in str(refused.value)
    assert refused.value.exit_code == 2


def test_an_address_shows_no_password() -> None:
    assert SECRET not in repr(parse_url(f"redis://u:{SECRET}@h"))


TRANSIENT = [
    exceptions.ConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused."),
    exceptions.TimeoutError("Timeout reading from socket"),
    exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
    exceptions.ReadOnlyError("You can't write against a read only replica."),
    exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    exceptions.ClusterDownError("The cluster is down"),
    exceptions.MasterDownError("Link with MASTER is down"),
    exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
    exceptions.MovedError("1 127.0.0.1:7"),
    exceptions.RedisClusterException("Redis Cluster cannot be connected."),
    exceptions.SlotNotCoveredError("Slot 1 is not covered"),
    exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    exceptions.ResponseError("BUSY Redis is busy running a script."),
    exceptions.ResponseError("ERR Error running script (call to f_1): @user_script:7: -OOM command not allowed"),
    exceptions.ResponseError("ERR Error running script (call to f_1): @user_script:7: -READONLY You can't write"),
]
REFUSALS = [
    exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
    exceptions.AuthorizationError("no"),
    exceptions.NoPermissionError("User w has no permissions to run the 'eval' command"),
    exceptions.ResponseError("ERR ACL failure in script: User w has no permissions to run the 'lpop' command"),
    exceptions.ResponseError("The user executing the script can't run this command or subcommand"),
    exceptions.ResponseError("DB index is out of range"),
    exceptions.ConnectionError("Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
    exceptions.ConnectionError("Error while reading: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert"),
]
NEITHER = [
    exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    exceptions.NoScriptError("No matching script."),
    exceptions.DataError("Invalid input of type"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=str)
def test_a_command_is_retried_after_transient_errors(error: Exception, clock: Clock) -> None:
    assert is_transient(error)
    assert not is_refusal(error)
    errors, reconnected = [error, error, error], []

    def command() -> str:
        if errors:
            raise errors.pop()
        return "done"

    found = CommandRetries(10).call(command, before_retry=lambda: reconnected.append(clock.now))
    assert found == "done"
    assert reconnected == [sum(clock.waits[:count]) for count in (1, 2, 3)]


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_a_refused_command_is_not_retried(error: Exception) -> None:
    assert is_refusal(error)
    assert not is_transient(error)
    calls = []

    def command() -> None:
        calls.append(1)
        raise error

    with pytest.raises(SettingsError, match="REDIS_URL"):
        CommandRetries(10).call(command)
    assert len(calls) == 1


def test_an_error_that_becomes_a_refusal_ends_the_retries(clock: Clock) -> None:
    errors = [REFUSALS[0], TRANSIENT[0]]

    def command() -> None:
        raise errors.pop()

    with pytest.raises(SettingsError, match="REDIS_URL"):
        CommandRetries(10).call(command)
    assert len(clock.waits) == 1


@pytest.mark.parametrize("error", [*NEITHER, ValueError("BUSY"), OSError("READONLY")], ids=str)
def test_other_errors_are_raised_unchanged(error: Exception) -> None:
    assert not is_transient(error)
    assert not is_refusal(error)

    def command() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        CommandRetries(10).call(command)
    assert caught.value is error


def test_commands_fail_as_unreachable_when_the_time_is_up(clock: Clock) -> None:
    def command() -> None:
        raise exceptions.ConnectionError("Connection refused.")

    with pytest.raises(RedisUnreachableError, match=r"Connection refused.*tried for (2[6-9]|30) s") as ended:
        CommandRetries(30).call(command)
    assert ended.value.exit_code == 75
    assert 25 < clock.now <= 30


def test_the_message_says_how_long_the_attempts_took(clock: Clock) -> None:
    def silent() -> None:
        clock.now += 20
        raise exceptions.TimeoutError("Timeout reading from socket")

    with pytest.raises(RedisUnreachableError, match=r"\(tried for 40 s\)"):
        CommandRetries(5).call(silent)
    with pytest.raises(RedisUnreachableError, match=r"\(tried for 20 s\)"):
        CommandRetries(0).call(silent)


def test_a_full_server_is_named_as_such(clock: Clock) -> None:
    def command() -> None:
        raise exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")

    with pytest.raises(RedisFullError, match=r"tried for (0\.\d|1\.0) s"):
        CommandRetries(1).call(command)


def test_a_password_that_the_server_repeats_is_removed(clock: Clock) -> None:
    def command() -> None:
        raise exceptions.ConnectionError(f"cannot reach {SECRET}")

    with pytest.raises(RedisUnreachableError) as caught:
        CommandRetries(1, secrets=[SECRET]).call(command)
    assert SECRET not in str(caught.value)


def test_a_reason_does_not_repeat_the_command() -> None:
    shown = reason(
        exceptions.ResponseError(f"unknown command 'HELLO', with args beginning with: '3' 'AUTH' '{SECRET}'")
    )
    assert shown == "unknown command 'HELLO'"
    assert reason(exceptions.TimeoutError()) == "TimeoutError"
    assert reason(exceptions.ConnectionError("one\ntwo")) == "one"
