"""`spottmee-worker exec`: any other command, in a pod of the cluster."""

from __future__ import annotations

import argparse
from typing import Any

from runner.cli import COMMANDS
from runner.cli.flags import add_job_flags
from runner.errors import ClusterError, UsageError
from runner.output import may_be_payload, repeated
from runner.queue.privacy import may_hold_selfie

EXEC_EPILOG = """examples:
  spottmee-worker exec -n NAMESPACE -- dead list
  spottmee-worker exec -n NAMESPACE -- dead requeue DEAD_ID
  spottmee-worker exec -n NAMESPACE -- status --json
  spottmee-worker exec -n NAMESPACE -- doctor

Needs a kubeconfig, but no access to Redis or PostgreSQL from this machine. The arguments are visible in the Job: pass
no secrets.
Exit code: that of the command; 6: the cluster could not be used."""


def add_parser(subparsers: Any) -> None:
    """Add `exec`."""
    parser = subparsers.add_parser(
        "exec",
        help=COMMANDS["exec"].help,
        description="Run a command of this program in the cluster, where it reaches Redis and PostgreSQL with the "
        "release's own settings: as a Job made from the chart's suspended CronJob, whose output is printed, and which "
        "is deleted afterwards. It works without a running pod of the release, and claims nothing from the queues.",
        epilog=EXEC_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("argument", nargs="+", metavar="-- COMMAND", help="the command, and its arguments")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest of the Job, and create nothing")
    add_job_flags(parser, timeout_seconds=300.0)
    parser.set_defaults(run=_exec)


def _exec(args: argparse.Namespace) -> int:
    command = args.argument[0]
    if any(may_be_payload(one) and may_hold_selfie(one.encode(errors="surrogateescape")) for one in args.argument):
        raise UsageError(
            "an argument may hold a selfie, and would be visible in the Job: pass the job to `spottmee-worker debug`"
        )
    if command not in COMMANDS or command == "exec":
        raise UsageError(
            f"{repeated(command, quoted=True)} is not a command that can run in the cluster: see spottmee-worker --help"
        )
    try:
        from runner.cli.exec_cluster import exec_in_cluster  # the client of Kubernetes is an extra
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"a command in the cluster needs the package {error.name}, which is not installed: pip install kubernetes"
        ) from None
    return exec_in_cluster(args)
