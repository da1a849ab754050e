"""The campaigns: which fault is injected into how many jobs, and which deviations are allowed afterwards."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from demo.servers import NOBODY
from tests.faults import faults
from tests.faults.checker import KILLED, TERMINATED, Allowed, Verdict, check
from tests.faults.gate import State
from tests.faults.pictures import Behaviour, Kind
from tests.faults.world import Fault, Setup, World

POISON = "too_many_attempts"
FETCH = ("fetch_failed", "fetch_timeout")


@dataclass(frozen=True, slots=True)
class Campaign:
    """One fault, the number of jobs, and the allowed deviations. `short` are the numbers in `make test`, if any.

    `happened` names the events that must occur at least once, or the campaign proves nothing. `examine` checks what is
    specific to this campaign, before the servers stop.
    """

    name: str
    title: str
    photos: int = 0
    comparisons: int = 0
    short: tuple[int, int] | None = None
    setup: Setup = field(default_factory=Setup)
    fault: Fault | None = None
    allowed: Allowed = field(default_factory=Allowed)
    happened: tuple[str, ...] = ()
    seconds: float = 400.0
    prepare: Callable[[World], None] = lambda _: None
    examine: Callable[[World, Verdict], None] = lambda _, __: None


def run(campaign: Campaign, pictures: Mapping[str, Kind], *, short: bool = False) -> Verdict:
    """Run one campaign on servers of its own and return the verdict."""
    photos, comparisons = (campaign.short or (0, 0)) if short else (campaign.photos, campaign.comparisons)
    started = time.monotonic()
    with World(pictures, campaign.setup, short=short) as world:
        if comparisons:
            world.prepare_comparisons()
            world.compare(comparisons)
        if photos:
            world.upload(photos)
        if share := campaign.setup.fault.get("FAULT_SHARE"):
            _choose(world, [*world.jobs.photos, *world.jobs.comparisons][:: round(1 / float(share))], first=True)
        campaign.prepare(world)
        try:
            world.play(campaign.fault, seconds=campaign.seconds)
        except AssertionError as error:
            world.scaler.stop()
            verdict = Verdict([str(error)])
        else:
            verdict = check(world, campaign.allowed)
            campaign.examine(world, verdict)
        seen = world.seen + world.faults_noted()
        for name in campaign.happened:
            verdict.expect(seen[name], f"the fault was never injected: {name}")
        if verdict.wrong:
            verdict.counts["logs"] = _kept_logs(world, campaign.name)
    verdict.counts["seconds"] = round(time.monotonic() - started, 1)
    return verdict


def _choose(world: World, subjects: Sequence[str], *, first: bool) -> None:
    """Inject the fault into these jobs, at their first attempt only or at every attempt."""
    path = world.folder / "subjects"
    path.write_text("\n".join(subjects), "utf-8")
    world.scaler.environment |= {"FAULT_SUBJECTS": str(path), "FAULT_FIRST": "1" if first else ""}


def _kept_logs(world: World, name: str) -> str:
    """Copy the logs of the runners and PostgreSQL to a folder that is kept, and return it."""
    folder = Path(tempfile.mkdtemp(prefix=f"spottmee-faults-{name}-"))
    for path in [*world.folder.glob("*.log"), *world.folder.glob("*.out"), world.postgres.log]:
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def _point(point: str, action: str = "kill", share: float = 0.08, **more: str) -> dict[str, str]:
    return {"FAULT_POINT": point, "FAULT_ACTION": action, "FAULT_SHARE": str(share), **more}


KILLS = Allowed(codes=(0, KILLED))
RANDOM_KILLS = Allowed(codes=(0, KILLED), reasons=(POISON,))
OUTAGE = Allowed(codes=(0, 75))


def _killed_at(point: str, *, separate: bool = False, comparisons: bool = False, short: int = 0) -> Campaign:
    return Campaign(
        f"kill-{point.replace('_', '-')}{'-two-databases' * separate}{'-comparisons' * comparisons}",
        f"kill -9 {point.replace('_', ' ')}"
        + (", two databases" if separate else "")
        + (", comparisons" if comparisons else ""),
        photos=0 if comparisons else 200,
        comparisons=200 if comparisons else 0,
        short=((0, short) if comparisons else (short, 0)) if short else None,
        setup=Setup(separate=separate, fault=_point(point, share=0.08 if not short else 0.1)),
        allowed=KILLS,
        happened=(f"{point} kill",),
    )


def _deleted_at(point: str, action: str = "delete", *, short: int = 0, separate: bool = True) -> Campaign:
    late = point in ("between_databases", "after_store") and action == "delete"
    return Campaign(
        f"{action.replace('_', '-')}-{point.replace('_', '-')}",
        f"photo row deleted {point.replace('_', ' ')}" + (", then kill -9" if action == "delete_and_kill" else ""),
        photos=200,
        short=(short, 0) if short else None,
        setup=Setup(separate=separate, fault=_point(point, action, 0.15)),
        allowed=Allowed(codes=(0, KILLED) if action == "delete_and_kill" else (0,), deleted=True),
        happened=(f"{point} {action}",),
        fault=_then_swept if late else None,
    )


def _then_swept(world: World) -> Iterator[float]:
    """Run `spottmee-worker sweep` at the end: it removes the faces of rows deleted after their photo was stored."""
    yield 1.0
    while not world.scaler.idle():
        yield 0.2
    with world.database("api") as api, world.faces_database() as connection:
        rows = {row[0] for row in api.execute('SELECT id FROM "Photo"').fetchall()}
        left = [row[0] for row in connection.execute("SELECT DISTINCT photo_id FROM faces").fetchall()]
        world.seen["photos left to the sweep"] = sum(photo_id not in rows for photo_id in left)
    sweeping = world.command("sweep")
    sweeping.communicate(timeout=60)
    assert sweeping.returncode == 0, "the sweep failed"


# Poison jobs


def _mark(share: int = 40) -> Callable[[World], None]:
    """Select one photo in `share` for the fault, at every attempt."""

    def prepare(world: World) -> None:
        ids = [photo_id for photo_id, kind in world.jobs.photos.items() if kind.status == "READY"]
        marked = ids[::share]
        _choose(world, marked, first=False)
        world.seen["marked"] = len(marked)

    return prepare


def _only_marked_failed(reason: str) -> Callable[[World, Verdict], None]:
    """Check that only marked jobs failed: a poison job must not fail the other jobs of its batch."""

    def examine(world: World, verdict: Verdict) -> None:
        dead = verdict.counts["dead letters"].get(reason, 0)
        verdict.expect(dead == world.seen["marked"], f"{dead} dead letters, but {world.seen['marked']} marked jobs")

    return examine


def _huge(world: World) -> None:
    """Upload 3 photos that need more memory than is available, and 40 others."""
    world.seen["marked"] = len(world.upload(3, names=["huge"]))
    world.upload(40)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Mount a disk of that size for PostgreSQL's user. Raises `OSError` if mounting is not permitted (needs root)."""
    folder = Path(tempfile.mkdtemp(prefix="spottmee-disk-"))
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"mount: {done.stderr.decode().strip()}")
        try:
            if os.geteuid() == 0:
                os.chown(folder, NOBODY, NOBODY)
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False)
    finally:
        folder.rmdir()


