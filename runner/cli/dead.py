"""`spottmee-worker dead list|show|requeue|purge`: the dead-letter queue."""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.arguments import duration, identifier, whole
from runner.cli.codes import check_codes
from runner.cli.output import columns, confirmed
from runner.cli.redact import shown
from runner.errors import CheckFailedError, UsageError
from runner.queue.client import opened
from runner.queue.dead_letters import DeadLetter, DeadLetters, Requeued
from runner.queue.privacy import may_hold_selfie
from runner.worker.kinds import KINDS

DEFAULT_LIMIT = 50


def add_parser(subparsers: Any) -> None:
    """Add `dead`."""
    dead = subparsers.add_parser(
        "dead",
        help=COMMANDS["dead"].help,
        description="A job that fails permanently, or has used up its attempts, is moved to the dead-letter queue with "
        "its payload, the reason, the time, the number of attempts and the runner. Dead letters are kept for 30 days, "
        "and so are their payloads, except those of comparisons: they contain a selfie, and are deleted after 59 "
        "minutes, before the result expires. Safe while runners are active. Settings: REDIS_URL, "
        "RUNNER_CONNECT_TIMEOUT_SECONDS.",
        epilog="durations: 90s, 15m, 2h, 7d",
    )
    actions = dead.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_list(actions)
    _add_show(actions)
    _add_requeue(actions)
    _add_purge(actions)


