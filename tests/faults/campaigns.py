"""The campaigns: what happens, to how many jobs, and what may be left behind."""

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
from tests.faults.pictures import Kind, Mood
from tests.faults.world import Fault, Setup, World

POISON = "too_many_attempts"
FETCH = ("fetch_failed", "fetch_timeout")


@dataclass(frozen=True, slots=True)
class Campaign:
    """One fault, the jobs that meet it, and what is allowed. `short` is what `make test` runs of it, if anything.

    `happened` names what must have been seen at least once, or the campaign has shown nothing. `examine` looks at
    the world before its servers end, for what this campaign alone asks.
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
    prepare: Callable[[World], None] = lambda _: None
    examine: Callable[[World, Verdict], None] = lambda _, __: None


def run(campaign: Campaign, pictures: Mapping[str, Kind], *, short: bool = False) -> Verdict:
    """Run one campaign on servers of its own and return what was seen."""
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
            world.play(campaign.fault)
        except AssertionError as error:
            world.scaler.stop()
            verdict = Verdict([str(error)])
        else:
            verdict = check(world, campaign.allowed)
            campaign.examine(world, verdict)
        seen = world.seen + world.faults_noted()
        for name in campaign.happened:
            verdict.expect(seen[name], f"what the campaign is about has not happened: {name}")
        if verdict.wrong:
            verdict.counts["logs"] = _kept_logs(world, campaign.name)
    verdict.counts["seconds"] = round(time.monotonic() - started, 1)
    return verdict


def _choose(world: World, subjects: Sequence[str], *, first: bool) -> None:
    """Let these jobs meet the fault, at their first attempt only or at every one."""
    path = world.folder / "subjects"
    path.write_text("\n".join(subjects), "utf-8")
    world.scaler.environment |= {"FAULT_SUBJECTS": str(path), "FAULT_FIRST": "1" if first else ""}


def _kept_logs(world: World, name: str) -> str:
    """Copy the runners' logs to where a person can read them."""
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
    """Run `spottmee-worker sweep` when all is done: rows deleted after the photo was stored leave faces until then."""
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


# One job that hurts


def _mark(share: int = 40) -> Callable[[World], None]:
    """Mark one photo in `share` as the ones that meet the fault, at every attempt."""

    def prepare(world: World) -> None:
        ids = [photo_id for photo_id, kind in world.jobs.photos.items() if kind.status == "READY"]
        marked = ids[::share]
        _choose(world, marked, first=False)
        world.seen["marked"] = len(marked)

    return prepare


def _only_marked_failed(reason: str) -> Callable[[World, Verdict], None]:
    """Nothing but what was marked may have failed: no job takes its neighbours with it."""

    def examine(world: World, verdict: Verdict) -> None:
        buried = verdict.counts["buried"].get(reason, 0)
        verdict.expect(buried == world.seen["marked"], f"{buried} were buried, {world.seen['marked']} were marked")

    return examine


