"""`spottmee-worker forget`: removes all data of a photo, an album or a comparison."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redis import Redis

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.arguments import identifier
from runner.cli.database import with_both
from runner.cli.output import confirmed
from runner.forget import forget_jobs, forget_result, has_id, photos_of_urls
from runner.queue.client import opened
from runner.queue.hosts import Hosts
from runner.queue.parking import Parking
from runner.settings import Settings
from runner.store.erase import erase_faces, has_legacy_table, photos_of_album
from runner.worker.kinds import COMPARISON, PHOTO

EPILOG = """A run that is processing one of the jobs loses its lease, and stores nothing for it. Rows of the API's table
are kept: delete the photos with the API, otherwise `reprocess` can create their embeddings again.

Settings: REDIS_URL; for --photo and --album also DATABASE_URL and EMBEDDINGS_DATABASE_URL. Safe while runners are
active, and idempotent: data that no longer exists counts as 0."""

_IN_REDIS = (
    "Redis: the append-only file until it is rewritten (BGREWRITEAOF), the snapshot until the next one (BGSAVE), and "
    "copies of either"
)
_IN_POSTGRES = "PostgreSQL: dead rows until VACUUM, the write-ahead log until it is recycled, its archive, and backups"
_IN_ANSWERS = "answers of other comparisons, which contain the ids of matching photos, for an hour"
_IN_LEGACY = "the table of the replaced worker, face_embeddings: drop it when the import is complete"
_IN_ONE_JOB = "a run with --job or a Job of debug that is processing it: they finish it"
_IN_LOGS = "logs: only the id"


@dataclass(slots=True)
class Forgotten:
    """What was removed, and what remains. `rows` counts the photos that the API's table still has."""

    target: dict[str, str]
    dry_run: bool
    photos: int | None = None
    rows: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    interrupted: int = 0
    may_remain: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return what is printed with --json."""
        photos = {} if self.photos is None else {"photos": self.photos, "api_rows": self.rows}
        return {
            **self.target, "dry_run": self.dry_run, **photos, "removed": self.removed,
            "interrupted_runs": self.interrupted, "may_remain": self.may_remain,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Yield it as plain text."""
        ((kind, chosen),) = self.target.items()
        photos = "" if self.photos is None or kind == "photo" else f", {self.photos} photos"
        yield f"{kind} {chosen}{photos}"
        verb = "would be removed" if self.dry_run else "removed"
        for name, count in self.removed.items():
            yield f"  {name.replace('_', ' '):<20} {count} {verb}"
        if self.interrupted:
            yield f"  {self.interrupted} of the leases were owned by a run, which stores nothing for them"
        if self.rows:
            yield f'  {self.rows} photos are still in the API\'s table "Photo": delete them with the API'
        if not self.dry_run:
            yield "may still contain it:"
            yield from (f"  {place}" for place in self.may_remain)


def add_parser(subparsers: Any) -> None:
    """Add `forget`."""
    parser = subparsers.add_parser(
        "forget",
        help=COMMANDS["forget"].help,
        description="Remove all data of a comparison (its job in any state, with the selfie; its "
        "answer and the detail), of a photo, or of all photos of an album (their jobs and embeddings). Reports what "
        "was removed, and where copies may remain. Asks for confirmation; without a terminal, --yes is required.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--comparison", type=identifier, metavar="ID", help="the jobId of a comparison")
    what.add_argument("--photo", type=identifier, metavar="ID", help="the id of a photo")
    what.add_argument(
        "--album",
        type=identifier,
        metavar="ID",
        help="the id of an album: its photos in the API's table, and those whose job has a URL of this album "
        "(/albums/ID/)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("--dry-run", action="store_true", help="count, and remove nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_forget)


def _forget(args: argparse.Namespace) -> int:
    kind = next(name for name in ("comparison", "photo", "album") if getattr(args, name) is not None)
    chosen: str = getattr(args, kind)
    of_photos = kind != "comparison"
    settings = settings_module.load(required=("redis_url", "database_url") if of_photos else ("redis_url",))
    data = f"all data of {kind} {chosen}"
    if not (
        args.dry_run or args.yes or confirmed(f"Remove {data} permanently?", f"{data} would be removed permanently")
    ):
        output.problem("nothing was removed")
        return 0

    result = Forgotten({kind: chosen}, dry_run=args.dry_run)
    with opened(settings) as redis:
        if not of_photos:
            _forget_comparison(redis, chosen, result)
        else:
            _forget_photos(redis, settings, kind, chosen, result)
    if args.json:
        output.document(result.document(), indent=2)
    else:
        output.lines(result.lines())
    return 0


def _forget_comparison(redis: Redis, job_id: str, result: Forgotten) -> None:

    wanted = has_id(redis, COMPARISON, {job_id})
    jobs = forget_jobs(redis, COMPARISON, wanted, dry_run=result.dry_run, before_wait=_say_why)
    keys = forget_result(redis, job_id, dry_run=result.dry_run)
    result.interrupted = jobs.interrupted
    result.removed = {
        "waiting_jobs": jobs.waiting, "leases": jobs.leases, "dead_letters": jobs.dead_letters, "results": keys,
    }  # fmt: skip
    result.may_remain = [_IN_REDIS, _IN_ONE_JOB, _IN_LOGS]


def _forget_photos(redis: Redis, settings: Settings, kind: str, chosen: str, result: Forgotten) -> None:
    """Remove jobs before embeddings: from then on no run stores anything for the photos."""
    # First: if a database cannot be used, nothing is removed.
    has_legacy = with_both(settings, lambda _, embeddings: has_legacy_table(embeddings))
    photo_ids = {chosen} if kind == "photo" else _photos_of_album(redis, settings, chosen)
    wanted = has_id(redis, PHOTO, photo_ids)
    jobs = forget_jobs(redis, PHOTO, wanted, dry_run=result.dry_run, before_wait=_say_why)
    if not result.dry_run:
        Parking(redis).photos_done(photo_ids)  # comparisons must not wait for jobs that no longer exist
        Hosts(redis, PHOTO.queue).check()  # nor photos for a probe that no longer exists
    erased = with_both(settings, partial(erase_faces, photo_ids=photo_ids, dry_run=result.dry_run))
    result.photos, result.rows, result.interrupted = len(photo_ids), len(erased.rows), jobs.interrupted
    result.removed = {
        "waiting_jobs": jobs.waiting, "leases": jobs.leases, "dead_letters": jobs.dead_letters, "faces": erased.faces,
    }  # fmt: skip
    legacy = [_IN_LEGACY] if has_legacy else []
    result.may_remain = [_IN_REDIS, _IN_POSTGRES, *legacy, _IN_ANSWERS, _IN_ONE_JOB, _IN_LOGS]


def _say_why(seconds: float) -> None:
    """Say on a terminal what the command waits for."""
    if output.is_terminal("stderr"):
        what = "until the run that owned a job can no longer store anything for it"
        output.problem(f"spottmee-worker: waiting {seconds:.0f} s {what}")


def _photos_of_album(redis: Redis, settings: Settings, album_id: str) -> Collection[str]:

    of_table = with_both(settings, lambda photos, _: photos_of_album(photos, album_id))
    return of_table | photos_of_urls(redis, album_id)
