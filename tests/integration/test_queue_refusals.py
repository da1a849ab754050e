"""Operations that Redis refuses halfway, for a missing right or a key of another type, change nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.servers import EmbeddedRedis
from runner.errors import RedisFullError, RedisRefusedError, SettingsError
from runner.queue import keys
from runner.queue.client import connect
from runner.queue.dead_letters import DeadLetters, Requeued
from runner.queue.expiry import Expiry
from runner.queue.hosts import Failure, Hosts, Verdict
from runner.queue.leases import Parked
from runner.queue.parking import Parking, ProcessJobs
from runner.queue.pusher import Pusher
from runner.queue.search import Claimed, JobSearch
from runner.settings import load
from tests.support.queue_tools import NAME, closing_clients, pass_time, places, push, queue_of
from tests.support.redis_topologies import acl_line, opened

if TYPE_CHECKING:
    from redis import Redis

    from runner.queue.leases import Lease

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "redis-keys.md"
WORDS = acl_line(PAGE.read_text(encoding="utf-8")).split()
COMMANDS = [word for word in WORDS if word.startswith("+")]
OLDER, NEWER = "job/pod/1", "job/pod/2"
PHOTO = "photo"
JOBS = [b"job %d" % number for number in range(10)]
WRONG_VALUES: dict[str, Callable[[Any, str], object]] = {
    "string": lambda redis, key: redis.set(key, "in the way"),
    "list": lambda redis, key: redis.rpush(key, "in the way"),
    "set": lambda redis, key: redis.sadd(key, "in the way"),
    "hash": lambda redis, key: redis.hset(key, "in the way", "yes"),
    "zset": lambda redis, key: redis.zadd(key, {"in the way": 1}),
    "stream": lambda redis, key: redis.xadd(key, {"in the way": "yes"}),
}


@pytest.fixture(autouse=True)
def _closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from closing_clients(monkeypatch, __name__)


@pytest.fixture(scope="module", params=["embedded", "redis-server"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    """Valkey, and the distribution's Redis: their messages and their checks differ."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "embedded":
            found = shutil.which(request.param)
            if found is None:
                pytest.skip("redis-server is not installed (apt-get install redis-server)")
            patch.setenv("SPOTTMEE_REDIS_SERVER", found)
        with EmbeddedRedis() as running:
            yield running


@pytest.fixture
def admin(server: EmbeddedRedis) -> Iterator[Any]:
    with opened(server) as client:
        client.flushall()
        client.execute_command("ACL", "SETUSER", WORDS[1], "reset", *WORDS[2:])
        yield client
        client.config_set("maxmemory", 0)


@pytest.fixture
def client(server: EmbeddedRedis, admin: Any) -> Redis:
    """The user of a run, with exactly the documented rights."""
    url = f"redis://{WORDS[1]}:{WORDS[3].removeprefix('>')}@127.0.0.1:{server.port}"
    return connect(load({"REDIS_URL": url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "1"}, required=("redis_url",)))


class Scene:
    """A list with jobs in every state: waiting, leased in every way, parked, and dead letters, one of them expired.

    `leased` is leased, `kept` is leased and announced, `parked` waits for a photo.
    """

    def __init__(self, admin: Any) -> None:
        self.admin = admin
        self.port = admin.connection_pool.connection_kwargs["port"]
        self.made = time.monotonic()
        admin.flushall()
        push(admin, JOBS)
        queue = queue_of(admin, OLDER)
        leases = queue.claim(8)
        self.leased, orphan, retried, released, self.dead, expired, self.kept, self.parked = leases
        for lease in (self.kept, self.parked):
            assert Parking(admin, NAME).announce(lease, [PHOTO, "another"], 600)
        assert queue.park(self.parked, "album_pending", b"state") is Parked.DONE
        assert Parking(admin, NAME).photos_done(["another"]) == []
        queue.retry(retried, 0, "fetch_failed")
        queue.release(released)
        queue.dead_letter(self.dead, "invalid_job", "not JSON")
        queue.dead_letter(expired, "invalid_job", "not JSON")
        admin.zadd(keys.dead_index(NAME), {expired.id: 1})
        pass_time(admin, 31)
        queue.renew([self.leased, self.kept])
        assert {lease.id for lease in (orphan, retried, released)} <= set(places(admin).leased)
        self.before = self.snapshot()
        self.dumps = [(raw, max(admin.pttl(raw), 0), admin.dump(raw)) for raw in admin.scan_iter()]

    def restore(self) -> None:
        """Put everything back as it was at the beginning."""
        pipeline = self.admin.pipeline(transaction=False)
        pipeline.flushall()
        for key, milliseconds, value in self.dumps:
            pipeline.restore(key, milliseconds, value)
        pipeline.execute()

    def snapshot(self) -> dict[str, object]:
        """Return every key with its value, without the stored replies."""
        read: dict[str, Callable[[Any], object]] = {
            "string": self.admin.get,
            "list": lambda key: self.admin.lrange(key, 0, -1),
            "hash": self.admin.hgetall,
            "set": self.admin.smembers,
            "zset": lambda key: self.admin.zrange(key, 0, -1, withscores=True),
        }
        found = {raw.decode(): self.admin.type(raw).decode() for raw in self.admin.scan_iter()}
        return {key: read[kind](key) for key, kind in sorted(found.items()) if ":last:" not in key}