def _on_disk(disk: Path) -> Callable[[World], None]:
    """Move both tables to a tablespace on `disk`."""

    def prepare(world: World) -> None:
        place = disk / "tables"
        place.mkdir()
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        with world.database("api") as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
            for statement in (
                'ALTER TABLE "Photo" SET TABLESPACE small',
                "ALTER TABLE faces SET TABLESPACE small",
                "ALTER INDEX faces_pkey SET TABLESPACE small",
            ):
                connection.execute(statement.encode())

    return prepare


def disk_campaign(disk: Path) -> Campaign:
    """Return the campaign whose tables are stored on `disk`."""
    return Campaign(
        "postgres-disk-full",
        "PostgreSQL's disk full, twice for 6 s",
        photos=220,
        short=(60, 0),
        prepare=_on_disk(disk),
        fault=faults.disk_full(disk, 6),
        allowed=OUTAGE,
        happened=("disk full", "No space left on device"),
    )


# Recovery


def _few_extra_starts(world: World, verdict: Verdict) -> None:
    """Check that each kill causes at most one additional start."""
    needed = -(-len(world.jobs) // world.setup.jobs_per_runner)
    extra = len(world.scaler.runners) - needed
    verdict.counts["extra starts"] = extra
    killed = world.seen["kill -9"]
    verdict.expect(extra <= killed, f"{needed} runners were needed, but {extra} more were started after {killed} kills")
    verdict.expect(not verdict.counts["dead letters"].get(POISON), "a job became a dead letter only because of kills")


def _no_serialisation_failure(world: World, verdict: Verdict) -> None:
    """Check that every transaction of a runner is READ COMMITTED."""
    text = world.postgres.log.read_text("utf-8", "replace")
    verdict.expect("could not serialize access" not in text, "a transaction was not READ COMMITTED")


def campaigns() -> list[Campaign]:
    """Return all campaigns except the one that needs a disk of its own."""
    return [
        Campaign(
            "kill-random",
            "kill -9 a random runner at random times",
            photos=220,
            comparisons=40,
            short=(60, 10),
            fault=faults.kills,
            allowed=RANDOM_KILLS,
            happened=("kill -9",),
        ),
        _killed_at("after_claim"),
        _killed_at("after_begin", short=30),
        _killed_at("after_fetch"),
        _killed_at("in_decode"),
        _killed_at("before_store"),
        _killed_at("between_databases", separate=True, short=50),
        _killed_at("between_databases"),
        _killed_at("after_store"),
        _killed_at("after_store", separate=True),
        _killed_at("after_acknowledge"),
        replace(
            _killed_at("before_dead_letter"),
            setup=Setup(fault=_point("before_dead_letter", share=0.6)),
        ),
        _killed_at("after_claim", comparisons=True),
        _killed_at("after_answer", comparisons=True, short=30),
        Campaign(
            "oom-kill",
            "OOM kill: photos of 60 megapixels in a memory cgroup of 270 MB",
            photos=160,
            setup=Setup(fault={"FAULT_MEMORY": str(270 << 20)}),
            prepare=_huge,
            allowed=Allowed(codes=(0, KILLED), reasons=(POISON,)),
            examine=_only_marked_failed(POISON),
        ),
        Campaign(
            "oom-kill-poison",
            "one job in 40 kills its runner at every attempt",
            photos=240,
            short=(40, 0),
            setup=Setup(fault=_point("in_decode"), max_runners=2),
            prepare=_mark(),
            allowed=Allowed(codes=(0, KILLED), reasons=(POISON,)),
            examine=_only_marked_failed(POISON),
            happened=("in_decode kill",),
        ),
        Campaign(
            "malloc-fails",
            "malloc fails: photos of 60 megapixels under RLIMIT_AS",
            photos=160,
            setup=Setup(fault={"FAULT_ADDRESS_SPACE": str(900 << 20)}),
            prepare=_huge,
            allowed=Allowed(codes=(0, KILLED), reasons=("out_of_memory",)),
            examine=_only_marked_failed("out_of_memory"),
        ),
        Campaign(
            "sigterm",
            "SIGTERM to a random runner mid-batch",
            photos=220,
            comparisons=40,
            short=(60, 10),
            fault=faults.terminations(20),
            # While Python starts, there is no signal handler yet: SIGTERM ends the process before it claims anything.
            allowed=Allowed(codes=(0, TERMINATED)),
            happened=("SIGTERM",),
            examine=_exits_in_time,
        ),
        Campaign(
            "redis-restart",
            "Redis killed and restarted, with AOF",
            photos=220,
            comparisons=40,
            short=(60, 10),
            setup=Setup(appendonly=True),
            fault=faults.redis_restarts(4),
            allowed=OUTAGE,
            happened=("Redis restarted",),
        ),
        Campaign(
            "redis-refused",
            "Redis refuses connections for 20 s",
            photos=220,
            comparisons=40,
            fault=faults.unreachable("redis", State.REFUSED),
            allowed=OUTAGE,
        ),
        Campaign(
            "redis-unresponsive",
            "Redis does not respond for 20 s",
            photos=220,
            comparisons=40,
            fault=faults.unreachable("redis", State.UNRESPONSIVE),
            allowed=OUTAGE,
        ),
        Campaign(
            "redis-refused-impatient",
            "Redis refuses connections for 8 s, with RUNNER_CONNECT_TIMEOUT_SECONDS=1",
            photos=200,
            setup=Setup(environment={"RUNNER_CONNECT_TIMEOUT_SECONDS": "1"}),
            fault=faults.unreachable("redis", State.REFUSED, seconds=8, after=1.5),
            allowed=OUTAGE,
        ),
        Campaign(
            "redis-full",
            "Redis full (OOM command not allowed), twice for 6 s",
            photos=220,
            comparisons=40,
            fault=faults.redis_full(6),
            allowed=OUTAGE,
            happened=("Redis full", "refused by Redis"),
        ),
        Campaign(
            "redis-failover",
            "failover to a replica without the last 1.5 s of writes",
            photos=220,
            comparisons=40,
            short=(80, 20),
            fault=faults.failover,
            allowed=Allowed(codes=(0, 75), lossy=True),
            happened=("failover", "scripts of runners lost"),
        ),
        Campaign(
            "postgres-restart",
            "PostgreSQL restarted with -m immediate, with fsync",
            photos=220,
            comparisons=40,
            short=(60, 10),
            setup=Setup(durable=True),
            fault=faults.postgres_restarts(4),
            allowed=OUTAGE,
            happened=("PostgreSQL restarted",),
        ),
        Campaign(
            "postgres-restart-two-databases",
            "PostgreSQL restarted with -m immediate, with fsync, two databases",
            photos=220,
            setup=Setup(durable=True, separate=True),
            fault=faults.postgres_restarts(4),
            allowed=OUTAGE,
            happened=("PostgreSQL restarted",),
        ),
        Campaign(
            "postgres-refused",
            "PostgreSQL refuses connections for 20 s",
            photos=220,
            comparisons=40,
            fault=faults.unreachable("postgres", State.REFUSED),
            allowed=OUTAGE,
        ),
        Campaign(
            "postgres-unresponsive",
            "PostgreSQL does not respond for 20 s",
            photos=220,
            comparisons=40,
            fault=faults.unreachable("postgres", State.UNRESPONSIVE),
            allowed=OUTAGE,
        ),
        Campaign(
            "postgres-refused-impatient",
            "PostgreSQL refuses connections for 8 s, with RUNNER_CONNECT_TIMEOUT_SECONDS=1",
            photos=200,
            setup=Setup(environment={"RUNNER_CONNECT_TIMEOUT_SECONDS": "1"}),
            fault=faults.unreachable("postgres", State.REFUSED, seconds=8, after=1.5),
            allowed=OUTAGE,
        ),
        Campaign(
            "postgres-read-only",
            "PostgreSQL read-only, twice for 6 s",
            photos=220,
            fault=faults.read_only(6),
            allowed=OUTAGE,
            happened=("PostgreSQL read-only", "refused: read-only"),
        ),
        Campaign(
            "postgres-no-connections",
            "PostgreSQL out of connections, twice for 6 s",
            photos=220,
            setup=Setup(postgres=("max_connections=14", "superuser_reserved_connections=0")),
            fault=faults.no_connections(6),
            allowed=OUTAGE,
            happened=("connections exhausted", "refused: too many clients"),
        ),
        Campaign(
            "postgres-deadlock",
            "deadlocks with another client",
            photos=220,
            setup=Setup(postgres=("deadlock_timeout=300ms",)),
            fault=faults.deadlocks(8),
            allowed=OUTAGE,
            happened=("deadlock",),
        ),
        Campaign(
            "postgres-locks",
            "rows locked by another client for longer than RUNNER_LOCK_TIMEOUT_SECONDS",
            photos=200,
            comparisons=40,
            short=(24, 4),
            setup=Setup(environment={"RUNNER_LOCK_TIMEOUT_SECONDS": "0.3", "RUNNER_MAX_ATTEMPTS": "20"}),
            fault=faults.locked_rows(12, 1.5),
            happened=("locked",),
            examine=_met_locks,
        ),
        Campaign(
            "postgres-rights",
            "each right of the role revoked, one after the other",
            photos=200,
            short=(24, 0),
            setup=Setup(limited=True),
            fault=faults.rights_revoked,
            allowed=Allowed(codes=(0, 2)),
            happened=("revoked",),
            examine=_ended_with(2),
        ),
        Campaign(
            "postgres-row-security",
            "row-level security hides every photo, three times",
            photos=200,
            short=(24, 0),
            setup=Setup(limited=True, fault={"FAULT_INVISIBLE_SECONDS": "3"}),
            fault=faults.row_security(3),
            allowed=Allowed(codes=(0, 7)),
            happened=("hidden",),
            examine=_ended_with(7),
        ),
        Campaign(
            "postgres-sql-ascii",
            "a database in SQL_ASCII, and kill -9 after the claim",
            photos=200,
            comparisons=40,
            short=(24, 4),
            setup=Setup(encoding="SQL_ASCII", fault=_point("after_claim", share=0.1)),
            allowed=KILLS,
        ),
        Campaign(
            "postgres-pooler",
            "PgBouncer in transaction mode, with the settings of another client on its connections",
            photos=200,
            comparisons=40,
            short=(24, 4),
            setup=Setup(pooler="transaction"),
            fault=faults.foreign_settings,
            happened=("foreign setting",),
        ),
        Campaign(
            "postgres-serialisation",
            "REPEATABLE READ as the server's default, with a concurrent writer",
            photos=220,
            setup=Setup(postgres=("default_transaction_isolation=repeatable read",)),
            fault=faults.concurrent_updates,
            happened=("concurrent update",),
            examine=_no_serialisation_failure,
        ),
        Campaign(
            "images-errors",
            "a third of the image server's responses fail, for 6 s",
            photos=220,
            fault=faults.image_server(Behaviour.ERRORS, 6),
            allowed=Allowed(reasons=FETCH),
        ),
        Campaign(
            "images-down",
            "the image server is down for 3 s",
            photos=220,
            setup=Setup(environment={"RUNNER_RETRY_BASE_SECONDS": "2"}),
            fault=faults.image_server(Behaviour.DOWN, 3),
            allowed=Allowed(reasons=FETCH),
        ),
        Campaign(
            "images-slow",
            "a third of the image server's responses take longer than RUNNER_FETCH_TIMEOUT_SECONDS=1, for 10 s",
            photos=200,
            setup=Setup(environment={"RUNNER_FETCH_TIMEOUT_SECONDS": "1"}),
            fault=faults.image_server(Behaviour.SLOW, 10),
            allowed=Allowed(reasons=FETCH),
        ),
        Campaign(
            "stuck",
            "native code that never returns, for one photo in 40",
            photos=200,
            setup=Setup(
                fault=_point("in_decode", "hang"),
                environment={"RUNNER_PHOTO_TIMEOUT_SECONDS": "2", "RUNNER_THREADS": "2"},
            ),
            prepare=_mark(),
            allowed=Allowed(codes=(0, 76), reasons=("photo_timeout",)),
            examine=_only_marked_failed("photo_timeout"),
            happened=("in_decode hang",),
        ),
        Campaign(
            "frozen",
            "native code that never returns and never releases the GIL, for one photo in 80",
            photos=160,
            setup=Setup(
                fault={**_point("in_decode", "freeze"), "FAULT_HUNG_SECONDS": "-54"},
                environment={"RUNNER_CONNECT_TIMEOUT_SECONDS": "1"},
            ),
            prepare=_mark(80),
            allowed=Allowed(codes=(0, 1), reasons=(POISON,)),
            examine=_only_marked_failed(POISON),
            happened=("in_decode freeze",),
        ),
        Campaign(
            "two-owners",
            "runners paused with SIGSTOP for longer than their leases, then continued",
            photos=240,
            comparisons=40,
            setup=Setup(environment={"RUNNER_LEASE_SECONDS": "2"}),
            fault=faults.pauses(8, 3.5),
            allowed=Allowed(reasons=(POISON,)),
            happened=("SIGSTOP",),
        ),
        Campaign(
            "early-selfies",
            "selfies up to 60 s after an upload of 2,000 photos, with kill -9, deletions and image server errors",
            photos=2000,
            short=(120, 0),
            # Enough attempts for valid jobs to survive the kills: this campaign is about the guests who wait for them.
            setup=Setup(jobs_per_runner=50, environment={"RUNNER_MAX_ATTEMPTS": "8"}),
            fault=_both(faults.early_selfies, _then_swept),
            allowed=Allowed(codes=(0, KILLED), reasons=(POISON, *FETCH), deleted=True),
            happened=("kill -9", "deleted", "guests"),
            seconds=1500,
            examine=_waited_for_their_album,
        ),
        Campaign(
            "deleted-any-time",
            "a quarter of the photo rows deleted at random times",
            photos=220,
            fault=_both(faults.deletions_from_outside(0.25), _then_swept),
            allowed=Allowed(deleted=True),
            happened=("deleted",),
        ),
        Campaign(
            "wrong-database",
            "five runs of another deployment, with a different database, on the same Redis",
            photos=120,
            setup=Setup(max_runners=1),
            fault=faults.runs_of_another_deployment(5),
            happened=("exit code 7 of another deployment's run",),
        ),
        _deleted_at("after_claim"),
        _deleted_at("after_begin"),
        _deleted_at("after_fetch"),
        _deleted_at("before_store"),
        _deleted_at("between_databases"),
        _deleted_at("after_store"),
        _deleted_at("between_databases", "delete_and_kill", short=40),
        Campaign(
            "every-runner-killed-once",
            "every runner of a burst of 200 jobs killed once, at a random time",
            photos=200,
            short=(200, 0),
            setup=Setup(jobs_per_runner=50, max_runners=4),
            fault=faults.every_runner_killed_once,
            allowed=KILLS,
            happened=("kill -9",),
            examine=_few_extra_starts,
        ),
    ]


def _ended_with(code: int) -> Callable[[World, Verdict], None]:
    """Check that the fault took effect: a run ended with this exit code."""

    def examine(world: World, verdict: Verdict) -> None:
        verdict.expect(world.exits()[code] > 0, f"no run ended with exit code {code}: {world.exits()}")

    return examine


def _met_locks(world: World, verdict: Verdict) -> None:
    """Check that some jobs ran into a lock. The allowed exit codes imply that no run ended because of it."""
    errors = [line["error"] for line in world.logs() if isinstance(line.get("error"), dict)]
    met = sum(error["code"] == "lock_timeout" for error in errors if isinstance(error, dict))
    verdict.counts["lock timeouts"] = met
    # A short campaign locks rows only once, perhaps after their jobs; tests/integration tests a single locked row.
    verdict.expect(met > 0 or world.short, "no job ran into a locked row")


def _waited_for_their_album(world: World, verdict: Verdict) -> None:
    """Check that at least half of the guests had to wait for their album (in a short campaign, at least one)."""
    lines = [line for line in world.logs() if line.get("event") == "comparison"]
    parked = {line["comparison"] for line in lines if line["outcome"] == "parked"}
    verdict.counts["guests that waited"] = len(parked)
    wanted = 1 if world.short else len(world.jobs.albums) / 2
    verdict.expect(len(parked) >= wanted, f"only {len(parked)} guests had to wait")


def _both(*together: Fault) -> Fault:
    """Return a fault that runs these faults one after the other."""

    def fault(world: World) -> Iterator[float]:
        for one in together:
            yield from one(world)

    return fault


def _exits_in_time(world: World, verdict: Verdict) -> None:
    slowest = world.seen["slowest exit, ms"]
    verdict.expect(slowest < 10_000, f"a runner took {slowest} ms to exit after SIGTERM")


def summary_row(name: str, title: str, counts: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """Return the result of one campaign for the report."""
    return {"name": name, "title": title, **counts, "passed": not wrong, "wrong": wrong}
