"""`spottmee-worker reprocess`: pushes jobs for photos that have none."""

from __future__ import annotations

import argparse
import signal
import time
from contextlib import closing
from typing import Any, NoReturn

from redis import Redis

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.arguments import duration, identifier, positive, whole
from runner.cli.codes import check_codes
from runner.cli.counter import bar
from runner.cli.output import duration as shown_duration
from runner.errors import CheckFailedError, ModelError, PhotosInvisibleError, SettingsError, UsageError
from runner.faces.model_name import model_name
from runner.photo_url import UrlTemplate
from runner.queue.client import opened
from runner.queue.databases import KnownDatabases
from runner.queue.dead_letters import DeadLetters
from runner.reprocess import (
    TRANSIENT_REASONS,
    UNKNOWN_REASON,
    Cause,
    Choice,
    Progress,
    Report,
    Reprocessing,
    Skipped,
)
from runner.settings import Settings
from runner.store import schema, visibility
from runner.store.database import Database, embeddings_database, photos_database, retrying
from runner.store.photos import PhotoStatus, PhotoTable
from runner.store.unprocessed import has_model

APPLICATION_NAME = "spottmee-worker reprocess"
DEFAULT_MAX_WAITING = 500
# Photos per second of one run on two cores (docs/explanation/performance.md), for the estimate of a dry run.
PHOTOS_PER_SECOND = 20
_LINE_SECONDS = 10.0
STATUSES = ("UPLOADED", "PROCESSING", "FAILED", "READY", "NO_FACES_FOUND")

EPILOG = """A photo is pushed again if no job for it exists, neither in the list nor leased, and it is
  UPLOADED or PROCESSING
  FAILED, and its dead letter has a selected error code: then the dead letter is requeued (see --code)
  READY, without embeddings of the model
NO_FACES_FOUND photos are pushed only with --status NO_FACES_FOUND, and every time: it is not recorded which model
found no face.

It can be stopped at any time and started again: it continues with the photos that are left. Only one can push at a
time. durations: 90s, 15m, 2h, 7d. Settings: REDIS_URL, DATABASE_URL, EMBEDDINGS_DATABASE_URL, RUNNER_PHOTO_URL,
RUNNER_MODEL_DIR, RUNNER_LEASE_SECONDS.

example:
  spottmee-worker reprocess --dry-run --url 'https://storage.googleapis.com/BUCKET/albums/{album_id}/{normalized_name}'"""


def add_parser(subparsers: Any) -> None:
    """Add `reprocess`."""
    parser = subparsers.add_parser(
        "reprocess",
        help=COMMANDS["reprocess"].help,
        description="Push jobs for photos that are stuck, that failed for a transient reason, or that have no "
        "embeddings of the current model, as the API pushes them. A photo with a job gets no second one. Exits with 5 "
        "if photos have no valid URL; the others are pushed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--url",
        metavar="TEMPLATE",
        help="where the API stores a photo, with columns of its table in braces; not encoded (default: "
        "RUNNER_PHOTO_URL)",
    )
    _add_selection(parser)
    parser.add_argument(
        "--max-waiting",
        type=positive,
        default=DEFAULT_MAX_WAITING,
        metavar="N",
        help="push only while fewer jobs than this wait in the list (default: %(default)s)",
    )
    parser.add_argument("--limit", type=whole, default=0, metavar="N", help="maximum number of photos (default: all)")
    parser.add_argument(
        "--any-database",
        action="store_true",
        help="continue although photos of the list have only been found in databases at other addresses, as through a "
        "port-forward",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="count the photos and estimate the time, but push nothing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.set_defaults(run=_reprocess)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--status",
        action="append",
        choices=STATUSES,
        help="only photos with this status; may be repeated (default: all but NO_FACES_FOUND; with --code FAILED, "
        "with --model READY)",
    )
    parser.add_argument(
        "--older-than",
        type=duration,
        default=900.0,
        metavar="TIME",
        help="only photos that were uploaded longer ago than this: the API pushes the job of a new photo itself "
        "(default: 15m)",
    )
    parser.add_argument("--album", type=identifier, metavar="ID", help="only photos of this album")
    parser.add_argument(
        "--code",
        action="append",
        metavar="CODE",
        help="only FAILED photos with this error code; may be repeated; `unknown` selects those without a dead letter "
        "(default: every transient error)",
    )
    parser.add_argument(
        "--model",
        type=identifier,
        metavar="NAME",
        help="only photos without embeddings of this model (default: that of the pack in RUNNER_MODEL_DIR)",
    )


