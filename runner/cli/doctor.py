"""`spottmee-worker doctor`: everything that a run needs, looked at one by one, without taking a job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.errors import NO_VISIBLE_ROW, ROW_SECURITY_ADVICE, PhotosInvisibleError, RunnerError

if TYPE_CHECKING:
    from redis import Redis

    from runner.faces.pack import Manifest
    from runner.settings import Settings
    from runner.store.database import Database


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, or the error and the exit code that `run` would end with."""

    name: str
    finding: str = ""
    error: str | None = None
    exit_code: int = 0

    def document(self) -> dict[str, object]:
        """Return the check as it is printed with --json."""
        return {"name": self.name, "ok": self.error is None, "finding": self.error or self.finding}


def examine(settings: Settings) -> list[Check]:
    """Look at all of it; a failure never keeps the others from being looked at."""
    looks: dict[str, Callable[[Settings], str]] = {
        "Redis": _redis,
        "API database": _photos,
        "embeddings database": _embeddings,
        "model": _model,
        "hardware": _hardware,
    }
    return [_look(name, look, settings) for name, look in looks.items()]


def _look(name: str, look: Callable[[Settings], str], settings: Settings) -> Check:
    try:
        return Check(name, finding=look(settings))
    except RunnerError as error:
        return Check(name, error=str(error), exit_code=error.exit_code)


def _redis(settings: Settings) -> str:
    from runner.queue.client import opened
    from runner.queue.leases import LeaseQueue

    with opened(settings) as redis:
        _try_out(redis, settings)
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
            parked = f", {counts.parked} waiting for their album" if counts.parked else ""
            found.append(f"{name}: {counts.waiting} waiting, {counts.in_flight} in flight{parked}, {counts.dead} dead")
        return "; ".join([*found, "every operation works on a private list"])


def _try_out(redis: Redis, settings: Settings) -> None:
    """Play every operation that a run may send, on keys of its own, with the rights of the run."""
    from runner.queue.self_test import SelfTest
    from runner.store.results import ResultStore

    compares = "compare" in settings.queues
    test = SelfTest(redis)
    test.require_rights(results=compares)
    try:
        test.play()
        if compares:
            results = ResultStore(redis, unconfirmed=test.unconfirmed)
            results.begin(test.job_id)
            results.answer(test.job_id, [], {"error": None})
            results.remember(test.job_id)
            results.heal()
            ResultStore(redis).check()
    finally:
        test.clean_up()


def _photos(settings: Settings) -> str:
    from runner.store.database import Database, retrying

    with closing(
        Database(settings.database_url, application_name="spottmee-worker doctor", variable="DATABASE_URL")
    ) as database:
        found, identity = retrying(lambda: _seen_photos(database), [database], seconds=settings.connect_seconds)
    if _found_elsewhere(settings, identity):
        found.append(
            "photos of the list were found in another database so far: check that DATABASE_URL and REDIS_URL belong "
            "to the same deployment"
        )
    return "; ".join(found)


def _seen_photos(database: Database) -> tuple[list[str], str]:
    """Return what the role sees of the API's table, and the identity of that table."""
    from runner.store import visibility
    from runner.store.photos import PhotoTable

    connection = database.connection
    PhotoTable(connection).check()
    seen = visibility.look(connection)
    if seen.filtered and not seen.any_row:
        raise PhotosInvisibleError(NO_VISIBLE_ROW)
    version = connection.info.server_version // 10000
    found = [f'PostgreSQL {version}, table "Photo" found in schema "{connection.schemas.photos}"']
    if not seen.any_row:
        found.append("it is empty: runs give their jobs back until it has a photo")
    if seen.filtered:
        found.append(f"row-level security may hide rows, and hidden photos count as deleted: {ROW_SECURITY_ADVICE}")
    return found, visibility.identity(connection, database.address)


def _found_elsewhere(settings: Settings, identity: str) -> bool:
    """Return whether photos of the list were found, and none in the database that has this identity."""
    from runner.queue.client import opened
    from runner.queue.databases import KnownDatabases

    # Redis has a check of its own, which says what is wrong with it.
    with suppress(RunnerError), opened(replace(settings, connect_seconds=0)) as redis:
        known = KnownDatabases(redis, "process").all()
        return bool(known) and identity not in known
    return False


def _embeddings(settings: Settings) -> str:
    from runner.store import schema
    from runner.store.database import connect

    with connect(
        settings.embeddings_database_url,
        seconds=settings.connect_seconds,
        application_name="spottmee-worker doctor",
        variable="EMBEDDINGS_DATABASE_URL",
    ) as connection:
        schema.check(connection)
        version = schema.current_version(connection)
        return f'schema "{connection.schemas.faces}" at version {version}, as this version needs'


def _model(settings: Settings) -> str:
    from runner.faces import pack

    manifest = pack.read_manifest(settings.model_dir)
    pack.verify_checksums(settings.model_dir, manifest)
    return f"{manifest.pack} ({manifest.model}), unchanged since it was baked{_other_versions(manifest.versions)}"


def _other_versions(baked_with: dict[str, str]) -> str:
    """Say where what decides on the answers is of another version than when the pack was proven."""
    from importlib import metadata

    import onnxruntime

    here = {"onnxruntime": onnxruntime.__version__}  # the module: its GPU build has another name
    with suppress(metadata.PackageNotFoundError):
        here["opencv-python-headless"] = metadata.version("opencv-python-headless")
    other = [
        f"{name} {version}, not {baked_with.get(name, 'known')}"
        for name, version in here.items()
        if version != baked_with.get(name)
    ]
    return (
        f"; proven with other versions than here ({'; '.join(other)}): spottmee-worker models verify" if other else ""
    )


def _hardware(settings: Settings) -> str:
    """Start the engine as `run` does: a provider that is there may still not start."""
    from runner.faces import pack
    from runner.faces.cpu import cpu_quota
    from runner.faces.engine import Engine

    with Engine.open(
        settings.model_dir,
        threads=settings.threads,
        providers=settings.providers,
        batch_size=settings.batch_size,
    ) as engine:
        choice, threads, tuned = engine.choice, engine.threads, engine.tuned
    quota = cpu_quota()
    limit = f"a CPU limit of {quota:g}" if quota else "no CPU limit"
    best_form = "quick" if choice.name == "cpu" else "plain"
    manifest = pack.read_manifest(settings.model_dir)
    form = manifest.form
    advice = "" if form == best_form else f"; the pack is baked {form}, and {best_form} suits {choice.name} better"
    layout = "tuned graphs" if tuned else f"portable graphs{_why_portable(manifest, choice.name)}"
    return (
        f"{choice.name} ({choice.reason}), {choice.batch_size} crops per call, {threads} threads "
        f"({limit}, RUNNER_THREADS={settings.threads}), {layout}{advice}"
    )


def _why_portable(manifest: Manifest, provider: str) -> str:
    """Say why the graphs that open more quickly are not used, where they are there."""
    if provider != "cpu" or not manifest.tuned_for:
        return ""
    return f", which open 20 ms more slowly: the pack was tuned for another machine ({manifest.tuned_for})"
