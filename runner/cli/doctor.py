"""`spottmee-worker doctor`: checks everything that a run needs, without claiming a job."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import onnxruntime
from redis import Redis

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.database import on_both
from runner.cli.flags import add_cluster_flags
from runner.cluster.photos import read_photos
from runner.errors import (
    NO_VISIBLE_ROW,
    ROW_SECURITY_ADVICE,
    MissingGrantError,
    PhotosInvisibleError,
    RunnerError,
)
from runner.faces import pack
from runner.faces.cpu import cpu_quota
from runner.faces.engine import Engine
from runner.faces.pack import Manifest
from runner.queue import rights as redis_rights
from runner.queue.client import opened
from runner.queue.databases import KnownDatabases
from runner.queue.leases import LeaseQueue
from runner.queue.self_test import SelfTest
from runner.settings import Settings
from runner.store import rights, schema, visibility
from runner.store.database import Database, embeddings_database, photos_database, retrying
from runner.store.deletion import removal
from runner.store.photos import PhotoTable
from runner.store.results import ResultStore
from runner.worker.kinds import COMPARISON

APPLICATION_NAME = "spottmee-worker doctor"
_SERVERS = ("REDIS_URL", "DATABASE_URL")
_SCALED_JOBS = "ScaledJobs"
_ALL_WORKS = "every operation works (tried on a private list)"
FOR = tuple(dict.fromkeys([*rights.COMMANDS, *redis_rights.RIGHTS]))


def add_parser(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help=COMMANDS["doctor"].help,
        description="Check everything that `run` needs, without claiming a job, and show what it would use and why. "
        "Exits with 0 if every check passes, otherwise with the exit code that `run` would have. With a flag that "
        "chooses a cluster, also check whether KEDA can scale (condition Ready of the ScaledJobs): exit code 5 if it "
        "cannot, 6 if the cluster could not be used. Without REDIS_URL and DATABASE_URL that is all it checks.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument(
        "--for",
        dest="commands",
        action="append",
        choices=FOR,
        metavar="COMMAND",
        help="fail if the roles in PostgreSQL or Redis lack a right that this command needs: "
        f"{', '.join(FOR)} (default: run); may be repeated",
    )
    add_cluster_flags(
        parser,
        release="only this Helm release (default: every release in the namespace)",
        default_context="the service account of the pod, or else its current context",
    )
    parser.add_argument(
        "--scaled-job",
        action="append",
        default=[],
        metavar="NAME",
        help="check this ScaledJob without listing all of them; may be repeated",
    )
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    with_cluster = args.context or args.namespace or args.release or args.scaled_job
    scaled_jobs = (lambda: _scaled_jobs(args)) if with_cluster else None
    if scaled_jobs is not None and not args.commands and not any(map(os.environ.get, _SERVERS)):
        checks = [_NOT_CHECKED, _run_check(_SCALED_JOBS, scaled_jobs)]
    else:
        checks = run_checks(settings_module.load(), scaled_jobs, args.commands or ("run",))
    if args.json:
        output.document([check.document() for check in checks], indent=2)
    else:
        for check in checks:
            state = "ok  " if check.error is None else "FAIL"
            output.line(f"{state} {check.name:<24} {check.error or check.finding}")
    return next((check.exit_code for check in checks if check.exit_code), 0)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found, or the error and the exit code that `run` would have."""

    name: str
    finding: str = ""
    error: str | None = None
    exit_code: int = 0

    def document(self) -> dict[str, object]:
        """Return the check as it is printed with --json."""
        return {"name": self.name, "ok": self.error is None, "message": self.error or self.finding}


_NOT_CHECKED = Check(
    "servers and model",
    finding=f"not checked, because {' and '.join(_SERVERS)} are not set here; from inside the cluster: "
    "spottmee-worker exec -- doctor",
)


def run_checks(
    settings: Settings, scaled_jobs: Callable[[], str] | None = None, commands: Collection[str] = ("run",)
) -> list[Check]:
    """Run every check, even after a failure; `scaled_jobs` is the check of the cluster, if requested.

    The rights that `commands` need are required; rights that other commands lack are only reported.
    """
    checks: dict[str, Callable[[Settings], str]] = {
        "Redis": partial(_redis, commands=commands),
        "API database": partial(_photos, commands=commands),
        "embeddings database": partial(_embeddings, commands=commands),
        "model": _model,
        "hardware": _hardware,
    }
    found = [_run_check(name, partial(check, settings)) for name, check in checks.items()]
    return found if scaled_jobs is None else [*found, _run_check(_SCALED_JOBS, scaled_jobs)]


