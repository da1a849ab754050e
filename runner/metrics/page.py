"""The status page: queues, jobs in flight, the last hours, runs, and dead letters by code.

It is built from numbers, error codes and names of runners: payloads are not read, so no photo, selfie or URL appears.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import pairwise
from urllib.parse import parse_qs, unquote

from runner import __version__
from runner.errors import ExpiredJobError
from runner.metrics.drawing import Point, chart
from runner.metrics.reader import Details, Reading
from runner.output import printable
from runner.queue import totals
from runner.queue.leases import Leased
from runner.queue.samples import HISTORY_SECONDS, Moment, RunSummary, Sample

STYLE = (resources.files("runner.metrics") / "page.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REFRESH_SECONDS = 30
_RUNS_SHOWN = 20
# Field of a summary, and its heading.
_RUN_COLUMNS = (
    ("exit_reason", "Reason"), ("claimed", "#Claimed"), ("succeeded", "#Succeeded"), ("retried", "#Retried"),
    ("dead_lettered", "#Dead"), ("lease_lost", "#Lost"), ("duration_seconds", "#Seconds"),
)  # fmt: skip
_RUNNERS_SHOWN = 50
# A guest waits for an answer: longer than this is shown as a problem.
_LONG_WAIT_SECONDS = 60.0


def page(reading: Reading, details: Mapping[str, Details], query: str) -> str:
    """Return the page. The `query` refresh=on makes the browser reload it every half minute."""
    refreshes = parse_qs(query).get("refresh") == ["on"]
    again = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">' if refreshes else ""
    switch = (
        '<a href="?">Stop refreshing</a>'
        if refreshes
        else f'<a href="?refresh=on">Refresh every {REFRESH_SECONDS} s</a>'
    )
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(reading.time))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{again}<title>{_title(reading)}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#queues">Skip to the queues</a>'
        f'<header><h1>spottmee-worker</h1><span class="soft">{moment}</span>'
        f'{switch}<a href="metrics">Metrics</a></header>'
        f'<main id="queues">{"".join(_main(reading, details))}</main>'
        f"<footer>Version {escape(__version__)}. Read-only; times are UTC, and totals count from the creation of "
        "their key in Redis.</footer></body></html>"
    )


def _title(reading: Reading) -> str:
    if reading.samples is None:
        return "Redis does not answer | spottmee-worker"
    waiting = sum(sample.waiting for sample in reading.samples)
    dead = sum(sum(sample.dead.values()) for sample in reading.samples)
    return f"{waiting} waiting, {dead} dead letters | spottmee-worker"


def _main(reading: Reading, details: Mapping[str, Details]) -> Iterator[str]:
    if reading.samples is None:
        yield (
            f'<p class="problem" role="alert">Redis does not answer ({escape(reading.error)}). '
            "The log of this process has the details; the page works again when Redis does.</p>"
        )
        return
    yield '<div class="queues">'
    for sample in reading.samples:
        yield from _queue(sample, details.get(sample.name), reading.time)
    yield "</div>"
    yield from _runners(details)
    yield from _runs(reading.samples, details, reading.time)
    yield from _dead_letters(reading.samples)


def _queue(sample: Sample, details: Details | None, now: float) -> Iterator[str]:
    is_guests = sample.name == "compare"
    late = is_guests and sample.oldest_seconds > _LONG_WAIT_SECONDS
    dead = sum(sample.dead.values())
    heading = f"queue-{sample.name}"
    yield f'<section class="card" aria-labelledby="{heading}"><h2 id="{heading}">{sample.name}</h2><dl>'
    yield from (
        f"<div{' class=bad' if bad else ''}><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value, bad in (
            ("Waiting", f"{sample.waiting:,}", False),
            ("Oldest", _duration(sample.oldest_seconds) if sample.waiting else "none", late),
            ("In flight", f"{sample.leased - sample.deferred:,}", False),
            ("Deferred", f"{sample.deferred:,}", False),
            ("Parked", f"{sample.parked:,}", False),
            ("Due", f"{sample.due:,}", False),
            ("Dead letters", f"{dead:,}", dead > 0),
        )
    )
    yield "</dl>"
    history = details.history if details else ()
    waiting = [(one.time, float(one.waiting)) for one in history]
    hours = f"last {HISTORY_SECONDS // 3600} hours"
    for title, points, shape in (
        (f"Waiting, {hours}", waiting, "area"),
        (f"Jobs ended per minute, {hours}", list(_throughput(history)), "bars"),
    ):
        yield f"<h3>{title}</h3>{chart(title, points, now=now, seconds=HISTORY_SECONDS, shape=shape)}"
    yield "</section>"


def _throughput(history: Sequence[Moment]) -> Iterator[Point]:
    for before, after in pairwise(history):
        minutes = (after.time - before.time) / 60
        if minutes > 0:  # the totals may have been deleted in between
            yield after.time, round(max(0, after.ended - before.ended) / minutes, 1)


def _runners(details: Mapping[str, Details]) -> Iterator[str]:
    rows: dict[tuple[str, str], list[Leased]] = {}
    for name, one in details.items():
        for lease in one.leases:
            if lease.owner:
                rows.setdefault((lease.owner, name), []).append(lease)
    yield '<section class="card" aria-labelledby="flight"><h2 id="flight">In flight</h2>'
    if not rows:
        yield "<p>No job is in flight.</p></section>"
        return
    ordered = sorted(rows.items(), key=lambda row: -max(lease.age_seconds for lease in row[1]))
    yield _table(
        ("Pod", "Queue", "#Jobs", "#Longest since", "#Most attempts", "Leases"),
        [
            (
                _pod(owner),
                name,
                str(len(leases)),
                _duration(max(lease.age_seconds for lease in leases)),
                str(max(lease.attempts for lease in leases)),
                "expired: its runner has died or lost Redis"
                if min(lease.expires_in_seconds for lease in leases) < 0
                else "renewed",
            )
            for (owner, name), leases in ordered[:_RUNNERS_SHOWN]
        ],
        "Runners with leases",
    )
    if len(ordered) > _RUNNERS_SHOWN:
        yield f"<p>and {len(ordered) - _RUNNERS_SHOWN} more</p>"
    yield "</section>"


def _runs(samples: Sequence[Sample], details: Mapping[str, Details], now: float) -> Iterator[str]:
    yield '<section class="card" aria-labelledby="runs"><h2 id="runs">Runs</h2>'
    for sample in samples:
        ended = {reason: sample.totals[totals.run_field(reason)] for reason in totals.exit_reasons()}
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in ended.items() if number) or "none"
        open_runs = max(0, sample.totals[totals.RUNS_STARTED] - sum(ended.values()))
        yield (
            f"<p><b>{sample.name}</b>: {sample.totals[totals.RUNS_STARTED]:,} started; ended: {reasons}; "
            f"{open_runs:,} active or killed</p>"
        )
    yield _killed(samples)
    last = _last_runs(details)
    if last:
        yield _table(
            ("Ended", "Pod", *(heading for _, heading in _RUN_COLUMNS)),
            [
                (
                    f"{_duration(now - run.time)} ago",
                    _pod(str(run.document.get("runner", ""))),
                    *(str(run.document.get(name, "")) for name, _ in _RUN_COLUMNS),
                )
                for run in last
            ],
            f"The last {len(last)} runs",
        )
    yield "</section>"


def _killed(samples: Sequence[Sample]) -> str:
    """Describe runs that could not write a summary, by the leases that they left behind."""
    expired = {sample.name: sample.totals[totals.LEASES_EXPIRED] for sample in samples}
    if not any(expired.values()):
        return "<p>A run that is killed leaves no row below. None of their leases has expired so far.</p>"
    numbers = ", ".join(f"{number:,} of {name}" for name, number in expired.items() if number)
    return (
        "<p>A run that is killed leaves no row below, but its leases: "
        f"{numbers} expired while a run owned them, and their jobs were delivered again.</p>"
    )


def _pod(owner: str) -> str:
    """Return the host of a runner, which is its pod, from JOB/HOST/PROCESS or HOST/PROCESS."""
    parts = owner.split("/")
    return unquote(parts[-2] if len(parts) > 1 else owner)


def _last_runs(details: Mapping[str, Details]) -> list[RunSummary]:
    """Return the last runs of all queues; a run that has served several is shown once."""
    found = {str(run.document.get("runner")): run for one in details.values() for run in one.runs}
    return sorted(found.values(), key=lambda run: -run.time)[:_RUNS_SHOWN]


def _dead_letters(samples: Sequence[Sample]) -> Iterator[str]:
    rows = [
        (sample.name, code, f"{number:,}", _command(sample.name, code))
        for sample in samples
        for code, number in Counter(sample.dead).most_common()
    ]
    yield '<section class="card" aria-labelledby="dead"><h2 id="dead">Dead letters</h2>'
    if rows:
        yield _table(("Queue", "Code", "#Number", "Command to requeue them"), rows, "Dead letters by error code")
        yield (
            "<p>Inspect them first: <code>spottmee-worker dead list --code CODE</code>. The selfie of a comparison is "
            "kept for 59 minutes; after that its job cannot be requeued.</p>"
        )
    else:
        yield "<p>There are none.</p>"
    yield "</section>"


def _command(queue: str, code: str) -> str:
    if code == ExpiredJobError.code:
        return "not possible: the guest no longer waits, and the selfie was deleted"
    if code == totals.OTHER:
        return f"spottmee-worker dead list --queue {queue}"
    return f"spottmee-worker dead requeue --queue {queue} --code {code}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Return a table that scrolls by itself. A # before a heading makes it a column of numbers; commands are code."""
    kinds = [" class=number" if name.startswith("#") else "" for name in head]
    cells = "".join(
        f"<th scope=col{kind}>{escape(name.removeprefix('#'))}</th>" for name, kind in zip(head, kinds, strict=True)
    )
    lines = "".join(
        f"<tr>{''.join(f'<td{kind}>{_cell(text)}</td>' for text, kind in zip(row, kinds, strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    shown = escape(printable(text))
    return f"<code>{shown}</code>" if text.startswith("spottmee-worker ") else shown


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= unit:
            return f"{whole // unit} {name}"
    return f"{whole} s"
