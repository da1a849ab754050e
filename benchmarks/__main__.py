"""`make bench`: measure this runner beside the worker that it replaces, print a table, write a JSON file.

Both sides, and the limit that the machine sets, are measured in turn, round by round, so that whatever else the machine
does meets all of them; ratios are taken within a round. Exits 0 also where a target is not met: the table says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import cold_start, comparison, inference, machine, memory, throughput, whole_run
from benchmarks.figures import Row, table
from benchmarks.world import BenchmarkError, World, world

# Name → how to measure it, and how many rounds it gets. In this order, the whole takes about 6 minutes.
PARTS: dict[str, tuple[Callable[[World, int], list[Row]], int]] = {
    "cold-start": (cold_start.measure, 15),
    "inference": (lambda _, rounds: inference.measure(rounds), 15),
    "throughput": (lambda _, rounds: throughput.measure(rounds), 7),
    "mixed": (whole_run.measure_mixed, 3),
    "album": (whole_run.measure_album, 3),
    "comparison": (comparison.measure, 5),
    "memory": (memory.measure, 3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for."""
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    rows: list[Row] = []
    about = machine.describe()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with world() as servers:
        for name in args.only or PARTS:
            measure, rounds = PARTS[name]
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            rows += measure(servers, args.rounds or rounds)
            _write(args.json, about, rows, time.monotonic() - started)  # also where a later part is broken off
    print(f"{about['processor']}, {about['cores']} cores, load {about['load']} before the start\n")
    print(table(rows))
    print(f"\nmedian (least to most) over the rounds; written to {args.json}")
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
        description="Measure this runner beside the worker that it replaces: real models, real servers, real photos.",
        epilog=f"parts, in this order: {', '.join(PARTS)}. Quiet the machine first: a load beside it inflates every "
        "time, and takes from this runner, which uses all cores, more than from the other side.",
    )
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help="measure this part (repeatable)")
    parser.add_argument("--rounds", type=_rounds, default=0, metavar="N", help="rounds of each part (default: its own)")
    parser.add_argument(
        "--json", type=Path, default=Path("bench-out/bench.json"), metavar="FILE", help="where to write (%(default)s)"
    )
    return parser


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return rounds


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"not measured: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
