"""The invariants that must hold after every campaign, whatever fault was injected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from demo.api import Api
from demo.scaler import Runner
from runner.errors import PhotosInvisibleError, SettingsError, StuckError, UnreachableError
from runner.queue import keys, totals
from runner.queue.dead_letters import DeadLetter, DeadLetters
from runner.queue.totals import read_totals
from tests.faults.pictures import Kind
from tests.faults.world import World

KILLED, TERMINATED = -9, -15
DeadLettersById = dict[str, DeadLetter]
_OUTCOMES = ("succeeded", "photo_gone", "retried", "dead_lettered", "parked", "released", "lease_lost")
_REASONS = {
    SettingsError.exit_code: {"settings", "postgres_right_missing"},
    PhotosInvisibleError.exit_code: {"photos_invisible"},
    0: {"empty", "max_jobs", "max_seconds", "signal"},
    UnreachableError.exit_code: {"redis_unreachable", "database_unreachable", "signal", "hung"},
    StuckError.exit_code: {"stuck"},
}


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which deviations from a perfect result a campaign allows.

    `reasons` are the error codes with which valid photos and comparisons may become dead letters; `codes` the allowed
    exit codes of runners; `deleted` allows missing rows; `lossy` means that Redis lost writes, so that counts differ.
    """

    reasons: Collection[str] = ()
    codes: Collection[int] = (0,)
    deleted: bool = False
    lossy: bool = False


@dataclass(slots=True)
class Verdict:
    """The violated invariants (`wrong` is empty if all hold), and the counts for the report."""

    wrong: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    def expect(self, holds: object, violation: str) -> None:
        """Record `violation` unless `holds` is true."""
        if not holds:
            self.wrong.append(violation)


def check(world: World, allowed: Allowed) -> Verdict:
    """Check both databases, Redis and every runner."""
    verdict = Verdict()
    dead_letters = {name: _dead_letters(world, name) for name in ("process", "compare")}
    with world.database("api") as api, world.faces_database() as faces:
        client = Api(world.redis, api)
        _check_photos(world, client, faces, dead_letters=dead_letters["process"], allowed=allowed, verdict=verdict)
        _check_comparisons(world, client, dead_letters["compare"], allowed, verdict)
    for name in ("process", "compare"):
        claimed = world.redis.hlen(keys.claimed(name))
        depth = world.scaler.depth(name)
        verdict.expect(depth == (0, 0), f"{name}: {depth} jobs left waiting and leased")
        verdict.expect(claimed == 0, f"{name}: {claimed} fields of settled leases left")
        parked = world.redis.zcard(keys.parked(name))
        verdict.expect(parked == 0, f"{name}: {parked} jobs left parked")
    verdict.expect(not world.living(), "a runner is still running")
    for runner in world.scaler.runners:
        _check_runner(runner, allowed, verdict)
    _check_sums(world, dead_letters, allowed, verdict)
    _check_totals(world, dead_letters, allowed, verdict)
    verdict.counts |= {
        "photos": len(world.jobs.photos),
        "comparisons": len(world.jobs.comparisons),
        "runs": len(world.scaler.runners),
        "exits": {str(code): count for code, count in sorted(world.exits().items())},
        "faults": dict(world.faults_noted() + world.seen),
        "dead letters": dict(
            Counter(str(dead_letter.code) for found in dead_letters.values() for dead_letter in found.values())
        ),
        **{
            outcome: sum(runner.summary.get(outcome, 0) for runner in world.scaler.runners)
            for outcome in ("succeeded", "photo_gone", "retried", "parked", "released", "lease_lost")
        },
    }
    return verdict


def _dead_letters(world: World, name: str) -> DeadLettersById:
    """Return photo id or comparison id → dead letter."""
    dead_letters = DeadLetters(world.redis, name)
    found = {}
    for dead_letter in dead_letters.all():
        document = json.loads(dead_letters.payload(dead_letter.id) or b"{}")
        found[str(document.get("id") or document.get("jobId") or dead_letter.id)] = dead_letter
    return found


