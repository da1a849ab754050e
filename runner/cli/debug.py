"""`spottmee-worker debug`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.arguments import identifier
from runner.cli.flags import add_job_flags
from runner.cluster.queues import connection, payload_of_dead_letter, payload_of_photo
from runner.errors import ClusterError, UsageError
from runner.queue.private import read_payload
from runner.settings import Settings

DEBUG_EPILOG = """examples:
  spottmee-worker debug --dead 0f3c…-2                  the job of a dead letter, in the cluster
  spottmee-worker debug --photo ID --url https://…      a photo that no longer has a job
  spottmee-worker debug --job - < job.json --local      in this process, without writing to any server
  spottmee-worker debug --photo ID --dry-run            print the manifests, without the payload

In the cluster, the Job processes the job like any run: its result is stored. The payload is in a Secret, which is
deleted with the Job. --local needs access to what the job reads: for a photo its URL, for a comparison
EMBEDDINGS_DATABASE_URL. Exit code 0: the job succeeded; 5: it did not."""


def add_parser(subparsers: Any) -> None:
    """Add `debug`."""
    parser = subparsers.add_parser(
        "debug",
        help=COMMANDS["debug"].help,
        description="Run a single job and show its outcome: as a Job in the cluster, which is made from the chart's "
        "suspended CronJob, followed to its end and deleted; or, with --local, in this process.",
        epilog=DEBUG_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--job", metavar="JSON", help="the payload, as the API pushes it; - reads it from standard input")
    what.add_argument(
        "--photo",
        type=identifier,
        metavar="ID",
        help="the job of this photo, if it is waiting, leased or in the dead-letter queue",
    )
    what.add_argument("--dead", type=identifier, metavar="ID", help="the job of this dead letter")
    parser.add_argument("--url", help="with --photo: the URL of the image, for a photo that no longer has a job")
    parser.add_argument("--local", action="store_true", help="run the job in this process; write to no server")
    parser.add_argument(
        "--save-image",
        metavar="FILE",
        help="with --local: save the image to this file, with the faces drawn on it (default: no image is saved)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the manifests without the payload, and create nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON object")
    add_job_flags(parser, timeout_seconds=900.0)
    parser.set_defaults(run=_debug)


def _debug(args: argparse.Namespace) -> int:
    if args.url and not args.photo:
        raise UsageError("--url requires --photo")
    if args.save_image and not args.local:
        raise UsageError("--save-image requires --local")
    if args.local and (args.dry_run or args.template or args.keep):
        raise UsageError("--local creates no Job: it cannot be combined with --dry-run, --template or --keep")
    settings = settings_module.load(required=())
    payload = _payload(args, settings)
    if args.local:
        from runner.cli.debug_local import debug_locally  # ONNX Runtime and OpenCV: half a second

        return debug_locally(payload, settings, args)
    try:
        from runner.cli.debug_cluster import debug_in_cluster  # the client of Kubernetes: half a second, and an extra
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"a debug Job in the cluster needs the package {error.name}, which is not installed: pip install kubernetes"
        ) from None
    return debug_in_cluster(payload, args)


def _payload(args: argparse.Namespace, settings: Settings) -> bytes:
    if args.job == "-":
        return read_payload("-")
    if args.job is not None:
        return str(args.job).encode(errors="surrogateescape")
    if args.url:
        return json.dumps({"imageUrl": args.url, "id": args.photo}, ensure_ascii=False).encode()
    with connection(settings) as redis:
        return payload_of_photo(redis, args.photo) if args.photo else payload_of_dead_letter(redis, args.dead)
