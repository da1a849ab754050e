"""`spottmee-worker metrics`."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Mapping
from typing import Any

from runner import logs, output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.errors import UsageError

try:
    from runner.metrics import exposition, page
    from runner.metrics.reader import Reader, Reading
    from runner.metrics.server import Response, Route, Server
except ModuleNotFoundError as missing:  # prometheus_client is an extra
    _MISSING = missing.name
else:
    _MISSING = None

PORT = 9464
_LARGEST_PORT = 65_535


def add_parser(subparsers: Any) -> None:
    """Add `metrics`."""
    parser = subparsers.add_parser(
        "metrics",
        help=COMMANDS["metrics"].help,
        description="Serve metrics (/metrics), a status page (/) and a health check (/healthz) over HTTP, until "
        "SIGTERM. Everything is read from Redis (REDIS_URL); no request changes anything. While Redis is unreachable, "
        "the metric spottmee_redis_up is 0 and the others are absent. Put an authenticating proxy in front of it if "
        "others can reach it (docs/how-to/monitoring.md).",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; :: is every one (default: %(default)s)"
    )
    parser.add_argument("--port", type=_port, default=PORT, help="port to listen on; 0 is any (default: %(default)s)")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name by which clients may call this server, besides localhost and IP addresses; may be repeated; "
        "* allows any name, so that other websites can read it (DNS rebinding)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print the metrics in Prometheus' text format, for a text-file collector, and exit: with 75 if Redis "
        "does not answer, and with 2 if it refuses the user",
    )
    parser.set_defaults(run=_metrics)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > _LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to {_LARGEST_PORT}")
    return int(text)


def _metrics(args: argparse.Namespace) -> int:
    if _MISSING is not None:
        raise UsageError(f"the package {_MISSING} is missing: pip install 'spottmee-worker[metrics]'")
    settings = settings_module.load(required=("redis_url",))
    log = logs.configure(settings.log_format, settings.log_level)
    reader = Reader(settings)
    if args.once:
        return _once(reader)
    server = Server(args.host, args.port, routes(reader), args.allowed_host)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    threading.Thread(target=reader.run, name="sampler", daemon=True).start()
    log.info("serving metrics", extra={"host": args.host, "port": server.port, "queues": list(settings.queues)})
    try:
        server.serve_forever()
    finally:
        server.server_close()
        reader.stop()
    return 0


def _once(reader: Reader) -> int:
    try:
        reading = reader.read()
    finally:
        reader.stop()
    output.script(exposition.text(exposition.families(reading.samples, reading.seconds, reading.memory))[0].decode())
    return reading.exit_code


def routes(reader: Reader) -> Mapping[str, Route]:
    """Return the paths that are served."""

    def metrics(_query: str, accept: str) -> Response:
        reading: Reading = reader.read()
        return Response(*exposition.text(exposition.families(reading.samples, reading.seconds, reading.memory), accept))

    def health(_query: str, _accept: str) -> Response:
        """Report that this process works. The state of Redis is a metric: a restart of this process would not help."""
        return Response(b"ok\n")

    def html(query: str, _accept: str) -> Response:
        text = page.page(reader.read(), reader.details(), query)
        return Response(text.encode(), "text/html; charset=utf-8", headers={"Content-Security-Policy": page.POLICY})

    return {"/": html, "/metrics": metrics, "/healthz": health}