def _check_photos(
    world: World, api: Api, faces: Connection, *, dead_letters: DeadLettersById, allowed: Allowed, verdict: Verdict
) -> None:
    statuses = api.statuses()
    sent = world.reference.photos | world.jobs.photos
    stored: dict[str, list[int]] = {}
    for photo_id, index in faces.execute("SELECT photo_id, face_index FROM faces ORDER BY 1, 2").fetchall():
        stored.setdefault(photo_id, []).append(index)
    for photo_id, kind in sent.items():
        if photo_id in statuses:
            what = f"photo {photo_id} ({kind.name}) is {statuses[photo_id]}"
            faces_found, dead_letter = stored.get(photo_id, []), dead_letters.get(photo_id)
            for violation in _violations_of_photo(kind, statuses[photo_id], faces_found, dead_letter, allowed):
                verdict.wrong.append(f"{what}, {violation}")
        else:
            verdict.expect(allowed.deleted, f"the row of photo {photo_id} is missing")
    orphans = [photo_id for photo_id in stored if photo_id not in statuses]
    verdict.expect(not orphans, f"faces of photos that do not exist: {orphans}")
    verdict.counts["statuses"] = dict(sorted(Counter(statuses[i] for i in world.jobs.photos if i in statuses).items()))
    verdict.counts["deleted"] = sum(photo_id not in statuses for photo_id in sent)


def _violations_of_photo(
    kind: Kind, status: str, indexes: list[int], dead_letter: DeadLetter | None, allowed: Allowed
) -> Iterator[str]:
    if indexes != list(range(len(kind.people) if status == "READY" else 0)):
        yield f"but has the faces {indexes}"
    if status == "FAILED" and kind.status != "FAILED":
        if not dead_letter or dead_letter.code not in allowed.reasons:
            yield f"but has the dead letter {dead_letter}"
    elif status != kind.status:
        yield f"not {kind.status}"
    if allowed.lossy:
        return
    if (status == "FAILED") != (dead_letter is not None):
        yield f"but has the dead letter {dead_letter}"


def _check_comparisons(
    world: World, api: Api, dead_letters: DeadLettersById, allowed: Allowed, verdict: Verdict
) -> None:
    empty = 0
    for job_id in world.jobs.albums:
        _check_early(world, api, job_id, dead_letters=dead_letters, allowed=allowed, verdict=verdict)
    for job_id, person in world.jobs.comparisons.items():
        if job_id in world.jobs.albums:
            continue
        try:
            answer = api.result(job_id)
        except KeyError:
            answer = None
        expected = [photo_id for photo_id, kind in world.reference.photos.items() if person in kind.people]
        if answer == expected:
            continue
        empty += 1
        dead_letter = dead_letters.get(job_id)
        excused = answer == [] and dead_letter is not None and dead_letter.code in allowed.reasons
        verdict.expect(excused, f"comparison {job_id} ({person}): {answer}, dead letter {dead_letter}")
    verdict.counts["answered"] = len(world.jobs.comparisons) - empty


def _check_early(
    world: World, api: Api, job_id: str, *, dead_letters: DeadLettersById, allowed: Allowed, verdict: Verdict
) -> None:
    """Check that the first final answer has every matching photo that became READY, and no others but deleted ones."""
    person, album, statuses = world.jobs.comparisons[job_id], world.jobs.albums[job_id], api.statuses()
    shown = [photo_id for photo_id in album if person in world.jobs.photos[photo_id].people]
    ready = {photo_id for photo_id in shown if statuses.get(photo_id) == "READY"}
    answer, dead_letter, detail = world.finals.get(job_id), dead_letters.get(job_id), api.detail(job_id)
    if answer == [] and dead_letter is not None and dead_letter.code in allowed.reasons:
        verdict.counts["guests with a dead letter"] = verdict.counts.get("guests with a dead letter", 0) + 1
        return
    whole = answer is not None and answer == [p for p in shown if p in ready or (p in world.deleted and p in answer)]
    verdict.expect(whole, f"guest {job_id} ({person}): {len(answer or ())} matches, but {len(ready)} photos are READY")
    verdict.expect(
        detail.get("complete") is True, f"guest {job_id} ({person}): pending photos: {detail.get('pending')}"
    )
    verdict.counts["complete answers"] = verdict.counts.get("complete answers", 0) + whole


def _check_runner(runner: Runner, allowed: Allowed, verdict: Verdict) -> None:
    what = f"{runner.log.stem} (exit code {runner.exit_code})"
    code, summary = runner.exit_code, runner.summary
    verdict.expect(code in allowed.codes, f"{what}: unexpected exit code: {_tail(runner)}")
    if code == KILLED or code not in _REASONS:
        return
    verdict.expect(summary, f"{what}: printed no summary: {_tail(runner)}")
    if summary:
        settled = sum(summary[outcome] for outcome in _OUTCOMES)
        verdict.expect(
            summary["claimed"] == settled + summary["unsettled"], f"{what}: the counts do not add up: {summary}"
        )
        verdict.expect(summary["unsettled"] == 0 or code != 0, f"{what}: left jobs unsettled: {summary}")
        verdict.expect(summary["exit_reason"] in _REASONS[code], f"{what}: unexpected reason {summary['exit_reason']}")
    text = runner.log.read_text("utf-8", "replace")
    verdict.expect("Traceback" not in text, f"{what}: logged a traceback: {_tail(runner)}")