def _reprocess(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=("redis_url", "database_url"))
    template = _template(args, settings)

    with (
        closing(photos_database(settings, APPLICATION_NAME)) as photos,
        closing(embeddings_database(settings, APPLICATION_NAME)) as embeddings,
        opened(settings) as redis,
    ):
        choice = _choice(args, settings, embeddings, redis)
        identity = _checked(photos, embeddings, settings)
        if not args.any_database:
            _check_deployment(redis, identity)
        work = Reprocessing(
            redis,
            photos,
            embeddings,
            choice,
            template=template,
            connect_seconds=settings.connect_timeout_seconds,
            lock_seconds=settings.lease_seconds,
        )
        if args.dry_run:
            work.count()
            _print(args, choice, work.report, stopped=False)
            return 0
        return _run(args, choice, work)


def _run(args: argparse.Namespace, choice: Choice, work: Reprocessing) -> int:
    progress, stopped = _progress(), False
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        work.run(progress, output.problem)
    except KeyboardInterrupt:
        stopped = True
    finally:
        progress.close()
    _print(args, choice, work.report, stopped=stopped)
    if stopped:
        return 130

    if without := work.report.skipped[Skipped.NO_URL]:
        raise CheckFailedError(
            f"{without} photos have no valid URL, because a column that the template names is empty: correct the rows "
            "or the template"
        )
    return 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _template(args: argparse.Namespace, settings: Settings) -> UrlTemplate | None:

    if args.url is not None:
        try:
            return UrlTemplate.parse(args.url)
        except ValueError as error:
            raise UsageError(f"--url {error}") from None
    if settings.photo_url:
        return UrlTemplate.parse(settings.photo_url)
    if not args.dry_run:
        raise SettingsError(
            "--url or RUNNER_PHOTO_URL is missing: where does the API store a photo? For example "
            "https://storage.googleapis.com/BUCKET/albums/{album_id}/{normalized_name}"
        )
    return None


def _choice(args: argparse.Namespace, settings: Settings, embeddings: Database, redis: Redis) -> Choice:
    check_codes(args.code or (), [DeadLetters(redis, "process")], UNKNOWN_REASON)
    named = [*(["FAILED"] if args.code else []), *(["READY"] if args.model is not None else [])]
    statuses = args.status or named or [status for status in STATUSES if status != "NO_FACES_FOUND"]
    return Choice(
        statuses=frozenset(map(PhotoStatus, statuses)),
        reasons=frozenset(args.code) if args.code else TRANSIENT_REASONS,
        age_seconds=args.older_than,
        album=args.album,
        model=_model(args.model, statuses, settings, embeddings),
        max_waiting=args.max_waiting,
        limit=args.limit,
    )


def _model(named: str | None, statuses: list[str], settings: Settings, embeddings: Database) -> str:
    """Return the model that photos should have embeddings of.

    A misspelt name would push every photo, and again at each start.
    """
    if named is None and not {"READY", "NO_FACES_FOUND"}.intersection(statuses):
        return ""
    try:
        packed = model_name(settings.model_dir)
    except ModelError as error:
        if named is None:
            raise ModelError(f"{error.detail}; or name the model: --model NAME") from None
        packed = None
    if named is None or named == packed:
        return packed or ""

    if not retrying(
        lambda: has_model(embeddings.connection, named), [embeddings], seconds=settings.connect_timeout_seconds
    ):
        here = f"the pack here is of {packed}" if packed else "there is no pack here (RUNNER_MODEL_DIR)"
        raise UsageError(
            f"--model {named!r}: no photo has embeddings of it, and {here}: check the name, or let a run with the new "
            "pack process a photo first"
        )
    return named


