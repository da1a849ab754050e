"""`make bench`: measure this runner against the worker that it replaces, print a table, write a JSON file.

Both workers, and the limit that the machine sets, are measured in turn, round by round, so that other load on the
machine affects all of them alike; ratios are taken within a round. A missed target shows in the table and does not
change the exit code, which is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import cold_start, comparison, counting, inference, machine, memory, packs, throughput, whole_run
from benchmarks.figures import Row, table
from benchmarks.world import BenchmarkError, World, world

# Name → the function that measures it, and its number of rounds. All parts take about 6 minutes.
PARTS: dict[str, tuple[Callable[[World, int], list[Row]], int]] = {
    "cold-start": (cold_start.measure, 15),
    "inference": (lambda _, rounds: inference.measure(rounds), 15),
    "throughput": (lambda _, rounds: throughput.measure(rounds), 7),
    "mixed": (whole_run.measure_mixed, 3),
    "album": (whole_run.measure_album, 3),
    "comparison": (comparison.measure, 5),
    "memory": (memory.measure, 3),
    "counting": (counting.measure, 5),
}
# Measured only when named: they bake packs of hundreds of megabytes first.
ON_REQUEST: dict[str, tuple[Callable[[World, int], list[Row]], int]] = {"packs": (packs.measure, 3)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected parts."""
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    rows: list[Row] = []
    about = machine.describe()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with world() as servers:
        for name in args.only or PARTS:
            measure, rounds = (PARTS | ON_REQUEST)[name]
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            rows += measure(servers, args.rounds or rounds)
            _write(args.json, about, rows, time.monotonic() - started)  # each time, in case a later part fails
    print(f"{about['processor']}, {about['cores']} cores, load average {about['load']} at the start\n")
    print(table(rows))
    print(f"\nmedian (minimum to maximum) of the rounds; written to {args.json}")
    return 0


def _write(file: Path, about: Mapping[str, object], rows: Sequence[Row], seconds: float) -> None:
    document = {
        "machine": about,
        "versions": machine.versions(),
        "seconds": round(seconds, 1),
        "rows": [row.document() for row in rows],
    }
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this runner against the worker that it replaces, with real models, servers and photos.",
        epilog=f"parts, in this order: {', '.join(PARTS)}; only when named: {', '.join(ON_REQUEST)}. Stop other work "
        "on the machine first: it inflates every time, and slows this runner, which uses all cores, more than "
        "the replaced worker.",
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS | ON_REQUEST, metavar="PART", help="measure only PART (repeatable)"
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        default=0,
        metavar="N",
        help="rounds per part (default: 3 to 15, depending on the part)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("bench-out/bench.json"),
        metavar="FILE",
        help="output (default: %(default)s)",
    )
    return parser


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return rounds


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"not measured: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
