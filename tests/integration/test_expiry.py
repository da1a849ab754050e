"""A selfie has a bounded life wherever it is stored, even in a list without runs."""

from __future__ import annotations

import base64
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from runner.expire import expire_comparisons
from runner.queue import keys
from runner.queue.dead_letters import DeadLetters
from runner.queue.expiry import Expiry
from runner.queue.leases import Parked
from runner.queue.parking import Parking
from tests.support.queue_tools import pass_time, push, queue_of

if TYPE_CHECKING:
    from redis import Redis

    from tests.support.run_tools import Service

LIST = keys.list_key("compare")
SELFIE = base64.b64encode(b"the face of somebody" * 20).decode()
HOUR = 3600.0


def comparison(name: str, **more: object) -> bytes:
    return json.dumps({"jobId": name, "storedIds": ["a"], "selfie": SELFIE, **more}).encode()


def later(redis: Any, seconds: float) -> None:
    """Let `seconds` pass for what is waiting and what is leased."""
    past = round(seconds * 1000)
    rows = [row.split(b" ") for row in (redis.get(keys.seen("compare")) or b"").splitlines()]
    if rows:
        redis.set(keys.seen("compare"), b"".join(b"%d %s\n" % (int(since) - past, mark) for since, mark in rows))
    pass_time(redis, seconds, "compare")


def waiting(redis: Any) -> list[str]:
    return [json.loads(payload)["jobId"] for payload in redis.lrange(LIST, 0, -1)]


def where_selfies_are(redis: Any) -> set[str]:
    """Return every key of Redis that holds the selfie, whatever its type."""
    return {key.decode() for key in redis.scan_iter() if SELFIE[:200].encode() in _content(redis, key)}


def _content(redis: Any, key: bytes) -> bytes:
    read = {b"string": redis.get, b"hash": redis.hgetall, b"list": lambda one: redis.lrange(one, 0, -1),
            b"zset": lambda one: redis.zrange(one, 0, -1)}[redis.type(key)]  # fmt: skip
    found = read(key)
    values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
    return b"".join(values)


def test_a_parked_comparison_is_woken_at_its_timeout_and_ends_after_an_hour(service: Service) -> None:
    redis: Any = service.redis
    push(redis, [comparison("parked")], "compare")
    queue = queue_of(redis, "gone", name="compare")
    (lease,) = queue.claim(1)
    assert Parking(redis).announce(lease, ["a"], 600)
    assert queue.park(lease, "album_pending", SELFIE.encode()) is Parked.DONE
    later(redis, 599)
    assert expire_comparisons(redis) == 0
    assert queue.counts().parked == 1
    later(redis, 1)
    assert expire_comparisons(redis) == 0
    assert (queue.counts().parked, queue.counts().expired) == (0, 1)
    later(redis, HOUR - 600)
    assert expire_comparisons(redis) == 1
    assert (redis.get("match-result:parked"), where_selfies_are(redis)) == (b"[]", set())


def test_sweep_expires_the_comparisons_of_a_list_without_runs(service: Service) -> None:
    redis: Any = service.redis
    push(redis, [comparison("c1"), comparison("c2"), b'{"jobId": "c3", "selfie": "' + SELFIE.encode()], "compare")
    redis.set("match-result:c1", "INITIATED")
    redis.set("match-result:c2", '["there already"]')
    assert json.loads(service.command("sweep", "--json").output)["expired_comparisons"] == 0
    later(redis, HOUR - 60)
    assert json.loads(service.command("sweep", "--json").output)["expired_comparisons"] == 0
    push(redis, [comparison("young")], "compare")
    later(redis, 61)
    dry = service.command("sweep", "--dry-run")
    assert "3 comparisons" in dry.output
    assert redis.llen(LIST) == 4
    ended = service.command("sweep")
    assert ended.code == 0, ended.errors
    assert "3 comparisons that had waited for more than an hour were removed" in ended.output
    assert waiting(redis) == ["young"]
    assert [redis.get(f"match-result:{name}") for name in ("c1", "c2", "c3")] == [b"[]", b'["there already"]', b"[]"]
    assert 0 < redis.ttl("match-result:c1") <= HOUR
    assert json.loads(redis.get("face_embeddings:detail:c1"))["error"]["code"] == "expired"
    letters = list(DeadLetters(redis, "compare").all())
    assert [(letter.code, letter.attempts) for letter in letters] == [("expired", 0)] * 3
    assert all(HOUR - 1 <= letter.dead_lettered_at - letter.claimed_at < HOUR + 120 for letter in letters)
    assert where_selfies_are(redis) == {LIST}
    later(redis, HOUR)
    assert "1 comparisons" in service.command("sweep").output
    assert where_selfies_are(redis) == set()