def _checked(photos: Database, embeddings: Database, settings: Settings) -> str:
    """Return the identity of the API's table, or raise `RunnerError` if a database cannot be used."""

    def checked() -> str:
        PhotoTable(photos.connection).check()
        schema.check(embeddings.connection)
        return visibility.identity(photos.connection, photos.address)

    return retrying(checked, [photos, embeddings], seconds=settings.connect_timeout_seconds)


def _check_deployment(redis: Redis, identity: str) -> None:
    """Raise `PhotosInvisibleError` if the list and the database seem to belong to different deployments."""
    known = KnownDatabases(redis, "process").all()
    if known and identity not in known:
        raise PhotosInvisibleError(
            "photos of the list were found only in other databases so far: check that DATABASE_URL and REDIS_URL "
            "belong to the same deployment, and add --any-database if it is the same one at another address. Nothing "
            "was pushed"
        )


# Output


class Lines:
    """Progress as lines on standard error, at most one every ten seconds."""

    def __init__(self) -> None:
        self._total = 0
        self._started = self._shown = time.monotonic()

    def start(self, total: int) -> None:
        """Begin, with the number of photos."""
        self._total = total
        self._started = self._shown = time.monotonic()
        if total:
            output.problem(f"{total} photos to push")

    def update(self, done: int, waiting: int) -> None:
        """Print a line, unless one was printed recently."""
        now = time.monotonic()
        if now - self._shown < _LINE_SECONDS:
            return
        self._shown = now
        left = (self._total - done) * (now - self._started) / done if done else None
        rest = "" if left is None else f", about {shown_duration(left)} left"
        output.problem(f"{done} of {self._total} photos pushed, {waiting} jobs waiting{rest}")

    def close(self) -> None:
        """Do nothing: every line is complete."""


def _progress() -> Progress:
    """Return a bar on a terminal where rich is installed, and lines elsewhere."""
    return bar("photos pushed", waiting=True) or Lines()


def _print(args: argparse.Namespace, choice: Choice, report: Report, *, stopped: bool) -> None:
    chosen = report.chosen.total()
    photos = min(chosen, choice.limit) if choice.limit else chosen
    estimate = photos / PHOTOS_PER_SECOND
    if args.json:
        output.document(
            {
                "dry_run": args.dry_run, "stopped": stopped, "model": choice.model or None,
                "chosen": {cause.value: report.chosen[cause] for cause in Cause},
                "skipped": {why.value: report.skipped[why] for why in Skipped},
                "pushed": report.pushed, "requeued": report.requeued, "estimated_seconds": round(estimate),
            },
            indent=2,
        )  # fmt: skip
        return
    causes = ", ".join(f"{report.chosen[cause]} {_WORDS[cause.value]}" for cause in Cause)
    output.line(f"{chosen} photos to reprocess: {causes}")
    for why, count in report.skipped.items():
        output.line(f"  {count} skipped: {_WORDS[why.value]}")
    if args.dry_run:
        output.line(
            f"nothing was pushed; {photos} photos take one run with two cores about {shown_duration(estimate)}, and "
            "more runs less"
        )
    else:
        end = "stopped: start it again to continue with the rest" if stopped else "done"
        output.line(f"{report.pushed} pushed, {report.requeued} dead letters requeued; {end}")


_WORDS = {
    "orphaned": "UPLOADED or PROCESSING without a job",
    "failed": "FAILED",
    "no_embeddings": "without embeddings of the model",
    "has_job": "a job for the photo exists",
    "other_code": "its dead letter has an error code that was not selected (--code)",
    "unknown_code": "FAILED, and no dead letter says why (--code unknown)",
    "no_url": "a column that the URL needs is empty",
    "moved": "its dead letter was requeued or purged in the meantime",
}
