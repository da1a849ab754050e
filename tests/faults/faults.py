"""The faults that a campaign injects from outside. Each is a generator that yields the seconds until its next step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg

from demo.api import create_table
from runner.errors import PhotosInvisibleError, SettingsError
from runner.queue import keys
from tests.faults.gate import State
from tests.faults.pictures import Behaviour
from tests.faults.world import RIGHTS, Fault, World

UNREACHABLE_SECONDS = 20.0
NO_SPACE = "No space left on device"


def kills(world: World) -> Iterator[float]:
    """Kill a random runner at random times, one kill per twelve jobs."""
    while world.seen["kill -9"] < len(world.jobs) // 12 and _work_left(world):
        yield world.random.uniform(0.2, 1.2)
        living = world.living()
        if living:
            os.kill(world.random.choice(living).process.pid, signal.SIGKILL)
            world.seen["kill -9"] += 1


def every_runner_killed_once(world: World) -> Iterator[float]:
    """Kill each runner of the first burst once, at a random time during its work."""
    while not world.scaler.runners:
        yield 0.05
    first = list(world.scaler.runners)
    world.random.shuffle(first)
    world.seen["first runners"] = len(first)
    yield 1.5
    for runner in first:
        yield world.random.uniform(0.0, 0.8)
        if runner.process.poll() is None:
            os.kill(runner.process.pid, signal.SIGKILL)
            world.seen["kill -9"] += 1


def terminations(count: int) -> Fault:
    """Send SIGTERM to a random runner, `count` times, and record how long the slowest took to exit."""

    def fault(world: World) -> Iterator[float]:
        slowest = 0.0
        while world.seen["SIGTERM"] < world.times(count) and _work_left(world):
            yield world.random.uniform(0.4, 1.5)
            living = world.living()
            if not living:
                continue
            runner = world.random.choice(living)
            sent = time.monotonic()
            runner.process.terminate()
            world.seen["SIGTERM"] += 1
            while runner.process.poll() is None:
                yield 0.02
            slowest = max(slowest, time.monotonic() - sent)
            world.seen["slowest exit, ms"] = round(slowest * 1000)

    return fault


def pauses(count: int, seconds: float) -> Fault:
    """Pause a runner for longer than its leases, then continue it: two runners then have the same jobs in flight."""

    def fault(world: World) -> Iterator[float]:
        while world.seen["SIGSTOP"] < count and _work_left(world):
            yield world.random.uniform(0.3, 1.0)
            living = world.living()
            if not living:
                continue
            runner = world.random.choice(living)
            runner.process.send_signal(signal.SIGSTOP)
            world.seen["SIGSTOP"] += 1
            yield world.scaled(seconds)
            with suppress(ProcessLookupError):
                runner.process.send_signal(signal.SIGCONT)
            yield 0.5

    return fault


def early_selfies(world: World) -> Iterator[float]:
    """Send selfies in the first minute after an upload, while runners are killed, photos deleted, and images fail."""
    photos = list(world.jobs.photos)
    people = sorted({person for kind in world.jobs.photos.values() for person in kind.people})
    span, guests = world.scaled(60), world.times(40)
    began = time.monotonic()
    next_kill, next_deletion = 1.0, 0.5
    while world.seen["guests"] < guests or (_work_left(world) and world.seen["kill -9"] < world.times(24)):
        now = time.monotonic() - began
        while world.seen["guests"] < guests and now >= world.seen["guests"] * span / guests:
            world.guest(people[world.seen["guests"] % len(people)], photos)
            world.seen["guests"] += 1
        if now >= next_deletion:
            world.delete(world.random.choice(photos))
            world.seen["deleted"] += 1
            next_deletion = now + world.scaled(3)
        if now >= next_kill and (living := world.living()):
            os.kill(world.random.choice(living).process.pid, signal.SIGKILL)
            world.seen["kill -9"] += 1
            next_kill = now + world.random.uniform(2.0, 8.0)
        world.images.behaviour = Behaviour.ERRORS if 0.2 * span < now < 0.3 * span else Behaviour.NORMAL
        yield 0.1
    world.images.behaviour = Behaviour.NORMAL


# Redis


def redis_restarts(count: int) -> Fault:
    """Kill Redis and start it again from its append-only file, `count` times."""

    def fault(world: World) -> Iterator[float]:
        for _ in range(world.times(count)):
            yield world.random.uniform(1.0, 2.0)
            world.redis_server.kill()
            world.seen["Redis restarted"] += 1
            yield 1.0
            world.redis_server.restart()

    return fault


def unreachable(server: str, state: State, *, seconds: float = UNREACHABLE_SECONDS, after: float = 2.0) -> Fault:
    """Make redis or postgres unreachable for `seconds`."""

    def fault(world: World) -> Iterator[float]:
        gate = world.redis_gate if server == "redis" else world.postgres_gate
        yield after
        gate.set(state)
        world.seen[f"{server} {state.value} for {world.scaled(seconds):g} s"] += 1
        yield world.scaled(seconds)
        gate.set(State.OPEN)

    return fault


def redis_full(seconds: float) -> Fault:
    """Make Redis reject commands that need memory, twice for `seconds`."""

    def fault(world: World) -> Iterator[float]:
        for _ in range(world.times(2)):
            yield 1.5
            world.redis.config_set("maxmemory", "1mb")
            world.seen["Redis full"] += 1
            yield world.scaled(seconds)
            refused = world.redis.info("errorstats").get("errorstat_OOM", {})
            world.seen["refused by Redis"] = int(refused.get("count", 0))
            world.redis.config_set("maxmemory", "0")

    return fault


def failover(world: World) -> Iterator[float]:
    """Promote a replica that lacks the last writes, and redirect all clients to it; the old primary is killed."""
    replica = world.replica()
    world.redis.wait(1, 2000)  # so that no job pushed by the API is lost, which would not be the runner's fault
    waiting = sum(world.redis.llen(keys.list_key(name)) for name in ("process", "compare"))
    while sum(world.redis.llen(keys.list_key(name)) for name in ("process", "compare")) > 0.8 * waiting:
        yield 0.02
    replica.client.replicaof("NO", "ONE")
    before = world.redis.info("commandstats")["cmdstat_eval"]["calls"]
    yield 1.5  # the old primary still serves the runners; their writes are lost
    after = world.redis.info("commandstats")["cmdstat_eval"]["calls"]
    world.seen["scripts of runners lost"] = int(after) - int(before)
    world.redis_server.kill()
    world.redis_gate.upstream = replica.server.port
    world.redis_gate.break_off()
    world.redis = world.scaler.redis = replica.client
    world.seen["failover"] += 1


# PostgreSQL


def postgres_restarts(count: int) -> Fault:
    """Stop PostgreSQL as `pg_ctl stop -m immediate` does and start it again, `count` times."""

    def fault(world: World) -> Iterator[float]:
        for _ in range(world.times(count)):
            yield world.random.uniform(1.0, 2.5)
            world.postgres.stop_immediately()
            world.seen["PostgreSQL restarted"] += 1
            yield 0.5
            world.postgres.restart()

    return fault


def read_only(seconds: float) -> Fault:
    """Make PostgreSQL reject every write, twice for `seconds`."""

    def fault(world: World) -> Iterator[float]:
        with world.database("postgres") as connection:
            for _ in range(world.times(2)):
                yield 1.5
                connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                connection.execute("SELECT pg_reload_conf()")
                world.seen["PostgreSQL read-only"] += 1
                yield world.scaled(seconds)
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")
        world.seen["refused: read-only"] = _refusals(world, "read-only transaction")

    return fault


def no_connections(seconds: float) -> Fault:
    """Close the runners' connections to PostgreSQL and occupy every connection, twice for `seconds`."""

    def fault(world: World) -> Iterator[float]:
        for _ in range(world.times(2)):
            yield 1.5
            taken: list[psycopg.Connection] = []
            with suppress(psycopg.OperationalError):
                while True:
                    connection = world.database("postgres")
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^spottmee'"
                    )
                    taken.append(connection)
            world.seen["connections exhausted"] += 1
            yield world.scaled(seconds)
            for connection in taken:
                connection.close()
        world.seen["refused: too many clients"] = _refusals(world, "too many clients", "connection slots are")

    return fault