@pytest.mark.parametrize("queues", ["process", "compare,process"])
def test_a_run_that_cannot_work_expires_comparisons_too(service: Service, queues: str) -> None:
    """PostgreSQL is unreachable: the run releases what it claims every time, and no attempt is counted."""
    redis: Any = service.redis
    push(redis, [comparison("c1"), comparison("c2")], "compare")
    broken = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "RUNNER_CONNECT_TIMEOUT_SECONDS": "0.1",
              "RUNNER_QUEUES": queues, "RUNNER_CLAIM_SIZE": "1"}  # fmt: skip
    push(redis, [b'{"id": "p", "imageUrl": "http://127.0.0.1:1/x"}'])
    assert service.command("run", **broken).code == 75
    later(redis, HOUR + 1)
    ended = service.command("run", **broken)
    assert ended.code == 75
    assert ended.lines(event="comparisons expired", count=2)
    assert redis.get("match-result:c1") == redis.get("match-result:c2") == b"[]"
    assert where_selfies_are(redis) == set()


def test_a_healthy_run_processes_old_comparisons(service: Service) -> None:
    redis: Any = service.redis
    push(redis, [comparison("c1")], "compare")
    expire_comparisons(redis)
    later(redis, 2 * HOUR)
    ended = service.run(RUNNER_RESULT_WATCH_SECONDS="0")
    assert ended.lines(comparison="c1", code="image_undecodable")
    assert not ended.lines(event="comparisons expired")


def test_sweep_reports_a_missing_or_unreachable_redis_and_sweeps_the_rest(service: Service) -> None:
    assert "set REDIS_URL" in service.command("sweep", REDIS_URL="").errors
    ended = service.command("sweep", REDIS_URL="redis://127.0.0.1:1", RUNNER_CONNECT_TIMEOUT_SECONDS="0")
    assert (ended.code, "faces were removed" in ended.output, "REDIS_URL" in ended.errors) == (75, True, True)


def test_only_leases_without_a_live_holder_expire(redis: Redis) -> None:
    push(redis, [comparison("renewed"), comparison("dead"), comparison("young")], "compare")
    queue = queue_of(redis, "a", name="compare")
    renewed, dead = queue.claim(2)
    later(redis, HOUR)
    queue.renew([renewed])
    (young,) = [lease for lease in queue_of(redis, "b", name="compare").claim(2) if lease.id != dead.id]
    later(redis, 60)
    queue.renew([renewed])
    assert expire_comparisons(redis) == 1
    assert [letter.attempts for letter in DeadLetters(redis, "compare").all()] == [2]
    assert {lease.id for lease in queue.leased()} == {renewed.id, young.id}
    assert queue.acknowledge(renewed) is True


def test_jobs_keep_their_age_across_claims_and_pushes(redis: Redis) -> None:
    push(redis, [comparison(name) for name in "abc"], "compare")
    assert expire_comparisons(redis) == 0
    later(redis, HOUR / 2)
    (first,) = queue_of(redis, "a", name="compare").claim(1)
    queue_of(redis, "a", name="compare").acknowledge(first)
    push(redis, [comparison("d")], "compare")
    assert expire_comparisons(redis) == 0
    later(redis, HOUR / 2)
    assert expire_comparisons(redis) == 2
    assert waiting(redis) == ["d"]
    later(redis, HOUR / 2)
    assert expire_comparisons(redis) == 1


def test_a_job_claimed_between_check_and_removal_is_kept(redis: Redis) -> None:
    push(redis, [comparison("a"), comparison("b")], "compare")
    expiry = Expiry(redis, "compare")
    expiry.find()
    later(redis, HOUR)
    old = expiry.find()
    (lease,) = queue_of(redis, "a", name="compare").claim(1)
    assert [expiry.remove(job, "expired", "") for job in old] == [False, True]
    assert queue_of(redis, "a", name="compare").acknowledge(lease) is True
    (lost,) = [_leased(redis, name) for name in ["x"]]
    assert expiry.remove(lost, "expired", "") is False


def _leased(redis: Redis, name: str) -> Any:
    """Return a job that was found as an expired lease, and has been claimed since."""
    push(redis, [comparison(name)], "compare")
    queue_of(redis, "a", name="compare").claim(1)
    later(redis, HOUR)
    (job,) = Expiry(redis, "compare").find()
    assert job.lease_id
    queue_of(redis, "b", name="compare").claim(1)
    return job


def test_identical_payloads_still_age(redis: Redis) -> None:
    push(redis, [comparison("a")] * 2, "compare")
    for _ in range(3):
        expire_comparisons(redis)
        later(redis, HOUR / 3)
    assert expire_comparisons(redis) == 2


