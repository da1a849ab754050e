"""`spottmee-worker migrate`, `sweep` and `import-legacy`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from runner import output
from runner import settings as settings_module
from runner.bake.catalogue import KNOWN
from runner.cli import COMMANDS
from runner.cli.arguments import percentage
from runner.cli.counter import counter
from runner.cli.output import duration as shown_duration
from runner.errors import CheckFailedError, ModelError, RunnerError, SettingsError, UsageError
from runner.expire import expire_comparisons
from runner.faces.model_name import model_name
from runner.orphans import count_orphans
from runner.queue.client import opened
from runner.settings import Settings
from runner.store import schema, visibility
from runner.store.database import embeddings_database, photos_database, retrying
from runner.store.deletion import Removal, install
from runner.store.legacy import Imported, Source, find_source, import_legacy
from runner.store.photos import PhotoTable
from runner.store.session import Session
from runner.store.sweep import sweep
from runner.store.unprocessed import has_model

T = TypeVar("T")

APPLICATION_NAME = "spottmee-worker"


def add_parser(subparsers: Any) -> None:
    """Add the three commands."""
    _add_migrate(subparsers)
    _add_sweep(subparsers)
    _add_import_legacy(subparsers)


def _add_migrate(subparsers: Any) -> None:
    migrate = subparsers.add_parser(
        "migrate",
        help=COMMANDS["migrate"].help,
        description="Migrate the embeddings database (EMBEDDINGS_DATABASE_URL, or DATABASE_URL) to the schema of this "
        "version and, if the API's table is in the same database, create the trigger that removes the embeddings of "
        "deleted photos. Idempotent, safe to run concurrently, and works through a connection pooler.",
    )
    migrate.add_argument(
        "--check", action="store_true", help="change nothing; exit with 3 unless the schema is up to date"
    )
    migrate.add_argument(
        "--ignore-other-schemas",
        action="store_true",
        help="create the tables even if another schema seems to hold the embeddings of an earlier version",
    )
    migrate.add_argument("--json", action="store_true", help="print one JSON object")
    migrate.set_defaults(run=_migrate)


def _add_sweep(subparsers: Any) -> None:
    sweep_parser = subparsers.add_parser(
        "sweep",
        help=COMMANDS["sweep"].help,
        description="Remove the faces of photos that are no longer in the API's table (DATABASE_URL) and, if REDIS_URL "
        "is set, comparisons that have waited for more than an hour: the result of each becomes [], and its selfie is "
        "deleted. Safe while runners are active.",
    )
    sweep_parser.add_argument("--dry-run", action="store_true", help="count only, and remove nothing")
    sweep_parser.add_argument(
        "--force", action="store_true", help="remove embeddings even of all photos, or of more than --max-share"
    )
    sweep_parser.add_argument(
        "--max-share",
        type=percentage,
        default=10.0,
        metavar="PERCENT",
        help="remove nothing if more than 100 photos, and more than this share of all, would be removed (default: "
        "%(default)g)",
    )
    sweep_parser.add_argument("--json", action="store_true", help="print one JSON object")
    sweep_parser.set_defaults(run=_sweep)


def _add_import_legacy(subparsers: Any) -> None:
    legacy = subparsers.add_parser(
        "import-legacy",
        help=COMMANDS["import-legacy"].help,
        description="Copy the embeddings of the previous worker into the table faces. The old table is only read: drop "
        "it once you have checked the counts. Idempotent. First prints what it will do and how long it takes. "
        "Exits with 5 if some rows could not be read; all others are imported.",
    )
    legacy.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="the model that computed the embeddings, as named by `spottmee-worker doctor`: only embeddings "
        "of the same model are compared. Valid are the models of the pack in RUNNER_MODEL_DIR, of `models list`, and "
        "of embeddings in the database",
    )
    legacy.add_argument(
        "--table",
        default="face_embeddings",
        metavar="NAME",
        help="the old table: NAME or SCHEMA.NAME (default: %(default)s)",
    )
    legacy.add_argument("--dry-run", action="store_true", help="read and count every row, and import nothing")
    legacy.add_argument("--json", action="store_true", help="print one JSON object")
    legacy.set_defaults(run=_import_legacy)


def _migrate(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=())
    url = settings.embeddings_database_url
    if not url:
        raise SettingsError("EMBEDDINGS_DATABASE_URL and DATABASE_URL are missing: set one of them")

    with_photos = url == settings.database_url
    applied: list[str] = []

    def work(embeddings: Session) -> int:
        if with_photos and embeddings.schemas.named is not None:
            PhotoTable(embeddings).check()  # otherwise a mistyped schema would be created
        if args.check:
            schema.check(embeddings)
        else:
            applied.extend(schema.migrate(embeddings, new=args.ignore_other_schemas))
        return schema.current_version(embeddings)

    version = _with_embeddings(settings, work)
    removal = None if args.check else _trigger(settings)
    if args.json:
        deletion = {} if removal is None else {"deletion": "trigger" if removal.by_trigger else "sweep"}
        _print_json({"version": version, "applied": applied, **deletion})
    else:
        for name in applied:
            output.line(f"applied {name}")
        output.line(f"the embeddings database is up to date: its schema has version {version}")
        if removal is not None:
            output.line(str(removal))
    return 0


def _trigger(settings: Settings) -> Removal | None:
    """Create the trigger that removes the embeddings of deleted photos; None if the API's database is not known."""
    if not settings.database_url:
        return None
    return on_both(settings, install)