def deadlocks(count: int) -> Fault:
    """Lock photos in the opposite order to the runners, until PostgreSQL has resolved `count` deadlocks."""

    def fault(world: World) -> Iterator[float]:
        with world.database("api") as connection, world.database("api") as looking:
            while _work_left(world):
                found = _deadlocks(looking)
                world.seen["deadlock"] = found
                if found >= world.times(count):
                    return
                rows = looking.execute(
                    "SELECT id FROM \"Photo\" WHERE status = 'PROCESSING' ORDER BY id DESC"
                ).fetchall()
                high, low = rows[: len(rows) // 2], rows[len(rows) // 2 :]
                with suppress(psycopg.errors.DeadlockDetected), connection.transaction():
                    # A backend checks for a deadlock after this time; the runner's backend must be the first to check.
                    connection.execute("SET LOCAL deadlock_timeout = '10s'")
                    for row in high:
                        connection.execute('SELECT 1 FROM "Photo" WHERE id = %s FOR UPDATE', row)
                    yield 0.08
                    for row in low:
                        connection.execute('SELECT 1 FROM "Photo" WHERE id = %s FOR UPDATE', row)
                yield 0.3

    return fault


def _deadlocks(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = 'api'").fetchone()
    return int(row[0]) if row else 0


def concurrent_updates(world: World) -> Iterator[float]:
    """Change the rows that runners are about to change."""
    with world.database("api") as connection:
        connection.execute("SET default_transaction_isolation = 'read committed'")
        while _work_left(world):
            # Locked for a moment: a runner's transaction that begins meanwhile finds a row newer than its snapshot.
            with connection.transaction():
                done = connection.execute("""UPDATE "Photo" SET size = size + 1 WHERE status = 'PROCESSING'""")
                world.seen["concurrent update"] += done.rowcount
                yield 0.06
            yield 0.05


def disk_full(disk: Path, seconds: float) -> Fault:
    """Fill the disk mounted at `disk`, twice, for at least `seconds` and until PostgreSQL has run out of space."""

    def fault(world: World) -> Iterator[float]:
        ballast = disk / "ballast"
        for number in range(world.times(2)):
            yield 1.5 if number else 0.2  # a fast machine finishes a short campaign quickly
            before = _refusals(world, NO_SPACE)
            with ballast.open("wb") as file, suppress(OSError):
                while True:
                    file.write(b"\0" * 65536)
                    file.flush()
            world.seen["disk full"] += 1
            yield world.scaled(seconds)
            while _refusals(world, NO_SPACE) == before and _work_left(world):
                yield 0.1
            ballast.unlink()
        world.seen[NO_SPACE] = _refusals(world, NO_SPACE)

    return fault


# The image server and the photos


def image_server(behaviour: Behaviour, seconds: float) -> Fault:
    """Make the image server misbehave for `seconds`."""

    def fault(world: World) -> Iterator[float]:
        yield 0.5
        world.images.behaviour = behaviour
        yield world.scaled(seconds)
        world.images.behaviour = Behaviour.NORMAL
        for name, count in world.images.answers.items():
            if name != "200":
                world.seen[f"responses: {name}"] = count

    return fault


def deletions_from_outside(share: float) -> Fault:
    """Delete a share of the photos at random times."""

    def fault(world: World) -> Iterator[float]:
        chosen = [photo_id for photo_id in world.jobs.photos if world.random.random() < share]
        with world.database("api") as connection:
            for photo_id in chosen:
                connection.execute('DELETE FROM "Photo" WHERE id = %s', (photo_id,))
                world.seen["deleted"] += 1
                yield 0.05

    return fault


def locked_rows(count: int, seconds: float) -> Fault:
    """Lock waiting photos, a few at a time, for longer than a run waits for a lock."""

    def fault(world: World) -> Iterator[float]:
        for _ in range(world.times(count)):
            with world.database("api") as connection, connection.transaction():
                locked = connection.execute(
                    "SELECT id FROM \"Photo\" WHERE status = 'UPLOADED' ORDER BY id LIMIT 3 FOR UPDATE SKIP LOCKED"
                ).fetchall()
                world.seen["locked"] += len(locked)
                yield seconds
            yield 0.2

    return fault


def _until_exit(world: World, code: int) -> Iterator[float]:
    """Wait until another run has ended with `code`, or no work is left."""
    before = world.exits()[code]
    while world.exits()[code] == before and _work_left(world):
        yield 0.1


def rights_revoked(world: World) -> Iterator[float]:
    """Revoke each right of the role in turn, until a run has failed because of it."""
    with world.database("api") as connection:
        for right in RIGHTS:
            connection.execute(f"REVOKE {right} FROM worker".encode())
            world.seen["revoked"] += 1
            yield from _until_exit(world, SettingsError.exit_code)
            connection.execute(f"GRANT {right} TO worker".encode())
            yield 0.3


def row_security(count: int) -> Fault:
    """Hide every photo from the role until a run has stopped because of it, `count` times."""

    def fault(world: World) -> Iterator[float]:
        with world.database("api") as connection:
            for _ in range(world.times(count)):
                connection.execute('ALTER TABLE "Photo" ENABLE ROW LEVEL SECURITY')
                world.seen["hidden"] += 1
                yield from _until_exit(world, PhotosInvisibleError.exit_code)
                connection.execute('ALTER TABLE "Photo" DISABLE ROW LEVEL SECURITY')
                yield 1.0

    return fault


def foreign_settings(world: World) -> Iterator[float]:
    """Change settings on the pooler's connections, as another client would, for as long as there is work."""
    url = f"postgresql://postgres@127.0.0.1:{world.entrance}/api"
    settings = (
        "SET search_path = pg_catalog", "SET statement_timeout = '700ms'", "SET default_transaction_read_only = on",
        "SET default_transaction_isolation = 'serializable'", "SET bytea_output = escape",
    )  # fmt: skip
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        yield 0.1
        while _work_left(world):
            for setting in settings:
                connection.execute(setting.encode())
                world.seen["foreign setting"] += 1
            yield 0.1


def runs_of_another_deployment(count: int) -> Fault:
    """Start `count` runs with the DATABASE_URL of another deployment in turn, in addition to the correct runs."""

    def fault(world: World) -> Iterator[float]:
        with world.database("api") as connection:
            connection.execute("CREATE DATABASE staging")
        with world.database("staging") as connection:
            create_table(connection)
            connection.execute("INSERT INTO \"Photo\" (id, status) VALUES ('theirs', 'READY')")
        wrong = {
            "DATABASE_URL": world.postgres.database_url("staging"),
            "EMBEDDINGS_DATABASE_URL": world.environment["DATABASE_URL"],
        }
        for _ in range(count):
            process = world.command("run", "--queues", "process", fault=wrong)
            while process.poll() is None:
                yield 0.1
            summary = json.loads(process.communicate()[0].splitlines()[-1])
            assert not summary["photo_gone"], f"jobs of existing photos were acknowledged as deleted: {summary}"
            world.seen[f"exit code {process.returncode} of another deployment's run"] += 1
            world.seen["jobs that it released"] += summary["released"]

    return fault


def _refusals(world: World, *messages: str) -> int:
    """Return how often PostgreSQL has logged one of these messages."""
    text = world.postgres.log.read_text("utf-8", "replace")
    return sum(text.count(message) for message in messages)


def _work_left(world: World) -> bool:
    return not world.scaler.idle()