def _run_check(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, finding=check())
    except RunnerError as error:
        return Check(name, error=str(error), exit_code=error.exit_code)


def _scaled_jobs(args: argparse.Namespace) -> str:
    from runner.cluster.readiness import check, open_reader  # the client of Kubernetes, imported only for its flags

    reader = open_reader(context=args.context, namespace=args.namespace)
    try:
        return check(reader, names=args.scaled_job, release=args.release)
    finally:
        reader.close()


def _redis(settings: Settings, commands: Collection[str]) -> str:
    with opened(settings) as redis:
        test = SelfTest(redis)
        requested = {*commands, *(("doctor",) if "run" in commands else ())}
        test.require_rights(requested & redis_rights.RIGHTS.keys())
        notes = [
            f"this user may not {name}: grant {' '.join(sorted(missing))}"
            for name in sorted(redis_rights.RIGHTS.keys() - requested)
            if (missing := test.missing([name]))
        ]
        if "doctor" not in requested:
            return "; ".join(["every requested right is granted", *notes])
        published = _self_test(test, redis, settings)
        return "; ".join([*_queue_states(redis, settings), *notes, *published, _ALL_WORKS])


def _queue_states(redis: Redis, settings: Settings) -> list[str]:
    found = []
    for name in settings.queues:
        queue = LeaseQueue(
            redis,
            name,
            owner="doctor",
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
        )
        queue.check()
        counts = queue.counts()
        awaited = "their album" if name == COMPARISON.queue else "their image server"
        parked = f", {counts.parked} waiting for {awaited}" if counts.parked else ""
        found.append(
            f"{name}: {counts.waiting} waiting, {counts.in_flight} in flight{parked}, {counts.dead_letters} dead"
        )
    return found


def _self_test(test: SelfTest, redis: Redis, settings: Settings) -> list[str]:
    """Perform every operation of a run on private keys, as the Redis user of the run; return notes."""
    try:
        test.play()
        if "compare" not in settings.queues:
            return []
        results = ResultStore(redis, unconfirmed=test.unconfirmed)
        results.begin(test.job_id)
        results.answer(test.job_id, [], {"error": None})
        results.remember(test.job_id)
        results.restore()
        ResultStore(redis).check()
        if not results.may_publish(test.job_id):
            return ["answers are stored, but not published: grant +publish and &match-result:*"]
        return []
    finally:
        test.clean_up()


def _photos(settings: Settings, commands: Collection[str]) -> str:
    with closing(photos_database(settings, APPLICATION_NAME)) as database:
        found, identity = retrying(
            lambda: _seen_photos(database, commands), [database], seconds=settings.connect_timeout_seconds
        )
    if _found_elsewhere(settings, identity):
        found.append(
            "earlier runs found the photos of this queue in another database: check that DATABASE_URL and REDIS_URL "
            "belong to the same deployment"
        )
    return "; ".join(found)


def _seen_photos(database: Database, commands: Collection[str]) -> tuple[list[str], str]:
    """Return what the role can see of the API's table, and the identity of that table."""
    connection = database.connection
    PhotoTable(connection).check()
    lacking = rights.missing_of_photos(connection)
    _require_rights(database.variable, lacking, commands)
    seen = visibility.read(connection)
    if seen.filtered and not seen.any_row:
        raise PhotosInvisibleError(NO_VISIBLE_ROW)
    version = connection.info.server_version // 10000
    found = [f'PostgreSQL {version}, table "Photo" found in schema "{connection.schemas.photos}"']
    if not seen.any_row:
        found.append("it is empty: until it has a photo, runs release their jobs")
    if seen.filtered:
        found.append(
            f"row-level security may hide rows, and a hidden photo is treated as deleted: {ROW_SECURITY_ADVICE}"
        )
    return [*found, *_lacking_elsewhere(lacking, commands)], visibility.identity(connection, database.address)


