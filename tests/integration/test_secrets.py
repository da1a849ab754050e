"""No secret is ever printed: checks all output of a service whose every password, signature and selfie is known.

Runs, failures of every kind and every command that looks at jobs, at debug level, in both formats. Each secret is
looked for as it is, percent-encoded, in base64 and in hexadecimal, and in every part that is long enough to tell.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import pytest

from demo.album import PEOPLE, jpeg, portrait
from demo.api import COMPARE_LIST, PROCESS_LIST, Api, create_table
from demo.servers import EmbeddedPostgres, EmbeddedRedis
from runner import settings
from runner.bake.samples import sample_images
from runner.errors import SettingsError, SpottmeeError
from runner.images.connection import Proxy
from runner.images.fetch import Fetcher
from runner.queue.leases import LeaseQueue
from runner.worker.messages import decode_compare, decode_process
from tests.support import forked
from tests.support.web import Exchange, Web, flood, hang, ok

if TYPE_CHECKING:
    from redis import Redis

REDIS_PASSWORD = "redis-Zq7!pass/word"
API_PASSWORD = "api-Xk3@pass:word"
FACES_PASSWORD = "faces-Vw9#pass?word"
PROXY_PASSWORD = "proxy-Tr5pass"
USER_PASSWORD = "user-Hn1pass"
SIGNATURE = "5ignature0f0ne5igned0bject"
SIGNED = f"?X-Goog-Algorithm=GOOG4&X-Goog-Signature={SIGNATURE}"
PASSWORDS = (REDIS_PASSWORD, API_PASSWORD, FACES_PASSWORD, PROXY_PASSWORD, USER_PASSWORD, SIGNATURE)


@dataclass
class World:
    """The service, and all its output so far."""

    redis_server: EmbeddedRedis
    redis: Redis
    api: Api
    environment: dict[str, str]
    connection: psycopg.Connection
    secrets: dict[str, list[str]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def command(self, name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command and store its output under `name`."""
        done = forked.run(
            [*arguments],
            env=self.environment | more,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=100,
        )
        self.outputs[name] = f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def hide(self, name: str, data: bytes) -> str:
        """Make the bytes of a selfie a secret and return its base64."""
        text = base64.b64encode(data).decode()
        middle = len(data) // 2
        self.secrets[name] = [text[:40], text[200:240], text[-40:], repr(data[middle : middle + 16])[2:-1]]
        return text


