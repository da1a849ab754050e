"""Settings: one message names every invalid one, and contains no secret."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from runner.errors import SettingsError
from runner.settings import Settings, load, postgres_conninfo, unknown_variables

MINIMAL = {"REDIS_URL": "redis://redis:6379", "DATABASE_URL": "postgresql://u:hidden@db/api"}


def test_settings_have_the_documented_defaults() -> None:
    settings = load(MINIMAL)
    assert settings.queues == ("compare", "process")
    assert (settings.max_jobs, settings.idle_seconds, settings.lease_seconds, settings.max_attempts) == (
        50,
        0,
        30,
        3,
    )
    assert settings.embeddings_database_url == settings.database_url
    assert settings.allow_private_addresses is False
    assert settings.model_dir == Path(sys.prefix) / "share" / "spottmee-worker" / "model"


def test_allowed_ports_are_read_as_ports_and_ranges() -> None:
    assert load(MINIMAL).allowed_ports == ()
    assert load(MINIMAL | {"RUNNER_ALLOWED_PORTS": "9000, 8000-8099,"}).allowed_ports == ((9000, 9000), (8000, 8099))


def test_flags_override_the_environment() -> None:
    settings = load(MINIMAL | {"RUNNER_MAX_JOBS": "7"}, {"max_jobs": "9", "queues": "process"})
    assert (settings.max_jobs, settings.queues) == (9, ("process",))


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(MINIMAL | {"RUNNER_MAX_JOBS": " ", "EMBEDDINGS_DATABASE_URL": ""}).max_jobs == 50


def test_an_empty_flag_is_an_error_that_names_it() -> None:
    flagged = [item for item in fields(Settings) if item.metadata["flag"]]
    assert flagged
    for item in flagged:
        for value in ("", " "):
            with pytest.raises(SettingsError, match=f"{item.metadata['flag']} is empty: omit it"):
                load(MINIMAL | {item.metadata["env"]: "1"}, {item.name: value})


def test_one_message_names_every_invalid_setting() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"DATABASE_URL": "mysql://u:hidden@db/x", "RUNNER_MAX_JOBS": "0", "RUNNER_IDLE_SECONDS": "soon"})
    message = str(caught.value)
    for name in ("REDIS_URL is missing", "DATABASE_URL must", "RUNNER_MAX_JOBS must", "RUNNER_IDLE_SECONDS must"):
        assert name in message
    assert "hidden" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNNER_QUEUES", "compare,other"), ("RUNNER_QUEUES", "process,process"), ("RUNNER_QUEUES", ","),
        ("RUNNER_MAX_JOBS", "1.5"), ("RUNNER_MAX_JOBS", "-1"), ("RUNNER_LEASE_SECONDS", "0"),
        ("RUNNER_LEASE_SECONDS", "nan"), ("RUNNER_MAX_SECONDS", "inf"), ("RUNNER_ALLOW_PRIVATE_ADDRESSES", "perhaps"),
        ("RUNNER_LOG_FORMAT", "xml"), ("REDIS_URL", "http://redis"), ("REDIS_URL", "redis://"),
        ("EMBEDDINGS_DATABASE_URL", "nonsense"), ("DATABASE_URL", "postgresql://[::1"),
        ("RUNNER_FETCH_PROXY_URL", "http://a:12,b"), ("RUNNER_FETCH_PROXY_URL", "http://h:99999"),
        ("DATABASE_URL", "postgresql://a@b@c/d"),
        ("DATABASE_URL", "postgresql://h:1/a\x7f"), ("REDIS_URL", "redis://h/0#x"), ("REDIS_URL", "redis://a:b/c@h/0"),
        ("RUNNER_ALLOWED_PORTS", "http"), ("RUNNER_ALLOWED_PORTS", "0"), ("RUNNER_ALLOWED_PORTS", "65536"),
        ("RUNNER_ALLOWED_PORTS", "9000-8000"), ("RUNNER_ALLOWED_PORTS", "80-"), ("RUNNER_ALLOWED_PORTS", "-1"),
    ],
)  # fmt: skip
def test_invalid_values_are_rejected(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(MINIMAL | {name: value})


@pytest.mark.parametrize("name", sorted(item.metadata["env"] for item in fields(Settings)))
def test_a_value_that_is_not_utf_8_is_rejected_without_repeating_it(name: str) -> None:
    begin = {"REDIS_URL": "redis://:", "DATABASE_URL": "postgresql://u:", "EMBEDDINGS_DATABASE_URL": "postgresql://u:"}
    with pytest.raises(SettingsError, match=f"{name} contains bytes that are not UTF-8") as caught:
        load(MINIMAL | {name: f"{begin.get(name, '')}hidden\udcff@h"})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["redis://user:hidden@redis/0", "redis://u:a/hidden@h", '{"selfie": "hidden"}', "hidden" * 40, "hidden" * 20_000],
)
def test_no_message_repeats_a_value_that_may_be_secret_or_is_long(value: str) -> None:
    messages = {name: _message(name, value) for name in (item.metadata["env"] for item in fields(Settings))}
    assert {name for name, message in messages.items() if "hidden" in message or len(message) > 500} == set()
    for name in ("RUNNER_MAX_JOBS", "RUNNER_QUEUES", "RUNNER_LOG_LEVEL", "RUNNER_ALLOWED_PORTS"):
        assert name in messages[name]


def _message(name: str, value: str) -> str:
    """Return the message about a variable with this value; empty if the value is valid."""
    try:
        load(MINIMAL | {name: value}, required=())
    except SettingsError as error:
        return str(error)
    return ""


def test_a_wrong_value_is_repeated_in_one_line_without_control_characters() -> None:
    with pytest.raises(SettingsError) as caught:
        load(MINIMAL | {"RUNNER_MAX_JOBS": "5\x1b[31m\n6\u202e"})
    assert r"(got '5\x1b[31m\n6\u202e')" in caught.value.detail


def test_the_name_of_an_unknown_variable_is_repeated_only_if_it_is_short() -> None:
    (warning,) = unknown_variables({"RUNNER_" + "X" * 100_000: "1"})
    assert len(warning) < 200


def test_the_repr_of_settings_contains_no_secret() -> None:
    settings = load(MINIMAL | {"REDIS_URL": "redis://:hidden@redis", "RUNNER_FETCH_PROXY_URL": "http://u:hidden@proxy"})
    assert "hidden" not in repr(settings)
    assert isinstance(settings, Settings)


def test_a_prisma_url_is_split_into_what_libpq_takes_and_the_schema() -> None:
    url = "postgresql://u:p%40s@db:5432/api?schema=album&connection_limit=5&sslmode=require"
    assert postgres_conninfo(url) == ("postgresql://u:p%40s@db:5432/api?sslmode=require", "album")
    assert postgres_conninfo("postgresql://db/api") == ("postgresql://db/api", None)


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("redis://redis:6379/3", {}, "redis://redis:6379/3"),
        ("redis://redis/0", {"REDIS_PASSWORD": "p@ss:w/ö#?&%40"}, "redis://:p%40ss%3Aw%2F%C3%B6%23%3F%26%2540@redis/0"),
        ("rediss://a:b@redis/0?x=1", {"REDIS_USERNAME": "c"}, "rediss://c:b@redis/0?x=1"),
        ("redis://a:b@redis/0", {"REDIS_PASSWORD": "d"}, "redis://a:d@redis/0"),
        ("redis+cluster://r0:6379,r1:6379", {"REDIS_PASSWORD": "d"}, "redis+cluster://:d@r0:6379,r1:6379"),
        ("redis://redis/0", {"REDIS_SENTINEL_PASSWORD": "s"}, "redis://redis/0"),
        (
            "redis+sentinel://:m@s0,s1/party/2?ssl_ca_certs=/a/b&sentinel_password=old",
            {"REDIS_SENTINEL_USERNAME": "w", "REDIS_SENTINEL_PASSWORD": "s&s"},
            "redis+sentinel://:m@s0,s1/party/2?ssl_ca_certs=%2Fa%2Fb&sentinel_username=w&sentinel_password=s%26s",
        ),
    ],
)
def test_separate_credentials_override_those_in_the_url(url: str, given: dict[str, str], expected: str) -> None:
    assert load(MINIMAL | {"REDIS_URL": url} | given).redis_url == expected


def test_a_separate_password_overrides_the_one_in_a_database_url() -> None:
    url, awkward = "postgresql://u:old@h0:5432,h1/api?schema=a&sslmode=require", "p@ss:w/ö#?&%40"
    settings = load(MINIMAL | {"DATABASE_URL": url, "DATABASE_PASSWORD": awkward})
    expected = "postgresql://u:p%40ss%3Aw%2F%C3%B6%23%3F%26%2540@h0:5432,h1/api?schema=a&sslmode=require"
    assert settings.database_url == settings.embeddings_database_url == expected
    other = {"EMBEDDINGS_DATABASE_URL": "postgresql://f@h2/faces", "EMBEDDINGS_DATABASE_PASSWORD": "x"}
    settings = load(MINIMAL | {"DATABASE_URL": url, "DATABASE_PASSWORD": awkward} | other)
    assert (settings.database_url, settings.embeddings_database_url) == (expected, "postgresql://f:x@h2/faces")


def test_the_variable_that_an_embeddings_url_comes_from_is_known() -> None:
    assert load(MINIMAL).embeddings_variable == "DATABASE_URL"
    other = {"EMBEDDINGS_DATABASE_URL": "postgresql://other/faces"}
    assert load(MINIMAL | other).embeddings_variable == "EMBEDDINGS_DATABASE_URL"


def test_the_repr_contains_no_separate_password() -> None:
    names = ("REDIS_PASSWORD", "REDIS_SENTINEL_PASSWORD", "DATABASE_PASSWORD", "EMBEDDINGS_DATABASE_PASSWORD")
    settings = load(MINIMAL | dict.fromkeys(names, "hidden"))
    assert "hidden" not in repr(settings)
