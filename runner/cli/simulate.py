"""`spottmee-worker simulate`: how long jobs would wait, and what the pods would cost, with given chart values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

from runner import output
from runner.cli import COMMANDS
from runner.cli.arguments import positive, whole
from runner.cli.counter import counter
from runner.cli.files import check_writable, write
from runner.cli.flags import positive_number, positive_seconds
from runner.cli.output import columns
from runner.errors import UsageError
from runner.simulation import arrivals as patterns
from runner.simulation.arrivals import Arrivals
from runner.simulation.keda import SETTINGS, THROUGHPUT, Machine, Setting
from runner.simulation.outcome import Criterion, Outcome, recommend, simulate
from runner.simulation.report import page

try:
    from runner.simulation.values import with_values
except ModuleNotFoundError as missing:  # PyYAML comes with the extra for clusters
    _MISSING = missing.name
else:
    _MISSING = None

_MOST_SETTINGS = 1000
# What --sweep tries for a flag without a value.
_SWEEP = {
    "jobs_per_pod": (10, 20, 50, 100, 200, 500),
    "polling_interval": (1, 2, 5, 10),
    "max_replicas": (5, 10, 20, 50),
}
# Flag of a measured default → field of Machine, unit, meaning, and the source of its default.
_MEASURED = {
    "--pod-delay": (
        "pod_delay",
        "s",
        "from the creation of the Job to the start of its container, if the node has the image",
        "10 guests on a one-node Kubernetes: 0.52 and 0.58",
    ),
    "--start-up": (
        "start_up",
        "s",
        "from the container's start to the first claim, with a CPU of its own",
        "10 guests on a one-node Kubernetes: 0.50 and 0.61",
    ),
    "--job-latency": (
        "job_latency",
        "s",
        "time of a job besides computing: fetching, storing",
        "10 guests on a one-node Kubernetes: 0.14 and 0.22 in all",
    ),
    "--finish-delay": (
        "finish_delay",
        "s",
        "from a pod's exit until its Job is finished for KEDA",
        "the Job controller collects changes of pods for a second",
    ),
    "--node-delay": (
        "node_delay",
        "s",
        "until a node that the autoscaler adds is ready, with the image",
        "an assumption: not measured, it depends on the cloud",
    ),
    "--reserved-cpus": (
        "reserved_cpus",
        "CPUs",
        "CPUs of each node that other pods request",
        "CoreDNS, Redis and PostgreSQL of a one-node Kubernetes: 0.09",
    ),
}
_THROUGHPUT_SOURCE = {
    "process": "web-size photos, 2 CPUs: docs/explanation/performance.md",
    "compare": "1 CPU: detector, one face, 1,000 photos: docs/explanation/performance.md",
}

EPILOG = """Give one pattern: --burst, --day or --csv. --jobs-per-pod, --polling-interval and --max-replicas take
several values, separated by commas; every combination is simulated, and one is recommended. Other values come from
--values, or else from the chart. The defaults of the delays were measured: docs/explanation/simulation.md says how,
what the simulation leaves out, and how accurate it is.

  spottmee-worker simulate --burst 2000 --node-cpus 4 --nodes 3
  spottmee-worker simulate --day 50000 --jobs-per-pod 20,50,200 --polling-interval 1,2,10 --target 10
  spottmee-worker simulate --queue compare --csv guests.csv --values values.yaml --html report.html"""


def add_parser(subparsers: Any) -> None:
    """Add `simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help=COMMANDS["simulate"].help,
        description="Simulate an arrival pattern with KEDA's algorithm and the chart's values, and print how long jobs "
        "wait from push to result, how many pods are started, and how long they occupy their requests on a node. "
        "Needs no cluster and no server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_pattern(parser)
    _add_settings(parser)
    _add_machine(parser)
    _add_judgement(parser)
    parser.set_defaults(run=_simulate)


def _add_pattern(parser: argparse.ArgumentParser) -> None:
    pattern = parser.add_mutually_exclusive_group(required=True)
    pattern.add_argument("--burst", type=positive, metavar="N", help="N jobs at once, as an album is uploaded")
    pattern.add_argument(
        "--day", type=positive, metavar="N", help="N jobs over a day, most of them in the evening, at random times"
    )
    pattern.add_argument(
        "--csv", type=Path, metavar="FILE", help="a CSV file with the columns seconds,jobs: pushes at each second"
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="seed of the random times (default: %(default)s)"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queue", choices=sorted(SETTINGS), default="process", help="queue to simulate (default: %(default)s)"
    )
    parser.add_argument(
        "--values", type=Path, action="append", default=[], metavar="FILE", help="a helm values file; may be repeated"
    )
    several = {
        "--jobs-per-pod": "N: jobs per pod in KEDA's formula [queues.*.jobsPerPod]",
        "--polling-interval": "seconds between KEDA's polls [queues.*.pollingInterval]",
        "--max-replicas": "maximum number of Jobs for waiting jobs [queues.*.maxReplicas]",
    }
    for flag, about in several.items():
        parser.add_argument(flag, type=_list(positive), metavar="N[,N…]", help=about)
    parser.add_argument("--sweep", action="store_true", help=f"try common values of these three ({_grid()})")
    parser.add_argument(
        "--max-jobs", type=positive, metavar="N", help="maximum number of jobs per pod [queues.*.maxJobs]"
    )
    parser.add_argument("--min-replicas", type=whole, metavar="N", help="Jobs kept running [queues.*.minReplicas]")
    parser.add_argument(
        "--idle-seconds", type=whole, metavar="N", help="how long a pod waits for more jobs [queues.*.idleSeconds]"
    )
    parser.add_argument(
        "--cpu-request", type=positive_number, metavar="CPUS", help="CPUs that a pod requests, such as 0.5"
    )
    parser.add_argument("--cpu-limit", type=positive_number, metavar="CPUS", help="CPUs that a pod may use")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    default = Machine()
    shown = ", ".join(f"{rate:g} of {queue}" for queue, rate in THROUGHPUT.items())
    parser.add_argument(
        "--throughput",
        type=positive_number,
        metavar="JOBS",
        help=f"jobs per second of a pod that has its CPU limit (default: {shown})",
    )
    for flag, (field, unit, about, _) in _MEASURED.items():
        parser.add_argument(
            flag,
            dest=field,
            type=_not_negative,
            metavar=unit.upper() if unit != "s" else "SECONDS",
            default=getattr(default, field),
            help=f"{about} (default: %(default)g)",
        )
    parser.add_argument(
        "--node-cpus",
        type=_not_negative,
        default=default.node_cpus,
        metavar="CPUS",
        help="CPUs of a node, which its pods share; 0: every pod has CPUs of its own (default: %(default)g)",
    )
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument(
        "--max-nodes",
        type=positive,
        metavar="N",
        help="number of nodes including those that an autoscaler adds (default: --nodes)",
    )


def _add_judgement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        type=positive_seconds,
        metavar="SECONDS",
        help="recommend the setting with the fewest pod-seconds whose p95 is at most this (default: within 5 %% of the "
        "shortest p95)",
    )
    parser.add_argument("--pod-hour-price", type=_not_negative, metavar="PRICE", help="price of a pod for an hour")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")


def _list(one: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))


def _grid() -> str:
    return "; ".join(",".join(map(str, values)) for values in _SWEEP.values())


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more (got {text!r})")
    return value


def _simulate(args: argparse.Namespace) -> int:
    if args.html:
        check_writable(args.html, "--html")
    settings = _settings(args)
    machine = _machine(args, settings[0])
    arrivals = _arrivals(args)
    outcomes = _play(arrivals, settings, machine)
    chosen, criterion = recommend(outcomes, args.target)
    rows = list(_table(outcomes, chosen, args.pod_hour_price))
    assumptions = dict(_assumptions(args.queue, machine, settings[0]))
    title = f"{args.queue}: {arrivals.name}"
    if args.html:
        text = page(title, outcomes, chosen, criterion, rows=rows, assumptions=assumptions)
        write(args.html, text.encode(), "--html")
    if args.json:
        document = {"queue": args.queue, "pattern": arrivals.name, "jobs": len(arrivals), "machine": asdict(machine)}
        output.document({**document, **_judged(args, outcomes, chosen, criterion)}, indent=2)
        return 0
    output.line(title)
    output.lines(columns(rows))
    if len(outcomes) > 1:
        output.line(_recommendation(chosen, criterion))
    output.line("assumed:")
    output.lines(columns([(f"  {name}", value) for name, value in assumptions.items()]))
    if args.html:
        output.line(f"report: {args.html}")
    return 0


def _arrivals(args: argparse.Namespace) -> Arrivals:
    if args.burst:
        return patterns.burst(args.burst)
    return patterns.day(args.day, args.seed) if args.day else patterns.from_csv(args.csv)


def _settings(args: argparse.Namespace) -> list[Setting]:
    """Return every combination of the given values, or of those that --sweep tries."""
    base = SETTINGS[args.queue]
    for path in args.values:
        if _MISSING is not None:
            raise UsageError(f"--values needs the package {_MISSING}: pip install 'spottmee-worker[cluster]'")
        base = with_values(base, path, args.queue)
    single = ("max_jobs", "min_replicas", "idle_seconds", "cpu_request", "cpu_limit")
    given: dict[str, Any] = {name: value for name in single if (value := getattr(args, name)) is not None}
    base = replace(base, **given)
    if base.cpu_request > base.cpu_limit:
        raise UsageError(f"a pod requests {base.cpu_request:g} CPUs, and its limit is {base.cpu_limit:g}")
    values = [_values_of(name, args, base) for name in _SWEEP]
    combinations: list[dict[str, Any]] = [dict(zip(_SWEEP, chosen, strict=True)) for chosen in product(*values)]
    settings = [replace(base, **combination) for combination in combinations]
    if len(settings) > _MOST_SETTINGS:
        raise UsageError(f"{len(settings):,} settings are too many: the maximum is {_MOST_SETTINGS:,}")
    return settings


def _values_of(name: str, args: argparse.Namespace, base: Setting) -> Sequence[float]:
    given: Sequence[float] | None = getattr(args, name)
    own = getattr(base, name)
    return given or (sorted({own, *_SWEEP[name]}) if args.sweep else (own,))


def _machine(args: argparse.Namespace, setting: Setting) -> Machine:
    """Return the machine. A pod with fewer CPUs than the chart gives it has a smaller throughput."""
    if (args.nodes > 1 or args.max_nodes) and not args.node_cpus:
        raise UsageError("--nodes and --max-nodes need --node-cpus: without it there is room for every pod")
    if (args.max_nodes or args.nodes) < args.nodes:
        raise UsageError(f"--max-nodes {args.max_nodes} is less than --nodes {args.nodes}")
    default = THROUGHPUT[args.queue] * setting.cpu_limit / SETTINGS[args.queue].cpu_limit
    return Machine(
        throughput=args.throughput or default,
        node_cpus=args.node_cpus,
        nodes=args.nodes,
        max_nodes=args.max_nodes or args.nodes,
        **{field: getattr(args, field) for field, *_ in _MEASURED.values()},
    )


def _play(arrivals: Arrivals, settings: Sequence[Setting], machine: Machine) -> list[Outcome]:
    progress = counter("settings")
    progress.start(len(settings))
    try:
        return simulate(arrivals, settings, machine, progress.update)
    finally:
        progress.close()


def _table(outcomes: Sequence[Outcome], chosen: Outcome, price: float | None) -> Iterator[tuple[str, ...]]:
    heading = ("JOBS/POD", "POLL", "MAX PODS", "P50", "P95", "P99", "LONGEST", "DRAINED", "PODS", "POD-SECONDS")
    yield (*heading, *(("COST",) if price is not None else ()), "")
    for one in outcomes:
        setting = one.setting
        waits = (f"{seconds:.2f}" for seconds in (one.p50, one.p95, one.p99, one.longest))
        yield (
            str(setting.jobs_per_pod),
            f"{setting.polling_interval:g}",
            str(setting.max_replicas),
            *waits,
            f"{one.drained:.1f}",
            f"{one.pods:g}",
            f"{one.pod_seconds:.0f}",
            *((f"{one.cost(price):.4g}",) if price is not None else ()),
            "recommended" if one is chosen and len(outcomes) > 1 else "",
        )


def _recommendation(chosen: Outcome, criterion: Criterion) -> str:
    setting = chosen.setting
    return (
        f"recommended: jobsPerPod {setting.jobs_per_pod}, pollingInterval {setting.polling_interval:g}, maxReplicas "
        f"{setting.max_replicas} ({criterion.value})"
    )


def _assumptions(queue: str, machine: Machine, setting: Setting) -> Iterator[tuple[str, str]]:
    """Yield flag → value and, where it is the default, its source."""
    rate = machine.throughput
    source = _THROUGHPUT_SOURCE[queue] if rate == THROUGHPUT[queue] else ""
    yield "--throughput", _with_source(f"{rate:g} jobs/s", source)
    default = Machine()
    for flag, (field, unit, _, source) in _MEASURED.items():
        value = getattr(machine, field)
        yield flag, _with_source(f"{value:g} {unit}", source if value == getattr(default, field) else "")
    room = machine.pods_per_node(setting)
    most = f" to {machine.max_nodes}" if machine.max_nodes > machine.nodes else ""
    shown = f"{machine.node_cpus:g} CPUs, room for {room:g} pods; number of nodes: {machine.nodes}{most}"
    yield "--node-cpus", shown if machine.node_cpus else "room for every pod, on CPUs of its own"


def _with_source(value: str, source: str) -> str:
    return f"{value} ({source})" if source else value


def _judged(
    args: argparse.Namespace, outcomes: Sequence[Outcome], chosen: Outcome, criterion: Criterion
) -> dict[str, object]:
    """Return what --json prints of the outcomes."""
    several = len(outcomes) > 1
    return {
        "outcomes": [one.document(args.pod_hour_price) for one in outcomes],
        "recommended": asdict(chosen.setting) if several else None,
        "criterion": criterion.name.lower() if several else None,
        "report": str(args.html) if args.html else None,
    }