def _huge(world: World) -> None:
    """Put photos among the others that need more memory than there is."""
    world.seen["marked"] = len(world.upload(3, names=["huge"]))
    world.upload(40)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Mount a disk of that size, for PostgreSQL's user. Needs root; raises `OSError` where it may not mount."""
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
    """Return the campaign whose tables lie on `disk`."""
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
    """At most one more start for every kill than the burst needs by itself."""
    needed = -(-len(world.jobs) // world.setup.jobs_per_runner)
    extra = len(world.scaler.runners) - needed
    verdict.counts["extra starts"] = extra
    killed = world.seen["kill -9"]
    verdict.expect(extra <= killed, f"{extra} runners more than {needed} were started for {killed} kills")
    verdict.expect(not verdict.counts["buried"].get(POISON), "a job was buried that only met kills")


def _no_serialisation_failure(world: World, verdict: Verdict) -> None:
    """Every transaction of a runner asks for READ COMMITTED itself."""
    text = world.postgres.log.read_text("utf-8", "replace")
    verdict.expect("could not serialize access" not in text, "a transaction was not READ COMMITTED")


def campaigns() -> list[Campaign]:
    """Return every campaign but the one that needs a disk of its own."""
    return [
        Campaign(
            "kill-random",
            "kill -9 of a random runner, at random moments",
            photos=220,
            comparisons=40,
            short=(60, 10),
            fault=faults.kills,
            allowed=RANDOM_KILLS,
            happened=("kill -9",),
        ),
        _killed_at("after_claim"),
        _killed_at("after_begin"),
        _killed_at("after_fetch"),
        _killed_at("in_decode"),
        _killed_at("before_store"),
        _killed_at("between_databases", separate=True, short=50),
        _killed_at("between_databases"),
        _killed_at("after_store"),
        _killed_at("after_store", separate=True),
        _killed_at("after_acknowledge"),
        replace(
            _killed_at("before_bury"),
            setup=Setup(fault=_point("before_bury", share=0.6)),
        ),
        _killed_at("after_claim", comparisons=True),
        _killed_at("after_answer", comparisons=True, short=30),
        Campaign(
            "oom-kill",
            "OOM kill: photos of 60 million pixels in a memory cgroup of 270 MB",
            photos=160,
            setup=Setup(fault={"FAULT_MEMORY": str(270 << 20)}),
            prepare=_huge,
            allowed=Allowed(codes=(0, KILLED), reasons=(POISON,)),
            examine=_only_marked_failed(POISON),
        ),
        Campaign(
            "oom-kill-poison",
            "one job in forty kills its runner, at every attempt",
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
            "malloc fails: photos of 60 million pixels under RLIMIT_AS",
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
            # A process that Python is still starting in has no handler yet: it ends as any does, with nothing claimed.
            allowed=Allowed(codes=(0, TERMINATED)),
            happened=("SIGTERM",),
            examine=_quick_ends,
        ),
        Campaign(
            "redis-restart",
            "Redis killed and restarted, AOF on",
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
            fault=faults.unreachable("redis", State.SHUT),
            allowed=OUTAGE,
        ),
        Campaign(
            "redis-dark",
            "Redis answers nothing for 20 s",
            photos=220,
            comparisons=40,
            fault=faults.unreachable("redis", State.DARK),
            allowed=OUTAGE,
        ),
        Campaign(
            "redis-refused-impatient",
            "Redis refuses connections for 8 s, RUNNER_CONNECT_SECONDS=1",
            photos=200,
            setup=Setup(environment={"RUNNER_CONNECT_SECONDS": "1"}),
            fault=faults.unreachable("redis", State.SHUT, seconds=8, after=1.5),
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
            "failover to a replica that lacks the last 1.5 s of writes",
            photos=220,
            comparisons=40,
            short=(80, 20),
            fault=faults.failover,
            allowed=Allowed(codes=(0, 75), lossy=True),
            happened=("failover", "scripts of runners lost"),
        ),
        Campaign(
            "postgres-restart",
            "PostgreSQL restarted with -m immediate, fsync on",
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
            "PostgreSQL restarted with -m immediate, fsync on, two databases",
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
            fault=faults.unreachable("postgres", State.SHUT),
            allowed=OUTAGE,
        ),
        Campaign(
            "postgres-dark",
            "PostgreSQL answers nothing for 20 s",
            photos=220,
            comparisons=40,
            fault=faults.unreachable("postgres", State.DARK),
            allowed=OUTAGE,
        ),
        Campaign(
            "postgres-refused-impatient",
            "PostgreSQL refuses connections for 8 s, RUNNER_CONNECT_SECONDS=1",
            photos=200,
            setup=Setup(environment={"RUNNER_CONNECT_SECONDS": "1"}),
            fault=faults.unreachable("postgres", State.SHUT, seconds=8, after=1.5),
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
            happened=("connections used up", "refused: too many clients"),
        ),
        Campaign(
            "postgres-deadlock",
            "deadlocks with another client of the table",
            photos=220,
            setup=Setup(postgres=("deadlock_timeout=300ms",)),
            fault=faults.deadlocks(8),
            allowed=OUTAGE,
            happened=("deadlock",),
        ),
        Campaign(
            "postgres-serialisation",
            "REPEATABLE READ as the server's default, beside another writer",
            photos=220,
            setup=Setup(postgres=("default_transaction_isolation=repeatable read",)),
            fault=faults.concurrent_updates,
            happened=("concurrent update",),
            examine=_no_serialisation_failure,
        ),
        Campaign(
            "images-errors",
            "a third of the image server's answers fails, for 6 s",
            photos=220,
            fault=faults.image_server(Mood.ERRORS, 6),
            allowed=Allowed(reasons=FETCH),
        ),
        Campaign(
            "images-down",
            "image server down for 3 s",
            photos=220,
            setup=Setup(environment={"RUNNER_RETRY_SECONDS": "2"}),
            fault=faults.image_server(Mood.DOWN, 3),
            allowed=Allowed(reasons=FETCH),
        ),
        Campaign(
            "images-slow",
            "every third answer of the image server drips past RUNNER_FETCH_SECONDS=1, for 10 s",
            photos=200,
            setup=Setup(environment={"RUNNER_FETCH_SECONDS": "1"}),
            fault=faults.image_server(Mood.SLOW, 10),
            allowed=Allowed(reasons=FETCH),
        ),
        Campaign(
            "stuck",
            "native code that does not come back, for one photo in forty",
            photos=200,
            setup=Setup(
                fault=_point("in_decode", "hang"), environment={"RUNNER_PHOTO_SECONDS": "2", "RUNNER_THREADS": "2"}
            ),
            prepare=_mark(),
            allowed=Allowed(codes=(0, 76), reasons=("photo_timeout",)),
            examine=_only_marked_failed("photo_timeout"),
            happened=("in_decode hang",),
        ),
        Campaign(
            "frozen",
            "native code that does not come back and keeps the interpreter, for one photo in eighty",
            photos=160,
            setup=Setup(
                fault={**_point("in_decode", "freeze"), "FAULT_HUNG_SECONDS": "6"},
                environment={"RUNNER_CONNECT_SECONDS": "1"},
            ),
            prepare=_mark(80),
            allowed=Allowed(codes=(0, 1), reasons=(POISON,)),
            examine=_only_marked_failed(POISON),
            happened=("in_decode freeze",),
        ),
        Campaign(
            "two-holders",
            "runners stopped for longer than their leases last, then let go on",
            photos=240,
            comparisons=40,
            setup=Setup(environment={"RUNNER_LEASE_SECONDS": "2"}),
            fault=faults.pauses(8, 3.5),
            allowed=Allowed(reasons=(POISON,)),
            happened=("SIGSTOP",),
        ),
        Campaign(
            "deleted-any-time",
            "a quarter of the photo rows deleted at random moments",
            photos=220,
            fault=_both(faults.deletions_from_outside(0.25), _then_swept),
            allowed=Allowed(deleted=True),
            happened=("deleted",),
        ),
        Campaign(
            "wrong-database",
            "five runs of another deployment, with its own database, on the same Redis",
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
            "every runner of a burst of 200 jobs killed once, at a random moment",
            photos=200,
            short=(200, 0),
            setup=Setup(jobs_per_runner=50, max_runners=4),
            fault=faults.every_runner_killed_once,
            allowed=KILLS,
            happened=("kill -9",),
            examine=_few_extra_starts,
        ),
    ]


def _both(*together: Fault) -> Fault:
    """Let faults happen one after the other."""

    def fault(world: World) -> Iterator[float]:
        for one in together:
            yield from one(world)

    return fault


def _quick_ends(world: World, verdict: Verdict) -> None:
    slowest = world.seen["slowest end, ms"]
    verdict.expect(slowest < 10_000, f"a runner took {slowest} ms to end after SIGTERM")


def summary_row(name: str, title: str, counts: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """Return what the report says of one campaign."""
    return {"name": name, "title": title, **counts, "passed": not wrong, "wrong": wrong}
