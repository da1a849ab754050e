"""`spottmee-worker status`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.flags import add_cluster_flags, positive_seconds
from runner.cluster.api import Cluster
from runner.cluster.photos import PhotoState, read_photos
from runner.cluster.queues import read_queues
from runner.cluster.status import Status, lines, read_cluster
from runner.errors import ClusterError, RunnerError
from runner.settings import Settings

PHOTOS_SECONDS = 60.0


def add_parser(subparsers: Any) -> None:
    """Add `status`."""
    parser = subparsers.add_parser(
        "status",
        help=COMMANDS["status"].help,
        description="Show the state of the lists in Redis (REDIS_URL), how many photos lack embeddings of the model "
        "pack in RUNNER_MODEL_DIR (DATABASE_URL, EMBEDDINGS_DATABASE_URL) and, where a cluster is reachable, the Jobs, "
        "pods and ScaledJobs of the releases in one namespace. What is not available does not keep the rest from being "
        "shown; with --context, --namespace or --release the cluster must be reachable, and REDIS_URL is optional. "
        "Changes nothing.",
    )
    parser.add_argument("--watch", action="store_true", help="refresh until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=positive_seconds,
        default=2.0,
        metavar="SECONDS",
        help="time between refreshes, with --watch (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one per line)")
    add_cluster_flags(parser, release="only this Helm release (default: every release in the namespace)")
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    source = _Source(settings_module.load(required=()), args)
    if args.watch:
        return _watch(source, args)
    status = source.read()
    _print_status(status, as_json=args.json)
    is_cluster_requested = bool(args.context or args.namespace or args.release)
    if status.redis_error and (source.names_redis or not is_cluster_requested):
        return status.redis_error.exit_code
    return status.cluster_error.exit_code if status.cluster_error and is_cluster_requested else 0


class _Source:
    """Reads the status from Redis and, if there is one, from the cluster."""

    def __init__(self, settings: Settings, args: argparse.Namespace) -> None:
        self._settings = settings
        self._release: str | None = args.release
        self._cluster: Cluster | None = None
        self._no_cluster: ClusterError | None = None
        self._photos: PhotoState | None = None
        self._photos_error: RunnerError | None = None
        self._counted: float | None = None
        try:
            self._cluster = Cluster.connect(context=args.context, namespace=args.namespace)
        except ClusterError as error:
            self._no_cluster = error

    @property
    def names_redis(self) -> bool:
        """Whether the settings name a Redis."""
        return bool(self._settings.redis_url)

    def read(self) -> Status:
        """Return the current status. The errors of either half are part of it."""
        status = Status(cluster_error=self._no_cluster)
        try:
            status.queues = read_queues(self._settings)
        except RunnerError as error:
            status.redis_error = error
        self._count_photos()
        status.photos, status.photos_error = self._photos, self._photos_error
        if self._cluster is not None:
            try:
                status.cluster = read_cluster(self._cluster, self._release)
            except ClusterError as error:
                status.cluster_error = error
        return status

    def _count_photos(self) -> None:
        """Count the photos to reprocess, but not at every refresh: it reads whole tables."""
        if self._counted is not None and time.monotonic() - self._counted < PHOTOS_SECONDS:
            return
        try:
            self._photos, self._photos_error = read_photos(self._settings), None
        except RunnerError as error:
            self._photos, self._photos_error = None, error
        self._counted = time.monotonic()


def _print_status(status: Status, *, as_json: bool, compact: bool = False) -> None:
    if as_json:
        output.document(status.document(), indent=None if compact else 2)
    else:
        output.lines(lines(status))


def _watch(source: _Source, args: argparse.Namespace) -> int:
    """Show the status until Ctrl-C: redrawn in place on a terminal with rich, one block after another elsewhere."""
    if not args.json and output.is_terminal("stdout"):
        try:
            from runner.cli.live_status import watch  # rich is optional
        except ModuleNotFoundError:
            output.problem("showing plain lines: install the package rich to redraw the status in place")
        else:
            return watch(source.read, args.interval)
    while True:
        status = source.read()
        if not args.json:
            output.line(time.strftime("%H:%M:%S"))
        _print_status(status, as_json=args.json, compact=True)
        time.sleep(args.interval)