def spellings(secret: str) -> list[str]:
    """Return the ways in which a password might be printed."""
    plain = secret.encode()
    encoded = quote(secret, safe="")
    return [secret, encoded, quote(encoded, safe=""), base64.b64encode(plain).decode(), plain.hex(),
            json.dumps(secret)[1:-1], repr(secret)[1:-1], secret[:10], secret[-10:]]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    from redis import Redis

    with EmbeddedRedis(password=REDIS_PASSWORD) as redis_server, EmbeddedPostgres() as postgres:
        with psycopg.connect(postgres.url, autocommit=True) as root:
            for user, password in (("api", API_PASSWORD), ("faces", FACES_PASSWORD)):
                root.execute(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'".encode())
            root.execute("CREATE DATABASE photos")
        rules = postgres.data / "pg_hba.conf"
        rules.write_text(f"host all api,faces 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        with psycopg.connect(postgres.url, autocommit=True) as root:
            root.execute("SELECT pg_reload_conf()")
        place = f"127.0.0.1:{postgres.port}/photos"
        environment = {
            **os.environ,
            "REDIS_URL": f"redis://:{quote(REDIS_PASSWORD, safe='')}@127.0.0.1:{redis_server.port}/0",
            "DATABASE_URL": f"postgresql://api:{quote(API_PASSWORD, safe='')}@{place}?schema=public",
            "EMBEDDINGS_DATABASE_URL": f"postgresql://faces:{quote(FACES_PASSWORD, safe='')}@{place}",
            "RUNNER_ALLOW_PRIVATE_ADDRESSES": "true",
            "RUNNER_LOG_LEVEL": "debug",
            "RUNNER_LOG_FORMAT": "json",
            "RUNNER_RETRY_BASE_SECONDS": "0.1",
            "RUNNER_FETCH_READ_TIMEOUT_SECONDS": "0.5",
            "RUNNER_FETCH_TIMEOUT_SECONDS": "2",
            "RUNNER_MAX_IMAGE_BYTES": "2000000",
            "RUNNER_MAX_IMAGE_PIXELS": "4000000",
            "RUNNER_CONNECT_TIMEOUT_SECONDS": "0.3",
            "RUNNER_RESULT_WATCH_SECONDS": "0.3",
            "RUNNER_MAX_ATTEMPTS": "2",
            "RUNNER_OUTAGE_SECONDS": "0",
        }
        with (
            psycopg.connect(environment["DATABASE_URL"].partition("?")[0], autocommit=True) as connection,
            Redis.from_url(environment["REDIS_URL"]) as redis,
        ):
            create_table(connection)
            found = World(redis_server, redis, Api(redis, connection), environment, connection)
            found.secrets |= {password: spellings(password) for password in PASSWORDS}
            yield found


def _push(world: World, server: Web, ada: bytes) -> set[str]:
    """Push jobs that end in every way; return the words that the log must show."""
    locate = {
        "good": server.url("/ada.jpg" + SIGNED),
        "missing": server.url("/status/404" + SIGNED),
        "refused": server.url("/status/403" + SIGNED),
        "broken": server.url("/status/500" + SIGNED),
        "slow": server.url("/hang" + SIGNED),
        "loop": server.url("/loop" + SIGNED),
        "endless": server.url("/endless" + SIGNED),
        "page": server.url("/page.html" + SIGNED),
        "large": server.url("/large.png" + SIGNED),
        "truncated": server.url("/truncated.jpg" + SIGNED),
        "user": f"http://name:{USER_PASSWORD}@127.0.0.1/x.jpg{SIGNED}",
        "file": f"file:///etc/passwd{SIGNED}",
        "no scheme": f"name:{USER_PASSWORD}@storage.example/x.jpg{SIGNED}",
        "words": f"no URL{SIGNED}",
        "nowhere": f"http://127.0.0.1:1/x{SIGNED}",
        "no name": f"http://no-such-host.invalid/x{SIGNED}",
        "bad port": f"http://127.0.0.1:99999/{SIGNED}",
    }
    world.api.upload(locate)
    secret = base64.b64encode(os.urandom(300)).decode()
    world.secrets["a selfie in a bad payload"] = [secret[:40], secret[200:240], secret[-40:]]
    push = world.redis.rpush
    push(PROCESS_LIST, json.dumps({"id": "unknown", "imageUrl": locate["good"]}))
    push(PROCESS_LIST, json.dumps({"id": 5, "imageUrl": locate["good"]}))
    push(PROCESS_LIST, f'{{"id": "x", "imageUrl": "{locate["good"]}"')
    push(PROCESS_LIST, f"{locate['user']} {secret}")
    world.api.compare(base64.b64decode(world.hide("a selfie that matches", ada)), ["a", "b"])
    world.api.compare(base64.b64decode(world.hide("a selfie that is no image", os.urandom(900))), ["a"])
    bad: list[dict[str, object]] = [
        {"threshold": "x"}, {"storedIds": 5}, {"selfie": f"{secret}!"}, {"selfie": [secret]},
        {"selfie": {"data": secret}}, {"storedIds": [secret * 9]}, {"threshold": secret}, {"jobId": ""},
        {"jobId": None, "extra": secret},
    ]  # fmt: skip
    for number, changes in enumerate(bad):
        job: dict[str, object] = {"jobId": f"bad-{number}", "storedIds": ["a"], "selfie": secret, **changes}
        push(COMPARE_LIST, json.dumps(job))
    push(COMPARE_LIST, json.dumps({"jobId": "cut", "selfie": secret})[:-5])
    push(COMPARE_LIST, secret)
    return {"url_forbidden", "image_missing", "fetch_failed", "fetch_timeout", "image_too_many_bytes", "photo_gone",
            "image_too_many_pixels", "image_undecodable", "invalid_job"}  # fmt: skip


@pytest.fixture(scope="module")
def spoken(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Everything is run once; the tests check the output."""
    source, box = PEOPLE["Ada"]
    ada = jpeg(portrait(sample_images()[source], box))
    large = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + b"\0" * 50
    answers: dict[str, bytes | Exchange] = {
        "/ada.jpg": ok(ada),
        "/page.html": ok(b"<html>"),
        "/large.png": ok(large),
        "/truncated.jpg": ok(ada[: len(ada) // 2]),
        "/status/404": ok(b"no", status="404 Not Found"),
        "/status/403": ok(b"no", status="403 Forbidden"),
        "/status/500": ok(b"no", status="500 Oh"),
        "/hang": hang(seconds=3),
        "/loop": ok(b"", f"Location: /loop{SIGNED}", status="302 Found"),
        "/endless": flood(b"x" * 65_536, first=b"HTTP/1.1 200 OK\r\n\r\n"),
    }
    signed = {path + SIGNED: answer for path, answer in answers.items()}
    death_notice = tmp_path_factory.mktemp("termination") / "log"
    with Web(signed) as server:
        assert world.command("migrate", "migrate").returncode == 0
        for form in ("json", "text"):
            words = _push(world, server, ada)
            done = world.command(
                f"run, {form}", "run", RUNNER_LOG_FORMAT=form, RUNNER_TERMINATION_LOG=str(death_notice)
            )
            assert done.returncode == 0, done.stderr[-2000:]
            assert words <= {word for word in words if word in done.stderr}
            assert '"succeeded"' in done.stdout
            world.outputs[f"termination log, {form}"] = death_notice.read_text()
        world.api.upload({"behind a proxy": server.url(f"/ada.jpg{SIGNED}")})
        proxied = {"RUNNER_FETCH_PROXY_URL": f"http://me:{PROXY_PASSWORD}@127.0.0.1:1"}
        world.command("run behind a proxy that is down", "run", **proxied)
    _look(world)
    _fail(world)
    return world


def _look(world: World) -> None:
    """Run every command that reads jobs and servers."""
    assert world.command("doctor", "doctor").returncode in (0, 5)
    world.command("doctor --json", "doctor", "--json")
    world.command("sweep", "sweep")
    world.command("import-legacy", "import-legacy")
    world.command("status", "status")
    for form in ((), ("--json",)):
        done = world.command(f"dead list {form}", "dead", "list", "--limit", "0", *form)
        assert done.returncode == 0, done.stderr
    letters = json.loads(done.stdout)
    assert len(letters) > 30
    ids = [letter["id"] for letter in letters]
    for form in ((), ("--json",)):
        done = world.command(f"dead show {form}", "dead", "show", *ids, *form)
        assert done.returncode == 0, done.stderr
        assert "image_missing" in done.stdout
    for key in world.redis.keys("face_embeddings:detail:*"):
        world.outputs[str(key)] = str(world.redis.get(key))


def _fail(world: World) -> None:
    """Run commands with refusing and unreachable servers, and with invalid settings."""
    environment = world.environment
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        wrong = {
            "Redis refuses": {"REDIS_URL": environment["REDIS_URL"].replace("redis-", f"{USER_PASSWORD}-")},
            "Redis is away": {"REDIS_URL": f"redis://:{quote(REDIS_PASSWORD, safe='')}@{nowhere}/0"},
            "Redis has no such user": {"REDIS_URL": environment["REDIS_URL"].replace("://:", "://nobody:")},
            "PostgreSQL refuses": {"DATABASE_URL": environment["DATABASE_URL"].replace("api-", f"{USER_PASSWORD}-")},
            "PostgreSQL is away": {"DATABASE_URL": f"postgresql://api:{quote(API_PASSWORD, safe='')}@{nowhere}/photos"},
            "no such database": {"EMBEDDINGS_DATABASE_URL": environment["EMBEDDINGS_DATABASE_URL"] + "x"},
            "PostgreSQL's parameters are wrong": {
                "DATABASE_URL": environment["DATABASE_URL"] + f"&nonsense={API_PASSWORD}"
            },
            "the port is none": {"DATABASE_URL": f"postgresql://api:{API_PASSWORD}@h:port/x"},
            "not a URL": {"REDIS_URL": f"redis:/{REDIS_PASSWORD}", "DATABASE_URL": f"postgres {API_PASSWORD}"},
            "another scheme": {
                "REDIS_URL": f"http://:{REDIS_PASSWORD}@h",
                "DATABASE_URL": f"mysql://x:{API_PASSWORD}@h/x",
            },
            "the proxy is none": {"RUNNER_FETCH_PROXY_URL": f"socks5://me:{PROXY_PASSWORD}@h:1"},
            "the proxy's port is none": {"RUNNER_FETCH_PROXY_URL": f"http://me:{PROXY_PASSWORD}@h:{PROXY_PASSWORD}"},
        }
        for name, changes in wrong.items():
            for command in ("run", "doctor") if "refuses" in name else ("run",):
                done = world.command(f"{command}: {name}", command, **changes)
                assert done.returncode != 0, (name, command)
                assert "Traceback" not in done.stderr, (name, command, done.stderr)
        world.command("dead list, Redis refuses", "dead", "list", **wrong["Redis refuses"])
        world.command("migrate, PostgreSQL refuses", "migrate", **wrong["PostgreSQL refuses"])


def test_no_output_contains_a_secret(spoken: World) -> None:
    assert len(spoken.secrets) >= len(PASSWORDS) + 3
    assert sum(len(text) for text in spoken.outputs.values()) > 20_000
    found = [
        f"{name}: {text[max(0, text.index(part) - 60) : text.index(part) + 60]!r}"
        for name, text in spoken.outputs.items()
        for parts in spoken.secrets.values()
        for part in parts
        if part in text
    ]
    assert found == []


def test_the_search_for_secrets_finds_known_text(spoken: World) -> None:
    """Each secret is in use: it is in the environment of the commands, or in the payloads of the dead letters."""
    dead = [spoken.redis.get(key) or b"" for key in spoken.redis.keys("{*}:dead:payload:*")]
    used = " ".join([*spoken.environment.values(), PROXY_PASSWORD, *(str(payload) for payload in dead)])
    unused = [name for name, parts in spoken.secrets.items() if not any(part in used for part in parts)]
    # Nothing is left of a job that has ended, or that can never succeed.
    assert set(unused) <= {"a selfie that matches", "a selfie that is no image"}


def test_the_servers_require_the_passwords(spoken: World) -> None:
    for name in ("Redis refuses", "PostgreSQL refuses"):
        assert spoken.outputs[f"run: {name}"].startswith("exit 75") or "exit 2" in spoken.outputs[f"run: {name}"][:7]


def test_no_repr_contains_a_secret(spoken: World) -> None:
    environment = spoken.environment | {"RUNNER_FETCH_PROXY_URL": f"http://me:{PROXY_PASSWORD}@h:1"}
    loaded = settings.load(environment)
    selfie = spoken.hide("a selfie", os.urandom(900))
    process = json.dumps({"id": "p", "imageUrl": f"https://h/x{SIGNED}"}).encode()
    compare = json.dumps({"jobId": "j", "storedIds": [], "selfie": selfie}).encode()
    spoken.redis.delete(PROCESS_LIST, COMPARE_LIST)
    spoken.redis.rpush(PROCESS_LIST, process)
    spoken.redis.rpush(COMPARE_LIST, compare)
    leases = [
        lease
        for name in ("process", "compare")
        for lease in LeaseQueue(spoken.redis, name, owner="o", lease_seconds=9, max_attempts=3).claim(1)
    ]
    assert len(leases) == 2
    things: list[object] = [
        loaded, decode_process(process), decode_compare(compare), *leases, Fetcher.from_settings(loaded),
        Proxy.from_url(loaded.fetch_proxy_url), *_errors(selfie),
    ]  # fmt: skip
    outputs = " ".join(f"{thing!r} {thing}" for thing in things)
    assert [part for parts in spoken.secrets.values() for part in parts if part in outputs] == []


def _errors(selfie: str) -> list[Exception]:
    """Return an error for every way to pass an invalid secret."""
    caught: list[Exception] = []
    fetcher = Fetcher.from_settings(settings.load({"REDIS_URL": "redis://h", "DATABASE_URL": "postgresql://h/d"}))
    attempts: list[Callable[[], object]] = [
        lambda: settings.load({"REDIS_URL": f"x://:{REDIS_PASSWORD}@h", "DATABASE_URL": f"postgresql:{API_PASSWORD}"}),
        lambda: Proxy.from_url(f"http://me:{PROXY_PASSWORD}@h:{PROXY_PASSWORD}"),
        lambda: fetcher.fetch(f"https://name:{USER_PASSWORD}@h/x{SIGNED}"),
        lambda: fetcher.fetch(f"http://127.0.0.1/x{SIGNED}"),
        lambda: fetcher.fetch(f"http://h:{SIGNATURE}/"),
        lambda: decode_process(json.dumps({"id": "p", "imageUrl": [SIGNATURE]}).encode()),
        lambda: decode_compare(json.dumps({"jobId": "j", "storedIds": [], "selfie": selfie + "!"}).encode()),
        lambda: decode_compare(json.dumps({"jobId": "j", "storedIds": selfie, "selfie": selfie}).encode()),
    ]
    for attempt in attempts:
        with pytest.raises(SpottmeeError) as found:
            attempt()
        caught.append(found.value)
    assert any(isinstance(error, SettingsError) for error in caught)
    return caught


def test_a_termination_log_is_written(spoken: World, tmp_path: Path) -> None:
    assert json.loads(spoken.outputs["termination log, json"])["claimed"] > 20
    assert not list(tmp_path.iterdir())
