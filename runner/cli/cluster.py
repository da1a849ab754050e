"""`spottmee-worker status`, `debug` and `inspect`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runner import output
from runner import settings as settings_module
from runner.errors import CheckFailedError, ClusterError, JobError, RunnerError, SettingsError

if TYPE_CHECKING:
    from runner.cluster.api import Cluster, Object
    from runner.cluster.status import Status
    from runner.settings import Settings

Subparsers = Any  # argparse has no public name for it

DEBUG_EPILOG = """examples:
  spottmee-worker debug --dead 0f3c…-2                  the job of a dead letter, in the cluster
  spottmee-worker debug --photo ID --url https://…      a photo whose job is done with long ago
  spottmee-worker debug --job - < job.json --local      in this process; nothing is written to a server
  spottmee-worker debug --photo ID --dry-run            the manifests, the payload left out

A Job in the cluster does the job as any run does: its result is written as usual. The payload lies in a Secret that
is deleted with the Job. --local needs what the job needs: for a photo its URL, for a comparison also
EMBEDDINGS_DATABASE_URL. Exit code 0: the job succeeded; 5: it did not."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `status`, `debug` and `inspect`."""
    _add_status(subparsers)
    _add_debug(subparsers)
    inspect = subparsers.add_parser(
        "inspect",
        help="show what the run in this pod holds (for kubectl exec)",
        description="Show the run in this container: its leases, its time left, its memory. Changes nothing. "
        "kubectl exec POD -- spottmee-worker inspect",
    )
    inspect.add_argument("--pid", type=int, help="process id of the run (default: the first run in this container)")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)


def _add_status(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show lists, runners, Jobs, pods and ScaledJobs",
        description="Show how the lists stand in Redis (REDIS_URL) and, where a cluster can be reached, the Jobs, pods "
        "and ScaledJobs of the releases in one namespace. Either half is shown without the other. Changes nothing.",
    )
    parser.add_argument("--watch", action="store_true", help="show it again and again, until Ctrl-C")
    parser.add_argument("--interval", type=_positive, default=2.0, metavar="SECONDS", help="of --watch (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one a line)")
    _add_cluster_flags(parser)
    parser.set_defaults(run=_status)


