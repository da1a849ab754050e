"""`spottmee-worker migrate`, `sweep` and `import-legacy`."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from runner import output
from runner import settings as settings_module
from runner.errors import CheckFailedError, RunnerError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.settings import Settings
    from runner.store.database import Database
    from runner.store.session import Session

Subparsers = Any  # argparse has no public name for it

T = TypeVar("T")

APPLICATION_NAME = "spottmee-worker"


def add_parser(subparsers: Subparsers) -> None:
    """Add the three commands."""
    migrate = subparsers.add_parser(
        "migrate",
        help="bring the embeddings database to the schema of this version",
        description="Bring the embeddings database (EMBEDDINGS_DATABASE_URL, or DATABASE_URL) to the schema of "
        "this version. Safe to repeat, and beside others that do the same; a pooler in between does not matter.",
    )
    migrate.add_argument("--check", action="store_true", help="change nothing; exit 3 unless it is there already")
    migrate.add_argument(
        "--new",
        action="store_true",
        help="create the table also where an earlier version seems to have stored the embeddings in another schema",
    )
    migrate.add_argument("--json", action="store_true", help="print one JSON object")
    migrate.set_defaults(run=_migrate)

    sweep = subparsers.add_parser(
        "sweep",
        help="remove the embeddings of photos that the API has deleted, and comparisons that nobody has done in time",
        description="Remove the faces of photos that are no longer in the API's table (DATABASE_URL) and, where "
        "REDIS_URL is set, comparisons that have waited for more than an hour: each is answered [], and its selfie is "
        "deleted. Safe beside working runners.",
    )
    sweep.add_argument("--dry-run", action="store_true", help="count, and remove nothing")
    sweep.add_argument("--all", action="store_true", help="go on even where no photo at all is left")
    sweep.add_argument(
        "--max-share",
        type=_percent,
        default=10.0,
        metavar="PERCENT",
        help="refuse to remove more than this share of the photos, from 100 photos on (default: 10)",
    )
    sweep.add_argument("--json", action="store_true", help="print one JSON object")
    sweep.set_defaults(run=_sweep)

    legacy = subparsers.add_parser(
        "import-legacy",
        help="copy the embeddings of the replaced worker into this one's table",
        description="Copy the replaced worker's table into faces. The old table is only read; drop it when the "
        "counts satisfy you. Safe to repeat. Exits 5 when rows could not be read; the others are imported.",
    )
    legacy.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="the model that made them, as the runner names it (`spottmee-worker doctor` shows the name): only "
        "embeddings of one model are compared",
    )
    legacy.add_argument(
        "--table",
        default="face_embeddings",
        metavar="NAME",
        help="the old table, or SCHEMA.NAME (%(default)s)",
    )
    legacy.add_argument("--json", action="store_true", help="print one JSON object")
    legacy.set_defaults(run=_import_legacy)


def _migrate(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=())
    url = settings.embeddings_database_url
    if not url:
        raise SettingsError("EMBEDDINGS_DATABASE_URL and DATABASE_URL are missing: set either")
    from runner.store import schema
    from runner.store.photos import PhotoTable

    with_photos = url == settings.database_url
    applied: list[str] = []

    def work(embeddings: Session) -> int:
        if with_photos and embeddings.schemas.named is not None:
            PhotoTable(embeddings).check()  # a mistyped schema is not created
        if args.check:
            schema.check(embeddings)
        else:
            applied.extend(schema.migrate(embeddings, new=args.new))
        return schema.current_version(embeddings)

    version = _with_embeddings(settings, work)
    if args.json:
        _print_json({"version": version, "applied": applied})
    else:
        for name in applied:
            output.line(f"applied {name}")
        output.line(f"the embeddings database is at version {version}, as this program needs it")
    return 0


def _percent(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not 0 <= share <= 100:  # noqa: PLR2004 - a percentage
        raise argparse.ArgumentTypeError(f"must be a percentage from 0 to 100 (it is {text!r})")
    return share


def _sweep(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=("database_url",))
    from runner.store.sweep import sweep

    expired, failure = _expired_comparisons(settings, dry_run=args.dry_run)
    swept = _with_both(
        settings, partial(sweep, dry_run=args.dry_run, allow_all=args.all, max_share=args.max_share / 100)
    )
    if args.json:
        comparisons = {} if expired is None else {"expired_comparisons": expired}
        _print_json({**asdict(swept), **comparisons, "dry_run": args.dry_run})
    else:
        verb = "would be removed" if args.dry_run else "were removed"
        output.line(
            f"{swept.photos} photos have embeddings; {swept.deleted_photos} of them are deleted; "
            f"{swept.removed_faces} faces {verb}"
        )
        if expired is not None:
            output.line(f"{expired} comparisons that had waited for more than an hour {verb}, and answered []")
    if not settings.redis_url:
        output.problem(
            "waiting comparisons were not looked at: set REDIS_URL, and those older than an hour are removed"
        )
    if failure is not None:
        raise failure
    return 0


def _expired_comparisons(settings: Settings, *, dry_run: bool) -> tuple[int | None, RunnerError | None]:
    """End the comparisons that have waited for too long; return how many, None where that was not possible, and why.

    It comes first, and its failure keeps nothing else from being swept.
    """
    if not settings.redis_url:
        return None, None
    from runner.expire import expire_comparisons
    from runner.queue.client import opened

    try:
        with opened(settings) as redis:
            return expire_comparisons(redis, dry_run=dry_run), None
    except RunnerError as error:
        return None, error


def _import_legacy(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=("database_url",))
    from runner.store.legacy import import_legacy

    counts = _with_both(settings, partial(import_legacy, model=args.model, table=args.table))
    if args.json:
        _print_json(asdict(counts))
    else:
        output.line(
            f"{counts.rows} rows: {counts.imported} imported, {counts.already_there} were there, "
            f"{counts.done_by_a_runner} of photos that a runner has done, {counts.of_deleted_photos} of deleted "
            f"photos, {counts.unreadable_rows} unreadable"
        )
        for name, why in counts.unreadable.items():
            output.problem(f"unreadable: {name!r}: {why}")
    if counts.unreadable_rows:
        raise CheckFailedError(f"{counts.unreadable_rows} rows of {args.table} could not be read and were left out")
    return 0


def _with_embeddings(settings: Settings, work: Callable[[Session], T]) -> T:
    """Return what `work` returns over a connection to the embeddings; it may be repeated after a failure."""
    from runner.store.database import retrying

    with closing(_embeddings(settings)) as embeddings:
        return retrying(lambda: work(embeddings.connection), [embeddings], seconds=settings.connect_seconds)


def _embeddings(settings: Settings) -> Database:
    from runner.store.database import Database

    return Database(
        settings.embeddings_database_url, application_name=APPLICATION_NAME, variable="EMBEDDINGS_DATABASE_URL"
    )


def _with_both(settings: Settings, work: Callable[[Session, Session], T]) -> T:
    """As `_with_embeddings`, for work on the API's table and the embeddings, both checked first."""
    from runner.store import schema, visibility
    from runner.store.database import Database, retrying
    from runner.store.photos import PhotoTable

    def checked() -> T:
        PhotoTable(photos.connection).check()
        visibility.require_all(photos.connection)
        schema.check(embeddings.connection)
        return work(photos.connection, embeddings.connection)

    with (
        closing(Database(settings.database_url, application_name=APPLICATION_NAME, variable="DATABASE_URL")) as photos,
        closing(_embeddings(settings)) as embeddings,
    ):
        return retrying(checked, [photos, embeddings], seconds=settings.connect_seconds)


def _print_json(document: dict[str, Any]) -> None:
    output.document(document)