_SCENES: dict[str, Scene] = {}


def scene_of(admin: Any) -> Scene:
    """Return a fresh scene; for a few seconds, well before its leases expire, it is restored from a dump."""
    made = _SCENES.get("last")
    if made is None or made.port != admin.connection_pool.connection_kwargs["port"] or time.monotonic() > made.made + 5:
        made = _SCENES["last"] = Scene(admin)
    else:
        made.admin = admin
        made.restore()
    return made


def _dead_letter(client: Redis, lease: Lease) -> bool:
    return queue_of(client, OLDER).dead_letter(lease, "invalid_job", "not JSON")


def _end_run(client: Redis) -> None:
    queue = queue_of(client, OLDER)
    queue.carry({"runs_started": 1})
    queue.end_run("{}")


def _claimed(lease: Lease) -> Claimed:
    return Claimed(lease.payload, len(lease.payload), lease.id)


# Each operation, and what it returns if it is not refused.
def _fails(client: Redis, lease: Lease) -> Verdict:
    failure = Failure(is_first=True, pause_seconds=5, delay_seconds=1)
    hosts = Hosts(client, NAME, owner=OLDER)
    return hosts.wait(lease, "h:1", failure=failure, timeout_seconds=60, state=b"state", tally={})[0]


OPERATIONS: dict[str, tuple[Callable[[Redis, Scene], object], object]] = {
    "claim": (lambda client, _: len(queue_of(client, NEWER).claim(10)), 5),
    "renew": (lambda client, scene: queue_of(client, OLDER).renew([scene.leased]), []),
    "acknowledge": (lambda client, scene: queue_of(client, OLDER).acknowledge(scene.leased), True),
    "retry": (lambda client, scene: queue_of(client, OLDER).retry(scene.leased, 5, "fetch_failed"), True),
    "release": (lambda client, scene: queue_of(client, OLDER).release(scene.leased), True),
    "dead_letter": (lambda client, scene: _dead_letter(client, scene.leased), True),
    "defer": (lambda client, scene: queue_of(client, OLDER).release(scene.leased, 5, reason="x", state=b"state"), True),
    "announce": (lambda client, scene: Parking(client, NAME).announce(scene.leased, [PHOTO], 600), True),
    "park": (lambda client, scene: queue_of(client, OLDER).park(scene.kept, "x", b"state"), Parked.DONE),
    "wait_for_host": (lambda client, scene: _fails(client, scene.leased), Verdict.PUT_OFF),
    "wake": (lambda client, _: len(Parking(client, NAME).photos_done([PHOTO])), 1),
    "waiting": (lambda client, _: len(ProcessJobs(client).at_work(["p"]).ids), 0),
    "take_over": (lambda client, _: queue_of(client, NEWER).take_over(), 2),
    "requeue": (lambda client, scene: DeadLetters(client, NAME).requeue(scene.dead.id), Requeued.DONE),
    "purge": (lambda client, scene: DeadLetters(client, NAME).purge(scene.dead.id), True),
    "search": (lambda client, _: len(list(JobSearch(client, NAME).all())), 10),
    "revoke": (lambda client, scene: JobSearch(client, NAME).erase(_claimed(scene.leased)), (1, True)),
    "end_run": (lambda client, _: _end_run(client), None),
    "counts": (lambda client, _: queue_of(client, NEWER).counts().waiting, 2),
    "leased": (lambda client, _: len(queue_of(client, NEWER).leased()), 5),
    "dead_letters": (lambda client, _: len(list(DeadLetters(client, NAME).all())), 1),
}
# The minimum rights of each operation, so that a test in which nothing is refused cannot pass.
NEEDED = {
    "claim": {"+time", "+zrem", "+zadd", "+hdel", "+hset", "+hget", "+hmget", "+set", "+get", "+lpop", "+llen"},
    "renew": {"+time", "+zrem", "+zadd", "+hget"},
    "acknowledge": {"+zrem", "+hdel", "+hget", "+hmget", "+hset", "+set", "+get"},
    "retry": {"+time", "+zadd", "+hset", "+hget", "+set", "+get"},
    "release": {"+time", "+zadd", "+hset", "+hget", "+set", "+get"},
    "dead_letter": {"+time", "+zrem", "+zadd", "+hdel", "+hset", "+hget", "+hmget", "+set", "+get"},
    "defer": {"+time", "+zadd", "+hset", "+hget", "+set", "+get"},
    "announce": {"+zrem", "+zadd", "+hmget", "+sadd", "+expire"},
    "park": {"+zrem", "+hset", "+hget", "+set", "+get", "+zscore"},
    "wait_for_host": {"+time", "+zrange", "+zrem", "+zadd", "+zscore", "+hset", "+hmget", "+set", "+get", "+expire"},
    "wake": {"+time", "+zrange", "+zrem", "+zadd", "+zscore", "+hexists", "+srem", "+scard", "+expire"},
    "waiting": {"+lrange", "+zrange", "+hmget"},
    "take_over": {"+time", "+zrange", "+zadd", "+hget"},
    "requeue": {"+rpush", "+hset", "+del", "+zrem", "+hdel", "+set", "+get", "+zscore"},
    "purge": {"+del", "+zrem", "+hdel", "+set", "+get", "+zscore"},
    "search": {"+time", "+llen", "+lindex", "+zrange", "+hmget", "+hget", "+zrangebyscore", "+get"},
    "revoke": {"+zscore", "+hset", "+hget", "+zrem", "+hdel", "+expire"},
    "end_run": {"+time", "+zrem", "+zadd", "+zrange", "+hset", "+hmget", "+set", "+get"},
    "counts": {"+time", "+llen", "+zcard", "+zcount", "+zrange"},
    "leased": {"+time", "+zrange", "+hmget", "+hstrlen"},
    "dead_letters": {"+time", "+zrangebyscore", "+hget"},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_lacks_a_right_changes_nothing_and_names_the_right(
    name: str, admin: Any, client: Redis
) -> None:
    operation, answer = OPERATIONS[name]
    refused = set()
    for command in COMMANDS:
        scene = scene_of(admin)
        admin.execute_command("ACL", "SETUSER", WORDS[1], f"-{command[1:]}")
        try:
            assert operation(client, scene) == answer, command
        except SettingsError as error:
            refused.add(command)
            assert f"grant {command} " in str(error)  # noqa: PT017 - most of the loop does not raise
            assert scene.snapshot() == scene.before, command
        admin.execute_command("ACL", "SETUSER", WORDS[1], command)
        places(admin)
    assert refused >= NEEDED[name] | {"+eval"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_meets_a_key_of_another_type_changes_nothing(name: str, admin: Any, client: Redis) -> None:
    operation, _ = OPERATIONS[name]
    refused = set()
    for key in (
        keys.list_key(NAME), keys.leases(NAME), keys.claimed(NAME), keys.dead(NAME), keys.dead_index(NAME),
        keys.parked(NAME), keys.totals(NAME),
    ):  # fmt: skip
        for kind, put in WRONG_VALUES.items():
            scene = scene_of(admin)
            if admin.type(key).decode() == kind:
                continue
            admin.rename(key, "{face_embeddings:process}:aside")
            put(admin, key)
            try:
                operation(client, scene)
            except RedisRefusedError as error:
                refused.add(key)
                missing = [part for part in (key, "WRONGTYPE", "rename or delete it") if part not in str(error)]
                assert missing == []
                admin.rename("{face_embeddings:process}:aside", key)
                assert scene.snapshot() == scene.before, (key, kind)
    assert refused


@pytest.mark.parametrize("kind", sorted(set(WRONG_VALUES) - {"string"}))
@pytest.mark.parametrize("name", ["claim", "acknowledge", "retry", "release", "dead_letter"])
def test_a_stored_reply_of_another_type_changes_nothing(name: str, kind: str, admin: Any, client: Redis) -> None:
    scene = scene_of(admin)
    for owner in (OLDER, NEWER):
        admin.delete(keys.last(NAME, owner))
        WRONG_VALUES[kind](admin, keys.last(NAME, owner))
    with pytest.raises(RedisRefusedError, match="WRONGTYPE"):
        OPERATIONS[name][0](client, scene)
    assert scene.snapshot() == scene.before


@pytest.mark.parametrize("kind", sorted(set(WRONG_VALUES) - {"string"}))
def test_a_payload_key_of_another_type_is_not_requeued(kind: str, admin: Any, client: Redis) -> None:
    scene = scene_of(admin)
    key = keys.dead_payload(NAME, scene.dead.id)
    admin.delete(key)
    WRONG_VALUES[kind](admin, key)
    with pytest.raises(RedisRefusedError, match="WRONGTYPE"):
        DeadLetters(client, NAME).requeue(scene.dead.id)
    assert [letter.id for letter in DeadLetters(client, NAME).all()] == [scene.dead.id]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_works_on_a_full_redis(name: str, admin: Any, client: Redis) -> None:
    operation, answer = OPERATIONS[name]
    scene = scene_of(admin)
    everything = sorted(places(admin).all)
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    assert operation(client, scene) == answer
    admin.config_set("maxmemory", 0)
    gone = {"acknowledge": [scene.leased.payload], "revoke": [scene.leased.payload], "purge": [scene.dead.payload]}.get(
        name, []
    )
    if name in ("claim", "dead_letter"):  # they remove dead letters beyond the retention
        gone = [JOBS[5]]
    assert sorted([*places(admin).all, *gone]) == everything


def _erase(client: Redis, admin: Any, *words: str) -> tuple[int, bool]:
    admin.execute_command("ACL", "SETUSER", WORDS[1], *words)
    search = JobSearch(client, NAME)
    return search.erase(next(search.waiting()))


def test_a_waiting_job_is_erased_with_one_more_right_even_on_a_full_redis(admin: Any, client: Redis) -> None:
    scene = scene_of(admin)
    Expiry(admin, NAME).find()
    before, seen = scene.snapshot(), admin.get(keys.seen(NAME)).splitlines()
    jobs = admin.lrange(keys.list_key(NAME), 0, -1)
    for command in ("+lrem", "+set", "+get", "+lindex", "+llen", "+lpop"):
        with pytest.raises(SettingsError) as refused:
            _erase(client, admin, "+lrem", f"-{command[1:]}")
        assert f"grant {command} " in str(refused.value)
        assert scene.snapshot() == before, command
        admin.execute_command("ACL", "SETUSER", WORDS[1], *COMMANDS)
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    assert _erase(client, admin, "+lrem") == (1, False)
    assert admin.lrange(keys.list_key(NAME), 0, -1) == jobs[:-1]
    assert admin.get(keys.seen(NAME)).splitlines() == seen[:-1]


def _push(client: Redis) -> int:
    pusher = Pusher(client, NAME, seconds=5)
    assert pusher.acquire()
    return pusher.push([b"1"], 10)


def test_a_full_redis_and_a_missing_right_keep_jobs_from_being_pushed(admin: Any, client: Redis) -> None:
    for command in ("+rpush", "+set", "+get", "+llen"):
        admin.execute_command("ACL", "SETUSER", WORDS[1], f"-{command[1:]}")
        with pytest.raises(SettingsError, match=rf"grant \{command} "):
            _push(client)
        admin.execute_command("ACL", "SETUSER", WORDS[1], *COMMANDS)
        admin.flushall()
    pusher = Pusher(client, NAME, seconds=5)
    assert pusher.acquire()
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)
    with pytest.raises(RedisFullError):
        pusher.push([b"1"], 10)
    admin.config_set("maxmemory", 0)
    assert (pusher.push([b"1", b"2", b"3"], 2), admin.lrange(keys.list_key(NAME), 0, -1)) == (2, [b"1", b"2"])


def test_jobs_of_a_refused_run_are_claimed_by_a_healthy_one(admin: Any, client: Redis) -> None:
    """A refused claim counts no attempt, so no job is dead-lettered because of it."""
    scene = scene_of(admin)
    for command in ("+hset", "+zadd", "+zrem", "+hdel", "+lpop", "+set", "+hget", "+hmget") * 3:
        admin.execute_command("ACL", "SETUSER", WORDS[1], f"-{command[1:]}")
        with pytest.raises(SettingsError):
            queue_of(client, NEWER).claim(10)
        admin.execute_command("ACL", "SETUSER", WORDS[1], command)
    assert scene.snapshot() == scene.before
    assert sorted(lease.attempts for lease in queue_of(client, NEWER).claim(10)) == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("key", [keys.dead(NAME), keys.dead_index(NAME)])
def test_showing_a_dead_letter_names_a_key_of_another_type(key: str, admin: Any, client: Redis) -> None:
    scene = scene_of(admin)
    admin.set(key, "in the way")
    with pytest.raises(RedisRefusedError, match="rename or delete it") as refused:
        DeadLetters(client, NAME).get(scene.dead.id)
    assert key in str(refused.value)