def _add_list(actions: Any) -> None:
    listing = actions.add_parser(
        "list",
        help="list dead letters, newest first",
        description="List dead letters without their payloads, newest first.",
    )
    _add_filters(listing)
    listing.add_argument(
        "--limit",
        type=whole,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="maximum number; 0 for all (default: %(default)s)",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    listing.set_defaults(run=_list)


def _add_show(actions: Any) -> None:
    show = actions.add_parser(
        "show",
        help="show dead letters in full, with redacted payloads",
        description="Show dead letters with their payloads, redacted: the length of a selfie instead of its content, "
        "URLs without credentials and query, and only size and SHA-256 of a payload that is not a JSON object.",
    )
    show.add_argument("ids", nargs="+", type=identifier, metavar="ID", help="ids, as shown by `dead list`")
    formats = show.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print one JSON array")
    formats.add_argument(
        "--payload",
        action="store_true",
        help="write the raw payload of one process job to standard output; refused for comparisons, and for any "
        "payload that may contain a selfie",
    )
    show.set_defaults(run=_show)


def _add_requeue(actions: Any) -> None:
    requeue = actions.add_parser(
        "requeue",
        help="move jobs back to the end of their lists, as new jobs",
        description="Move jobs from the dead-letter queue to the end of their lists, oldest first, with the count "
        "of attempts reset. Each move is atomic. Exits with 5 if a dead letter does not exist or its payload has "
        "expired.",
    )
    _add_choice(requeue)
    requeue.set_defaults(run=_requeue)


def _add_purge(actions: Any) -> None:
    purge = actions.add_parser(
        "purge",
        help="delete dead letters and their payloads",
        description="Delete dead letters and their payloads permanently. Asks for confirmation; without a terminal, "
        "--yes is required. Exits with 5 if a dead letter does not exist.",
    )
    _add_choice(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    purge.set_defaults(run=_purge)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", choices=list(KINDS), help="only jobs of this queue")
    parser.add_argument(
        "--code", action="append", metavar="CODE", help="only jobs with this error code; may be repeated"
    )
    parser.add_argument(
        "--older-than", type=duration, metavar="TIME", help="only jobs that failed longer ago, such as 2h"
    )
    parser.add_argument(
        "--newer-than", type=duration, metavar="TIME", help="only jobs that failed more recently, such as 2h"
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids", nargs="*", type=identifier, metavar="ID", help="ids, as shown by `dead list`; or use the filters"
    )
    _add_filters(parser)
    parser.add_argument("--all", action="store_true", help="all dead letters (of --queue, if given)")
    parser.add_argument(
        "--limit", type=whole, default=0, metavar="N", help="maximum number, oldest first (default: all)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would happen, and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@contextmanager
def _open(queue: str | None = None) -> Iterator[list[DeadLetters]]:
    settings = settings_module.load(required=("redis_url",))
    with opened(settings) as redis:
        yield [DeadLetters(redis, name) for name in KINDS if queue in (None, name)]


def _matching(queues: Sequence[DeadLetters], args: argparse.Namespace) -> list[tuple[DeadLetters, DeadLetter]]:
    """Return the dead letters that match the filters, oldest first."""
    check_codes(args.code or (), queues)
    found = [
        (queue, dead_letter)
        for queue in queues
        for dead_letter in queue.all(newer_than=args.newer_than, older_than=args.older_than or 0.0)
        if not args.code or dead_letter.code in args.code
    ]
    return sorted(found, key=lambda pair: pair[1].dead_lettered_at)


def _find(queues: Sequence[DeadLetters], dead_letter_id: str) -> tuple[DeadLetters, DeadLetter] | None:
    for queue in queues:
        dead_letter = queue.get(dead_letter_id)
        if dead_letter is not None:
            return queue, dead_letter
    return None


def _list(args: argparse.Namespace) -> int:
    with _open(args.queue) as queues:
        found = _matching(queues, args)
        newest = found[::-1][: args.limit or None]
        if args.json:
            _print_json([_document(queue, dead_letter) for queue, dead_letter in newest])
            return 0
        _print_table([dead_letter for _, dead_letter in newest])
    reasons = Counter(dead_letter.code for _, dead_letter in found)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    cut = f"; the newest {len(newest)} are shown (--limit 0 shows all)" if len(newest) < len(found) else ""
    output.problem(f"dead letters: {counts}{cut}")
    return 0


def _show(args: argparse.Namespace) -> int:
    if args.payload and len(args.ids) != 1:
        raise UsageError("--payload takes exactly one id")
    documents: list[dict[str, Any]] = []
    missing: list[str] = []
    with _open() as queues:
        for dead_letter_id in args.ids:
            found = _find(queues, dead_letter_id)
            if found is None:
                missing.append(dead_letter_id)
                continue
            queue, dead_letter = found
            payload = queue.payload(dead_letter_id)
            if args.payload:
                if payload is None:
                    raise CheckFailedError(f"the payload of dead letter {dead_letter_id} has expired")
                _write_payload(dead_letter, payload)
                return 0
            redacted = None if payload is None else shown(payload)
            documents.append(_document(queue, dead_letter) | {"payload": redacted})
    if args.json:
        _print_json(documents)
    else:
        for document in documents:
            _print_letter(document)
    if missing:
        raise CheckFailedError(
            f"there is no dead letter {', '.join(missing)}: `spottmee-worker dead list --limit 0` shows all ids"
        )
    return 0


def _write_payload(dead_letter: DeadLetter, payload: bytes) -> None:
    if KINDS[dead_letter.queue].private or may_hold_selfie(payload):
        raise UsageError(f"the payload of dead letter {dead_letter.id} may contain a selfie: it is never printed")
    if output.is_terminal("stdout") and not payload.decode(errors="replace").isprintable():
        raise UsageError(
            f"the payload of dead letter {dead_letter.id} contains control characters: redirect it to a file or a pipe"
        )
    output.raw(payload)


def _requeue(args: argparse.Namespace) -> int:
    _check_choice(args)
    with _open(args.queue) as queues:
        chosen, absent = _chosen(queues, args)
        outcomes = dict.fromkeys(absent, "not_found")
        for queue, dead_letter in chosen:
            kept = queue.payload_seconds(dead_letter.id) is not None
            outcome = (Requeued.DONE if kept else Requeued.EXPIRED) if args.dry_run else queue.requeue(dead_letter.id)
            outcomes[dead_letter.id] = outcome.value
    return _report(args, outcomes, "requeued")


def _purge(args: argparse.Namespace) -> int:
    _check_choice(args)
    with _open(args.queue) as queues:
        chosen, absent = _chosen(queues, args)
        if chosen and not (args.dry_run or args.yes or _confirmed(len(chosen))):
            output.problem("nothing was deleted")
            return 0
        outcomes = dict.fromkeys(absent, "not_found")
        for queue, dead_letter in chosen:
            done = args.dry_run or queue.purge(dead_letter.id)
            outcomes[dead_letter.id] = "purged" if done else "not_found"
    return _report(args, outcomes, "purged")


def _chosen(
    queues: Sequence[DeadLetters], args: argparse.Namespace
) -> tuple[list[tuple[DeadLetters, DeadLetter]], list[str]]:
    """Return the dead letters to act on, oldest first, and the ids that do not exist."""
    if not args.ids:
        return _matching(queues, args)[: args.limit or None], []
    found = {dead_letter_id: _find(queues, dead_letter_id) for dead_letter_id in dict.fromkeys(args.ids)}
    chosen = sorted((pair for pair in found.values() if pair is not None), key=lambda pair: pair[1].dead_lettered_at)
    return chosen[: args.limit or None], [dead_letter_id for dead_letter_id, pair in found.items() if pair is None]


def _check_choice(args: argparse.Namespace) -> None:
    """Raise `UsageError` unless the arguments select dead letters in exactly one way. Does not query Redis."""
    filtered = args.code or args.older_than is not None or args.newer_than is not None
    if not (args.ids or filtered or args.all):
        raise UsageError("choose dead letters by id, by --code, --older-than or --newer-than, or with --all")
    if args.all and (args.ids or filtered):
        raise UsageError("--all cannot be combined with ids, --code, --older-than or --newer-than")
    if args.ids and filtered:
        raise UsageError("ids cannot be combined with --code, --older-than or --newer-than")


def _confirmed(count: int) -> bool:
    return confirmed(
        f"Delete {count} dead letters and their payloads permanently?", f"{count} dead letters would be deleted"
    )


def _report(args: argparse.Namespace, outcomes: dict[str, str], wanted: str) -> int:
    failed = {dead_letter_id: what for dead_letter_id, what in outcomes.items() if what != wanted}
    done = len(outcomes) - len(failed)
    if args.json:
        _print_json({wanted: done, "dry_run": args.dry_run, "dead_letters": outcomes})
    else:
        verb = f"would be {wanted}" if args.dry_run else f"{wanted}"
        output.line(f"{done} of {len(outcomes)} dead letters {verb}")
    if not failed:
        return 0
    causes = {"not_found": "no such dead letter", "expired": "its payload has expired"}
    for dead_letter_id, what in failed.items():
        output.problem(f"{dead_letter_id}: {causes[what]}")
    raise CheckFailedError(f"{len(failed)} dead letters could not be {wanted}")


def _document(queue: DeadLetters, dead_letter: DeadLetter) -> dict[str, Any]:
    seconds = queue.payload_seconds(dead_letter.id)
    return {
        "id": dead_letter.id,
        "queue": dead_letter.queue,
        "error": {"code": dead_letter.code, "message": dead_letter.message},
        "attempts": dead_letter.attempts,
        "runner": dead_letter.runner,
        "bytes": dead_letter.bytes,
        "claimed_at": _moment(dead_letter.claimed_at),
        "dead_lettered_at": _moment(dead_letter.dead_lettered_at),
        "payload_expires_in_seconds": None if seconds is None else round(seconds),
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _print_json(document: Any) -> None:
    output.document(document, indent=2 if output.is_terminal("stdout") else None)


def _print_table(dead_letters: Sequence[DeadLetter]) -> None:
    if not dead_letters:
        return
    rows = [("ID", "QUEUE", "CODE", "ATTEMPTS", "FAILED", "BYTES", "MESSAGE")]
    rows += [
        (one.id, one.queue, one.code, str(one.attempts), _moment(one.dead_lettered_at), str(one.bytes), one.message)
        for one in dead_letters
    ]
    screen = shutil.get_terminal_size().columns if output.is_terminal("stdout") else None
    for line in columns(rows):
        output.line(line[:screen].rstrip())


def _print_letter(document: dict[str, Any]) -> None:
    for name, value in document.items():
        if name == "payload":
            text = "expired" if value is None else output.json_text(value, indent=2)
            output.lines(f"{name:<16} {text}".splitlines())
        elif name == "error":
            output.line(f"{name:<16} {value['code']}: {value['message']}")
        elif name == "payload_expires_in_seconds":
            output.line(f"{'payload expires':<16} {'expired' if value is None else f'in {value} s'}")
        else:
            output.line(f"{name:<16} {value}")
    output.line()