def _require_rights(variable: str, lacking: Collection[rights.Missing], commands: Collection[str]) -> None:
    """Raise `MissingGrantError` if any of the `commands` lacks a right."""
    if needed := rights.grants(lacking, commands):
        raise MissingGrantError(variable, needed)


def _lacking_elsewhere(lacking: Collection[rights.Missing], commands: Collection[str]) -> list[str]:
    """Return the rights that commands which were not requested lack."""
    others = {name: rights.grants(lacking, [name]) for name in rights.COMMANDS if name not in commands}
    return [f"this role may not {name}: {needed}" for name, needed in others.items() if needed]


def _found_elsewhere(settings: Settings, identity: str) -> bool:
    """Return whether photos of the queue were found before, but never in the database with this identity."""
    # Errors of Redis are reported by its own check.
    with suppress(RunnerError), opened(replace(settings, connect_timeout_seconds=0)) as redis:
        known = KnownDatabases(redis, "process").all()
        return bool(known) and identity not in known
    return False


def _embeddings(settings: Settings, commands: Collection[str]) -> str:
    with closing(embeddings_database(settings, APPLICATION_NAME)) as database:
        found = retrying(
            lambda: _seen_embeddings(database, commands), [database], seconds=settings.connect_timeout_seconds
        )
    with suppress(RunnerError):  # the API's database has a check of its own
        found.append(str(on_both(settings, removal)))
    photos = None
    with suppress(RunnerError):  # the API's database has a check of its own
        photos = read_photos(settings)
    return "; ".join([*found, *([str(photos)] if photos is not None and photos.without_embeddings else [])])


def _seen_embeddings(database: Database, commands: Collection[str]) -> list[str]:
    connection = database.connection
    lacking = rights.missing_of_embeddings(connection)
    _require_rights(database.variable, lacking, commands)
    schema.check(connection)
    version = schema.current_version(connection)
    newer = version > schema.migrations()[-1].version
    state = "newer than this program's, and compatible with it" if newer else "up to date"
    return [
        f'schema "{connection.schemas.faces}" at version {version}, {state}',
        *_lacking_elsewhere(lacking, commands),
    ]


def _model(settings: Settings) -> str:
    manifest = pack.read_manifest(settings.model_dir)
    pack.verify_checksums(settings.model_dir, manifest)
    unchanged = f"{manifest.pack} ({manifest.model}), unchanged since it was baked"
    return f"{unchanged}; licence: {manifest.licence}{_other_versions(manifest.versions)}"


def _other_versions(baked_with: dict[str, str]) -> str:
    """Describe the packages that affect results and have another version than when the pack was verified."""
    here = {"onnxruntime": onnxruntime.__version__}  # of the module: the GPU package has another name
    with suppress(metadata.PackageNotFoundError):
        here["opencv-python-headless"] = metadata.version("opencv-python-headless")
    other = [
        f"{name} {version}, not {baked_with.get(name, 'known')}"
        for name, version in here.items()
        if version != baked_with.get(name)
    ]
    versions = "; ".join(other)
    return f"; verified with other versions than these ({versions}): run spottmee-worker models verify" if other else ""


def _hardware(settings: Settings) -> str:
    """Start the engine as `run` does: a provider that is installed may still fail to start."""
    with Engine.from_settings(settings) as engine:
        choice, threads, tuned = engine.choice, engine.threads, engine.tuned
    quota = cpu_quota()
    limit = f"a CPU limit of {quota:g}" if quota else "no CPU limit"
    best_form = "quick" if choice.name == "cpu" else "plain"
    manifest = pack.read_manifest(settings.model_dir)
    form = manifest.form
    advice = "" if form == best_form else f"; the pack was baked {form}; {best_form} is faster on {choice.name}"
    layout = "tuned graphs" if tuned else f"portable graphs{_why_portable(manifest, choice.name)}"
    return (
        f"{choice.name} ({choice.reason}), {choice.batch_size} crops per call, {threads} threads "
        f"({limit}, RUNNER_THREADS={settings.threads}), {layout}{advice}"
    )


def _why_portable(manifest: Manifest, provider: str) -> str:
    """Explain why the tuned graphs, which load faster, are not used, if the pack has them."""
    if provider != "cpu" or not manifest.tuned_for:
        return ""
    return f", which load 20 ms more slowly: the pack was tuned for another CPU ({manifest.tuned_for})"
