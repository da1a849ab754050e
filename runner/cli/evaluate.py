"""`spottmee-worker evaluate`: true and false match rates on labelled photos, and the recommended threshold."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.arguments import percentage, whole
from runner.cli.counter import counter
from runner.cli.files import check_writable, write_private
from runner.cli.output import columns
from runner.errors import CheckFailedError
from runner.evaluation.labels import Labels, read_labels
from runner.evaluation.measure import Embedded, Faces, LeftOut, Measured, Pair, measure, read_image
from runner.evaluation.rates import Criterion, Point, Rate, Rates
from runner.evaluation.report import METHOD, Evaluation, number, percent
from runner.faces.engine import Engine
from runner.settings import Settings
from runner.worker.messages import DEFAULT_THRESHOLD

WORST = 6
_TABLE = [step / 20 for step in range(2, 17)]  # 0.10 to 0.80
_JSON = [step / 100 for step in range(-100, 101)]

EPILOG = """PATH is a folder that contains one folder of photos per person:
  people/ada/1.jpg  people/ada/2.jpg  people/ben/1.jpg
or a CSV file with the columns first, second (paths, relative to the file) and same (1 or 0):
  first,second,same
  selfie.jpg,party.jpg,1

In folders, every two photos are compared, and a photo with several faces is skipped; in a CSV, all faces of both
photos are compared, as a run does (--faces). Nothing is sent anywhere and nothing is stored, except the report.
Settings: RUNNER_MODEL_DIR, RUNNER_THREADS, RUNNER_PROVIDERS, RUNNER_MAX_IMAGE_PIXELS, RUNNER_MAX_IMAGE_BYTES."""


def add_parser(subparsers: Any) -> None:
    """Add `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help=COMMANDS["evaluate"].help,
        description="Compare labelled photos with the model pack, and show for every threshold how many pairs of the "
        "same person match, how many of different people do, and how certain that is. Exits with 5 if a file could not "
        "be read (the others are measured), or if there is nothing to compare.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder of people, or a CSV file of pairs")
    parser.add_argument(
        "--faces",
        choices=[choice.value for choice in Faces],
        help="for a photo with several faces: one skips the photo, largest compares the largest face, all compares "
        "every face, as a run does (default: one for a folder, all for a CSV)",
    )
    parser.add_argument(
        "--max-false-match-rate",
        type=percentage,
        metavar="PERCENT",
        help="the best threshold is the one with the most true matches whose rate of false matches is not higher "
        "(default: the one with the largest difference between the two rates, Youden's J)",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a report with plots and the worst pairs as pictures; only its owner can read it, because it shows "
        "people",
    )
    parser.add_argument(
        "--worst", type=whole, default=WORST, metavar="N", help="worst pairs of each kind (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=())
    if args.html:
        check_writable(args.html, "--html")
    labels = read_labels(args.path)
    faces = Faces(args.faces or ("one" if labels.pairs is None else "all"))
    with Engine.from_settings(settings) as engine:
        measured = _measure(labels, engine, settings, faces, args.worst)
        model = engine.model
    _check(measured, labels)
    limit = args.max_false_match_rate
    evaluation = _judge(labels, measured, model, None if limit is None else limit / 100)
    if args.html:
        page = evaluation.html(lambda photo: read_image(photo.photo.path, settings))
        write_private(args.html, page.encode(), "--html")
    if args.json:
        output.document(_document(evaluation, faces, args.html), indent=2)
    else:
        output.lines(_lines(evaluation))
        for item in measured.left_out:
            output.problem(f"left out: {item.name}: {item.reason}")
        if args.html:
            output.line(f"report: {args.html}")
    if faults := [item for item in measured.left_out if item.is_fault]:
        raise CheckFailedError(f"{len(faults)} of {len(labels.photos)} photos could not be read: {_first(faults)}")
    return 0


def _measure(labels: Labels, engine: Engine, settings: Settings, faces: Faces, worst: int) -> Measured:
    progress = counter("photos")
    progress.start(len(labels.photos))
    try:
        return measure(labels, engine, settings, faces, worst=worst, progress=progress.update)
    finally:
        progress.close()


def _check(measured: Measured, labels: Labels) -> None:
    """Raise `CheckFailedError` if there is no pair of one kind, which then has no rate."""
    if len(measured.same) and len(measured.different):
        return
    kind, advice = (
        ("different people", "photos of at least two people")
        if len(measured.same)
        else ("the same person", "at least two photos of one person")
    )
    found = f"{len(measured.photos)} of {len(labels.photos)} photos have a face that can be compared"
    reasons = f"; left out: {_first(measured.left_out)}" if measured.left_out else ""
    raise CheckFailedError(f"there is no pair of {kind} to compare: add {advice}; {found}{reasons}")


def _first(items: Sequence[LeftOut], most: int = 3) -> str:
    named = "; ".join(f"{item.name}: {item.reason}" for item in items[:most])
    return named + (f"; and {len(items) - most} more" if len(items) > most else "")


def _judge(labels: Labels, measured: Measured, model: str, most_false: float | None) -> Evaluation:
    rates = Rates(measured.same, measured.different)
    best = rates.best(most_false)
    thresholds = sorted({*_TABLE, best.point.threshold, DEFAULT_THRESHOLD})
    return Evaluation(
        model=model,
        people=len({photo.photo.person for photo in measured.photos}) if labels.pairs is None else 0,
        measured=measured,
        rates=rates,
        table=[rates.at(threshold) for threshold in thresholds],
        best=best,
        criterion=Criterion.YOUDEN if most_false is None else Criterion.LIMIT,
        default=rates.at(DEFAULT_THRESHOLD),
    )


def _lines(evaluation: Evaluation) -> Iterator[str]:
    measured, best, default = evaluation.measured, evaluation.best.point, evaluation.default
    of_people = f" of {evaluation.people} people" if evaluation.people else ""
    yield (
        f"model {evaluation.model}: {len(measured.photos)} photos{of_people}, {len(measured.same)} pairs of the same "
        f"person, {len(measured.different)} of different people; {len(measured.left_out)} photos left out"
    )
    rows = [("THRESHOLD", "TRUE MATCHES", "FALSE MATCHES", "")]
    for point in evaluation.table:
        marks = {best.threshold: "best", default.threshold: "the API's"}
        rows.append(
            (number(point.threshold), percent(point.true), percent(point.false), marks.get(point.threshold, ""))
        )
    yield from columns(rows)
    yield (
        f"best threshold {number(best.threshold)}: {evaluation.criterion.value}; from {evaluation.best.low:.4f} to "
        f"below {evaluation.best.high:.4f} every threshold has the same rates"
    )
    yield METHOD
    if measured.worst_same or measured.worst_different:
        yield "worst pairs:"
        yield from columns([*_pair_rows(measured.worst_same, "same person"),
                            *_pair_rows(measured.worst_different, "different people")])  # fmt: skip


def _pair_rows(pairs: Sequence[Pair], kind: str) -> Iterator[tuple[str, ...]]:
    for pair in pairs:
        yield f"  {pair.similarity:.4f}", kind, _name(pair.first), _name(pair.second)


def _name(photo: Embedded) -> str:
    return photo.photo.name


def _document(evaluation: Evaluation, faces: Faces, report: Path | None) -> dict[str, object]:
    """Return what is printed with --json."""
    measured = evaluation.measured
    return {
        "model": evaluation.model,
        "faces": faces.value,
        "photos": len(measured.photos),
        "people": evaluation.people or None,
        "pairs": {
            "same": len(measured.same),
            "different": len(measured.different),
            "left_out": measured.pairs_left_out,
        },
        "interval": "Wilson, 95 %",
        "best": {
            **_point(evaluation.best.point),
            "criterion": evaluation.criterion.name.lower(),
            "low": round(evaluation.best.low, 6),
            "high": round(evaluation.best.high, 6),
        },
        "default": _point(evaluation.default),
        "thresholds": [_point(evaluation.rates.at(threshold)) for threshold in _JSON],
        "worst": {"same": _pair_documents(measured.worst_same), "different": _pair_documents(measured.worst_different)},
        "left_out": [asdict(item) for item in measured.left_out],
        "report": str(report) if report else None,
    }


def _point(point: Point) -> dict[str, object]:
    return {
        "threshold": point.threshold,
        "true_match_rate": _rate(point.true),
        "false_match_rate": _rate(point.false),
    }


def _rate(rate: Rate) -> dict[str, float]:
    return {
        "rate": round(rate.value, 6),
        "low": round(rate.low, 6),
        "high": round(rate.high, 6),
        "count": rate.count,
        "of": rate.of,
    }


def _pair_documents(pairs: Sequence[Pair]) -> list[dict[str, object]]:
    return [
        {"similarity": round(pair.similarity, 6), "first": _name(pair.first), "second": _name(pair.second)}
        for pair in pairs
    ]