def _add_debug(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "debug",
        help="run one job alone, in the cluster or here, and show how it ends",
        description="Run one job alone: as a Job of the cluster, made from the chart's suspended CronJob, followed to "
        "its end and removed; or in this process with --local.",
        epilog=DEBUG_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--job", metavar="JSON", help="the payload as the API pushes it; - reads it from standard input")
    what.add_argument("--photo", metavar="ID", help="the job of a photo that waits, is leased or is dead")
    what.add_argument("--dead", metavar="ID", help="the job of a dead letter")
    parser.add_argument("--url", help="with --photo: where the photo is, if Redis no longer knows")
    parser.add_argument("--local", action="store_true", help="run it in this process; write to no server")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="with --local: save the image here, with what was found on it (default: save no image)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the manifests instead; the payload is not shown")
    parser.add_argument("--template", metavar="FILE", help="a CronJob in YAML instead of the installed one; - reads it")
    parser.add_argument("--keep", action="store_true", help="leave the Job in the cluster when it has ended")
    parser.add_argument(
        "--timeout", type=_positive, default=900.0, metavar="SECONDS", help="how long it may take (default: 900)"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON object")
    _add_cluster_flags(parser)
    parser.set_defaults(run=_debug)


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", help="of the kubeconfig (default: the current one)")
    parser.add_argument("-n", "--namespace", help="where the chart is installed (default: the context's)")
    parser.add_argument("--release", help="of helm (default: all, and for debug the only one)")


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0 (it is {text!r})")
    return seconds


# status


def _status(args: argparse.Namespace) -> int:
    settings = settings_module.load(required=())
    look = _looker(args, settings)
    if args.watch:
        return _watch(look, args)
    status = look()
    _print_status(status, as_json=args.json)
    if status.redis_error:
        return status.redis_error.exit_code
    asked = args.context or args.namespace or args.release
    return status.cluster_error.exit_code if status.cluster_error and asked else 0


def _looker(args: argparse.Namespace, settings: Settings) -> Callable[[], Status]:
    from runner.cluster.api import Cluster
    from runner.cluster.queues import look_at_lists
    from runner.cluster.status import Status, look_at_cluster

    cluster: Cluster | None = None
    missing: ClusterError | None = None
    try:
        cluster = Cluster.connect(context=args.context, namespace=args.namespace)
    except ClusterError as error:
        missing = error

    def look() -> Status:
        status = Status(cluster_error=missing)
        try:
            status.lists = look_at_lists(settings)
        except RunnerError as error:
            status.redis_error = error
        if cluster is not None:
            try:
                status.cluster = look_at_cluster(cluster, args.release)
            except ClusterError as error:
                status.cluster_error = error
        return status

    return look


def _print_status(status: Status, *, as_json: bool, compact: bool = False) -> None:
    from runner.cluster.status import lines

    if as_json:
        output.document(status.document(), indent=None if compact else 2)
    else:
        output.lines(lines(status))


def _watch(look: Callable[[], Status], args: argparse.Namespace) -> int:
    """Show the status until Ctrl-C: drawn over itself on a terminal with rich, one block after the other elsewhere."""
    if not args.json and sys.stdout.isatty():
        try:
            from runner.cli.live_status import watch
        except ModuleNotFoundError:
            output.problem("plain lines, because the package rich is not installed")
        else:
            return watch(look, args.interval)
    while True:
        status = look()
        if not args.json:
            output.line(time.strftime("%H:%M:%S"))
        _print_status(status, as_json=args.json, compact=True)
        time.sleep(args.interval)


# debug


def _debug(args: argparse.Namespace) -> int:
    if args.url and not args.photo:
        raise SettingsError("--url goes with --photo")
    if args.out and not args.local:
        raise SettingsError("--out goes with --local")
    if args.local and (args.dry_run or args.template or args.keep):
        raise SettingsError("--local makes no Job: --dry-run, --template and --keep do not go with it")
    settings = settings_module.load(required=())
    payload = _payload(args, settings)
    return _debug_locally(args, settings, payload) if args.local else _debug_in_cluster(args, payload)


def _payload(args: argparse.Namespace, settings: Settings) -> bytes:
    if args.job == "-":
        from runner.queue.source import read_payload

        return read_payload("-")
    if args.job is not None:
        return str(args.job).encode(errors="surrogateescape")
    if args.url:
        return json.dumps({"imageUrl": args.url, "id": args.photo}, ensure_ascii=False).encode()
    from runner.cluster.queues import opened, payload_of_letter, payload_of_photo

    with opened(settings) as redis:
        return payload_of_photo(redis, args.photo) if args.photo else payload_of_letter(redis, args.dead)


def _debug_locally(args: argparse.Namespace, settings: Settings, payload: bytes) -> int:
    from runner.cli.debug_local import check_picture, run_locally

    outcome = run_locally(payload, settings, check_picture(args.out) if args.out else None)
    if args.json:
        output.document(outcome.document(), indent=2)
    else:
        output.lines(outcome.lines())
    return CheckFailedError.exit_code if outcome.task.error else 0


def _debug_in_cluster(args: argparse.Namespace, payload: bytes) -> int:
    _check_payload(payload)
    from runner.cluster.api import Cluster
    from runner.cluster.debug import DebugRun, dry_run, find_template

    cluster: Cluster | None = None
    if not (args.dry_run and args.template):
        cluster = Cluster.connect(context=args.context, namespace=args.namespace)
    template = _read_template(args.template) if args.template else find_template(_needed(cluster), args.release)
    if args.dry_run:
        _print_manifests(dry_run(template, payload), as_json=args.json)
        return 0

    with DebugRun(_needed(cluster), template, payload, keep=args.keep, say=output.problem) as run:
        run.start()
        outcome = run.follow(args.timeout, show=output.problem)
    if args.json:
        output.document(outcome.document(), indent=2)
    else:
        output.line(outcome.line())
    if args.keep:
        output.problem(f"kept: kubectl --namespace {_needed(cluster).namespace} describe job {run.name}")
    return 0 if outcome.word == "succeeded" else CheckFailedError.exit_code


def _needed(cluster: Cluster | None) -> Cluster:
    assert cluster is not None  # noqa: S101 - connected wherever a Job is created
    return cluster


def _check_payload(payload: bytes) -> None:
    """Refuse what no run could do before anything is created for it."""
    from runner.worker.kinds import kind_of

    try:
        kind_of(payload).decode(payload)
    except JobError as error:
        raise CheckFailedError(str(error)) from None


def _read_template(name: str) -> Object:
    """Return the CronJob in a file of YAML, which may hold other objects too, as `helm template` prints them."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise ClusterError("the package pyyaml is not installed: pip install pyyaml") from None
    from runner.cluster.api import COMPONENT_LABEL

    try:
        if name == "-":
            documents = list(yaml.safe_load_all(sys.stdin.read()))
        else:
            with open(name, encoding="utf-8") as file:  # noqa: PTH123 - what was typed, as it was typed
                documents = list(yaml.safe_load_all(file))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no YAML"
        raise SettingsError(f"--template {name} cannot be read: {reason}") from None
    found = [item for item in documents if isinstance(item, dict) and item.get("kind") == "CronJob"]
    debug = [item for item in found if (item["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == "debug"]
    if not (chosen := debug or found):
        raise SettingsError(f"--template {name} holds no CronJob")
    return dict(chosen[0])


def _print_manifests(manifests: list[Object], *, as_json: bool) -> None:
    if as_json:
        output.document({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2)
        return
    import yaml

    output.lines(yaml.safe_dump_all(manifests, sort_keys=False).splitlines())  # YAML escapes what is not ASCII


# inspect


def _inspect(args: argparse.Namespace) -> int:
    from runner.cluster.pod import look

    view = look(args.pid)
    if args.json:
        output.document(view.document(), indent=2)
    else:
        output.lines(view.lines())
    return 0