def _sweep(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=("database_url",))
    expired, failure = _expired_comparisons(settings, dry_run=args.dry_run)
    swept = with_both(
        settings, partial(sweep, dry_run=args.dry_run, allow_all=args.force, max_share=args.max_share / 100)
    )
    orphans = None if args.dry_run or expired is None else count_orphans(settings)
    if args.json:
        comparisons = {} if expired is None else {"expired_comparisons": expired}
        counted = {} if orphans is None else {"photos_without_job": orphans}
        _print_json({**asdict(swept), **comparisons, **counted, "dry_run": args.dry_run})
    else:
        verb = "would be removed" if args.dry_run else "were removed"
        output.line(
            f"{swept.photos} photos have embeddings; {swept.deleted_photos} of them are deleted; "
            f"{swept.removed_faces} faces {verb}"
        )
        if expired is not None:
            output.line(f"{expired} comparisons that had waited for more than an hour {verb}; their result is []")
        if orphans:
            output.line(f"{orphans} photos are UPLOADED or PROCESSING without a job: spottmee-worker reprocess")
    if not settings.redis_url:
        output.problem(
            "comparisons were not checked: set REDIS_URL to remove those that have waited for more than an hour"
        )
    if failure is not None:
        raise failure
    return 0


def _expired_comparisons(settings: Settings, *, dry_run: bool) -> tuple[int | None, RunnerError | None]:
    """End expired comparisons; return how many, or None and the reason why they could not be ended.

    Runs first; a failure does not keep embeddings from being swept.
    """
    if not settings.redis_url:
        return None, None
    try:
        with opened(settings) as redis:
            return expire_comparisons(redis, dry_run=dry_run), None
    except RunnerError as error:
        return None, error


def _import_legacy(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=("database_url",))

    def work(photos: Session, embeddings: Session) -> Imported:
        source = find_source(embeddings, args.table)
        _check_model(args.model, embeddings, settings)
        output.problem(_plan(source, args.model, dry_run=args.dry_run))
        progress = counter("rows")
        progress.start(source.rows)
        try:
            return import_legacy(
                photos, embeddings, source, model=args.model, dry_run=args.dry_run, progress=progress.update
            )
        finally:
            progress.close()

    counts = with_both(settings, work)
    if args.json:
        _print_json({**asdict(counts), "dry_run": args.dry_run})
    else:
        output.lines(_import_lines(counts, dry_run=args.dry_run))
        for name, why in counts.unreadable.items():
            output.problem(f"unreadable: {name!r}: {why}")
    if counts.unreadable_rows:
        raise CheckFailedError(
            f"{counts.unreadable_rows} rows of {args.table} could not be read and were not imported: their photos lack "
            "faces until they are processed again"
        )
    return 0


def _check_model(model: str, embeddings: Session, settings: Settings) -> None:
    """Raise `UsageError` for an unknown model: its embeddings would never be compared."""
    try:
        packed = model_name(settings.model_dir)
    except ModelError:
        packed = ""
    known = {Path(pack.recogniser).stem for pack in KNOWN.values()} | ({packed} - {""})
    if model not in known and not has_model(embeddings, model):
        pack = KNOWN.get(model)
        hint = f"{model} is a pack, its model is {Path(pack.recogniser).stem}" if pack else "check the name"
        raise UsageError(f"--model {model!r} is not a known model ({', '.join(sorted(known))}): {hint}")
    if packed and packed != model:
        output.problem(
            f"the pack in RUNNER_MODEL_DIR has the model {packed}: runs with it do not compare embeddings of {model}"
        )


def _plan(source: Source, model: str, *, dry_run: bool) -> str:
    what = "only counts what an import would do" if dry_run else "adds the faces that are not there yet"
    return (
        f'{model}: reads {source.rows} rows of "{source.schema}"."{source.name}", without changing it, and {what}; '
        f"takes about {shown_duration(max(1.0, source.seconds))}"
    )


def _import_lines(counts: Imported, *, dry_run: bool) -> Iterator[str]:
    yield (
        f"{counts.rows} rows: {counts.imported} {'would be imported' if dry_run else 'imported'}, "
        f"{counts.already_imported} imported earlier, {counts.duplicates} duplicates, "
        f"{counts.already_processed} of photos that a runner has processed, "
        f"{counts.deleted_photos} of deleted photos, {counts.unreadable_rows} unreadable"
    )


def _with_embeddings(settings: Settings, work: Callable[[Session], T]) -> T:
    """Return the result of `work` on the embeddings database; `work` is repeated after a lost connection."""
    with closing(embeddings_database(settings, APPLICATION_NAME)) as embeddings:
        return retrying(lambda: work(embeddings.connection), [embeddings], seconds=settings.connect_timeout_seconds)


def with_both(settings: Settings, work: Callable[[Session, Session], T]) -> T:
    """Return the result of `work` on the API's table and the embeddings, after checking both."""

    def checked(photos: Session, embeddings: Session) -> T:
        PhotoTable(photos).check()
        visibility.require_all(photos)
        schema.check(embeddings)
        return work(photos, embeddings)

    return on_both(settings, checked)


def on_both(settings: Settings, work: Callable[[Session, Session], T]) -> T:
    """Return the result of `work` on connections to the API's database and to that of the embeddings."""
    with (
        closing(photos_database(settings, APPLICATION_NAME)) as photos,
        closing(embeddings_database(settings, APPLICATION_NAME)) as embeddings,
    ):
        return retrying(
            lambda: work(photos.connection, embeddings.connection),
            [photos, embeddings],
            seconds=settings.connect_timeout_seconds,
        )


def _print_json(document: dict[str, Any]) -> None:
    output.document(document)