def _check_sums(world: World, dead_letters: dict[str, DeadLettersById], allowed: Allowed, verdict: Verdict) -> None:
    """Check that the runners' summaries add up to the jobs sent, except those of killed runners, which print none."""
    sums = Counter[str]()
    for runner in world.scaler.runners:
        sums.update({outcome: runner.summary.get(outcome, 0) for outcome in _OUTCOMES})
    ended, sent = sums["succeeded"] + sums["photo_gone"] + sums["dead_lettered"], len(world.jobs)
    verdict.expect(allowed.lossy or ended <= sent, f"{ended} jobs ended, but only {sent} were sent")
    silent = any(not runner.summary for runner in world.scaler.runners)
    # If the connection breaks before Redis's reply arrives, the runner counts an acknowledged job as lost.
    verdict.expect(
        silent or allowed.lossy or ended + sums["lease_lost"] >= sent, f"{sent} jobs were sent, but only {ended} ended"
    )
    dead = sum(len(found) for found in dead_letters.values())
    verdict.expect(
        silent or allowed.lossy or sums["dead_lettered"] <= dead,
        f"the summaries count {sums['dead_lettered']} dead letters, but there are {dead}",
    )


def _check_totals(world: World, dead_letters: dict[str, DeadLettersById], allowed: Allowed, verdict: Verdict) -> None:
    """Check that the totals equal the jobs sent exactly, even after kills, lost replies and a failover."""
    sent = {"process": len(world.jobs.photos) + len(world.reference.photos), "compare": len(world.jobs.comparisons)}
    every = {name: read_totals(world.redis, name) for name in sent}
    for name, found in every.items():
        ended = sum(number for label, number in found.items() if label.startswith("jobs:"))
        retried = sum(number for label, number in found.items() if label.startswith("retries:"))
        taken, expired = found[totals.TAKEN], found[totals.LEASES_EXPIRED]
        verdict.expect(ended == sent[name], f"{name}: totals count {ended} jobs, but {sent[name]} were sent")
        verdict.expect(taken == sent[name], f"{name}: totals count {taken} jobs taken, but {sent[name]} were sent")
        verdict.expect(
            found[totals.ATTEMPTS] == taken + retried + expired,
            f"{name}: {found[totals.ATTEMPTS]} attempts, {taken} taken, {retried} retried, {expired} leases expired",
        )
        verdict.expect(
            sum(totals.buckets(found, totals.JOB)) == ended,
            f"{name}: {ended} jobs ended, but the histogram counts another number of durations",
        )
        dead = Counter(
            totals.job_field(totals.DEAD_LETTERED, dead_letter.code) for dead_letter in dead_letters[name].values()
        )
        counted = {label: number for label, number in found.items() if label.startswith("jobs:dead") and number}
        verdict.expect(counted == dead, f"{name}: totals count {counted}, but the dead letters are {dict(dead)}")
    if not allowed.deleted:
        with world.faces_database() as connection:
            row = connection.execute("SELECT count(*) FROM faces").fetchone()
        stored, counted_faces = row[0] if row else 0, every["process"][totals.FACES]
        verdict.expect(counted_faces == stored, f"totals count {counted_faces} faces, but {stored} are stored")
    _check_run_totals(world, list(every.values()), allowed, verdict)
    verdict.counts["leases expired"] = sum(found[totals.LEASES_EXPIRED] for found in every.values())


def _check_run_totals(world: World, every: list[Counter[str]], allowed: Allowed, verdict: Verdict) -> None:
    ended = {reason: sum(found[totals.run_field(reason)] for found in every) for reason in totals.exit_reasons()}
    started = sum(found[totals.RUNS_STARTED] for found in every)
    verdict.expect(allowed.lossy or sum(ended.values()) <= started, f"{started} runs started, but more ended: {ended}")
    # A run that is terminated during start-up has not counted its start.
    printed = Counter(runner.summary["exit_reason"] for runner in world.scaler.runners if runner.exit_code == 0)
    for reason in printed.keys() - {"signal"}:
        verdict.expect(
            allowed.lossy or ended[reason] >= printed[reason],
            f"{printed[reason]} runs ended with {reason}, but {ended[reason]} are counted",
        )


def _tail(runner: Runner) -> str:
    return " | ".join(runner.log.read_text("utf-8", "replace").splitlines()[-3:])[:600]