def test_of_two_equal_payloads_the_younger_keeps_its_age(redis: Redis) -> None:
    push(redis, [comparison("a"), comparison("b")], "compare")
    expire_comparisons(redis)
    later(redis, HOUR / 2)
    push(redis, [comparison("a")], "compare")
    expire_comparisons(redis)
    queue = queue_of(redis, "a", name="compare")
    queue.acknowledge_many(queue.claim(2))
    later(redis, HOUR / 2)
    assert expire_comparisons(redis) == 0
    assert waiting(redis) == ["a"]
    later(redis, HOUR / 2)
    assert expire_comparisons(redis) == 1


def test_a_key_of_another_type_loses_no_job(redis: Any) -> None:
    from runner.errors import RedisRefusedError

    push(redis, [comparison("a")], "compare")
    expire_comparisons(redis)
    later(redis, HOUR)
    for key in (keys.dead("compare"), keys.dead_index("compare"), keys.seen("compare")):
        kept = redis.dump(key)
        redis.delete(key)
        redis.rpush(key, "wrong")
        with pytest.raises(RedisRefusedError):
            expire_comparisons(redis)
        assert waiting(redis) == ["a"]
        redis.delete(key)
        if kept:
            redis.restore(key, 0, kept)
    assert expire_comparisons(redis) == 1


@pytest.mark.parametrize("seed", range(6))
def test_every_job_expires_on_time(redis: Any, seed: int) -> None:
    """Pushes, claims, removals from the middle and checks in any order, against known ages."""
    chance, clock, born, number = random.Random(seed), 0.0, dict[str, float](), 0
    queue = queue_of(redis, "a", name="compare")
    for _ in range(120):
        step = chance.choice(("push", "push", "claim", "check", "check", "check", "pass", "odd"))
        if step == "push":
            for _ in range(chance.choice((1, 1, 3))):
                number += 1
                push(redis, [comparison(f"job-{number}")], "compare")
                born[f"job-{number}"] = clock
        elif step == "claim":
            queue.acknowledge_many(queue.claim(chance.choice((1, 2, 5))))
        elif step == "pass":
            seconds = chance.choice((60, 600, 1800))
            later(redis, seconds)
            clock += seconds
        elif step == "odd" and redis.llen(LIST) > 2 and chance.random() < 0.3:
            redis.lrem(LIST, 1, chance.choice(redis.lrange(LIST, 1, -1)))
        elif step == "check":
            before = waiting(redis)
            expire_comparisons(redis)
            gone = set(before) - set(waiting(redis))
            assert all(clock - born[name] >= HOUR for name in gone)
    for _ in range(3):
        expire_comparisons(redis)
        later(redis, HOUR)
    expire_comparisons(redis)
    assert waiting(redis) == []
    assert where_selfies_are(redis) == set()


def test_a_selfie_in_the_list_of_photos_is_kept_no_longer_than_in_its_own(redis: Any) -> None:
    text = '{"id": "p", "imageUrl": "https://h/caf\\u00e9.jpg"}'
    payloads = [
        comparison("c"),
        f'{{"SELFIE": "{SELFIE}"'.encode(),
        b'{"\\u0073elfie": "x"}',
        b"x" * 70_000,
        text.encode(),
    ]
    push(redis, payloads)
    queue, letters = queue_of(redis, "a"), DeadLetters(redis, "process")
    for lease in queue.claim(9):
        queue.dead_letter(lease, "invalid_job", "")
    kept = sorted(letters.payload_seconds(letter.id) or 0 for letter in letters.all())
    assert [seconds <= HOUR for seconds in kept] == [True, True, True, True, False]


def test_every_key_that_ever_holds_a_selfie_is_bounded(service: Service) -> None:
    """The whole life of comparisons that fail: waiting, leased, retried, dead-lettered, requeued."""
    redis: Any = service.redis
    push(redis, [comparison(f"c{number}") for number in range(3)], "compare")
    queue, letters = queue_of(redis, "x/y", name="compare"), DeadLetters(redis, "compare")
    bounded_by_expiry, seen = {LIST, keys.claimed("compare")}, set[str]()

    def check() -> None:
        found = where_selfies_are(redis)
        seen.update(found)
        assert all(0 < redis.ttl(key) <= HOUR for key in found - bounded_by_expiry)

    check()
    dead, retried, released = queue.claim(3)
    check()
    queue.dead_letter(dead, "invalid_job", "")
    queue.retry(retried, 5, "x")
    queue.release(released)
    check()
    letters.requeue(dead.id)
    check()
    service.run(RUNNER_MAX_JOBS="1", RUNNER_RESULT_WATCH_SECONDS="0")
    check()
    assert seen >= bounded_by_expiry
    assert any("dead:payload" in key for key in seen)
    expire_comparisons(redis)
    later(redis, HOUR + 1)
    expire_comparisons(redis)
    assert {key for key in where_selfies_are(redis) if redis.ttl(key) < 0} == set()
