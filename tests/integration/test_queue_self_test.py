"""`doctor` checks every right and every key without touching a job, and `run` loses no job if Redis refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner.errors import MissingRightError
from runner.queue import keys, rights
from runner.queue.client import connect
from runner.queue.self_test import LIFETIME_SECONDS, SelfTest
from runner.settings import load
from tests.support.queue_tools import closing_clients
from tests.support.redis_topologies import acl_line

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.run_tools import Service

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "redis-keys.md"
WORDS = acl_line(PAGE.read_text(encoding="utf-8")).split()
COMMANDS = {word for word in WORDS if word.startswith("+")}
MOST = rights.RIGHTS.keys() - {"forget"}
PATTERNS = {word for word in WORDS if word.startswith("~")}


@pytest.fixture(autouse=True)
def _closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from closing_clients(monkeypatch, __name__)


@pytest.fixture
def limited_url(redis: Redis, redis_url: str) -> Iterator[str]:
    """The URL of a user with exactly the documented rights."""
    redis.execute_command("ACL", "SETUSER", WORDS[1], "reset", *WORDS[2:])
    yield redis_url.replace("://", f"://{WORDS[1]}:{WORDS[3].removeprefix('>')}@")
    redis.execute_command("ACL", "DELUSER", WORDS[1])


@pytest.fixture
def limited(limited_url: str) -> Redis:
    return connect(load({"REDIS_URL": limited_url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1"}, required=("redis_url",)))


def missing(client: Redis) -> set[str]:
    try:
        SelfTest(client).require_rights(MOST)
    except MissingRightError as error:
        return set(error.grant.split())
    return set()


def test_the_documented_rights_suffice_and_every_key_is_removed(redis: Redis, limited: Redis) -> None:
    test = SelfTest(limited)
    test.require_rights(MOST)
    test.play()
    test.clean_up()
    assert redis.keys() == []


def test_each_missing_command_is_named(redis: Redis, limited: Redis) -> None:
    for command in COMMANDS - {"+ping", "+publish"}:  # connecting needs the first already, and nothing the second
        redis.execute_command("ACL", "SETUSER", WORDS[1], f"-{command[1:]}")
        assert missing(limited) == {command}
        redis.execute_command("ACL", "SETUSER", WORDS[1], command)
    assert missing(limited) == set()
    assert redis.keys() == []


def test_all_missing_commands_are_named_at_once(redis: Redis, limited: Redis) -> None:
    lacking = ("+hset", "+zadd", "+rpush", "+lpop", "+time")
    redis.execute_command("ACL", "SETUSER", WORDS[1], *(f"-{command[1:]}" for command in lacking))
    assert missing(limited) == set(lacking)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_a_missing_key_pattern_is_named(pattern: str, redis: Redis, limited: Redis) -> None:
    redis.execute_command("ACL", "SETUSER", WORDS[1], "resetkeys", *(PATTERNS - {pattern}))
    assert missing(limited) == {pattern}
    redis.execute_command("ACL", "SETUSER", WORDS[1], "resetkeys")
    assert missing(limited) == PATTERNS


def test_keys_that_cannot_be_removed_expire(redis: Redis, limited: Redis) -> None:
    test = SelfTest(limited)
    redis.execute_command("ACL", "SETUSER", WORDS[1], "-del")
    with pytest.raises(MissingRightError, match=r"grant \+del "):
        test.play()
    test.clean_up()
    left: dict[str, Any] = {raw.decode(): redis.ttl(raw) for raw in redis.scan_iter()}
    assert left
    assert {key: seconds for key, seconds in left.items() if not 0 < seconds <= 3600} == {}
    assert {key for key, seconds in left.items() if seconds > LIFETIME_SECONDS and ":last:" not in key} == set()


def test_doctor_names_every_missing_right_and_changes_nothing(service: Service, limited_url: str) -> None:
    service.api.upload({"a": "http://127.0.0.1:1/a.jpg"})
    service.redis.execute_command("ACL", "SETUSER", WORDS[1], "-hset", "-zadd")
    before = sorted(service.redis.keys())
    ended = service.command("doctor", "--json", REDIS_URL=limited_url)
    (check,) = [check for check in json.loads(ended.output) if check["name"] == "Redis"]
    assert (ended.code, check["ok"]) == (2, False)
    assert "grant +hset +zadd (ACL in docs/reference/redis-keys.md)" in check["message"]
    assert sorted(service.redis.keys()) == before


@pytest.mark.parametrize("key", [keys.claimed("process"), keys.dead("compare"), keys.unconfirmed()])
def test_doctor_and_run_name_a_key_of_another_type_and_no_job_is_lost(service: Service, key: str) -> None:
    service.api.upload({"a": "http://127.0.0.1:1/a.jpg"})
    service.redis.set(key, "in the way")
    for command in ("doctor", "run"):
        ended = service.command(command)
        assert ended.code == 1
        assert key in ended.output + ended.errors
        assert "rename or delete it" in ended.output + ended.errors
        assert "Traceback" not in ended.errors
        assert service.redis.llen(keys.list_key("process")) == 1
    assert service.command("doctor").output.count("FAIL") == 1
    service.redis.delete(key)
    assert service.run(RUNNER_MAX_ATTEMPTS="1").summary["claimed"] == 1


def test_a_run_without_the_right_to_write_leases_loses_no_job(service: Service, limited_url: str) -> None:
    service.api.upload({"a": "http://127.0.0.1:1/a.jpg", "b": "http://127.0.0.1:1/b.jpg"})
    for command in ("hset", "zadd", "zrem"):
        service.redis.execute_command("ACL", "SETUSER", WORDS[1], f"-{command}")
        ended = service.command("run", REDIS_URL=limited_url)
        service.redis.execute_command("ACL", "SETUSER", WORDS[1], f"+{command}")
        assert ended.code == 2
        assert f"grant +{command} " in ended.errors
        assert service.leftovers() == {"process waiting": 2}
    ended = service.command("run", REDIS_URL=limited_url, RUNNER_MAX_ATTEMPTS="1")
    assert (ended.code, ended.summary["claimed"], ended.summary["dead_lettered"]) == (0, 2, 2)


def test_on_a_full_redis_comparisons_are_released_uncounted(service: Service) -> None:
    """Their results cannot be written: however long that lasts, it costs no attempt."""
    job_id = service.api.compare(b"no image", [])
    try:
        service.redis.config_set("maxmemory-policy", "noeviction")
        service.redis.config_set("maxmemory", 1)
        for _ in range(4):  # one more than a job has attempts
            ended = service.command("run", RUNNER_CONNECT_TIMEOUT_SECONDS="0.2")
            assert ended.code == 75
            assert "maxmemory" in ended.errors
            assert (ended.summary["claimed"], ended.summary["released"], ended.summary["unsettled"]) == (1, 1, 0)
    finally:
        service.redis.config_set("maxmemory", 0)
    ended = service.run()
    assert [line["attempt"] for line in ended.log if line.get("comparison") == job_id] == [1]
    assert service.redis.get(keys.match_result(job_id)) == b"[]"


def test_a_run_without_the_right_to_write_results_releases_comparisons(service: Service, limited_url: str) -> None:
    job_id = service.api.compare(b"no image", [])
    service.redis.execute_command("ACL", "SETUSER", WORDS[1], "resetkeys", *(PATTERNS - {"~match-result:*"}))
    for _ in range(4):  # one more than a job has attempts
        ended = service.command("run", REDIS_URL=limited_url)
        assert ended.code == 2
        assert "grant ~match-result:* " in ended.errors
        assert (ended.summary["claimed"], ended.summary["released"], ended.summary["unsettled"]) == (1, 1, 0)
    service.redis.execute_command("ACL", "SETUSER", WORDS[1], *PATTERNS)
    ended = service.command("run", REDIS_URL=limited_url)
    assert [line["attempt"] for line in ended.log if line.get("comparison") == job_id] == [1]
    assert service.redis.get(keys.match_result(job_id)) == b"[]"
