"""`spottmee-worker run` and `spottmee-worker doctor`."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from dataclasses import fields
from typing import Any, NoReturn

from runner import output
from runner import settings as settings_module
from runner.errors import place
from runner.settings import Settings

Subparsers = Any  # argparse has no public name for it


def add_parser(subparsers: Subparsers) -> None:
    """Add `run` and `doctor`."""
    run = subparsers.add_parser(
        "run",
        help="claim up to N jobs, finish them, exit",
        description="Claim up to N jobs from the Redis lists, finish them, print one JSON object, exit. Killing it "
        "loses nothing: what it held falls due again by itself.",
        epilog="every other setting is an environment variable: see docs/reference/settings.md",
    )
    add_setting_flags(run)
    run.set_defaults(run=_run)
    doctor = subparsers.add_parser(
        "doctor",
        help="check settings, servers, schema and model, and say what was chosen and why",
        description="Check everything that `run` needs, without taking a job. Exits 0 when all of it holds, "
        "otherwise with the code that `run` would end with. With one of the flags of a cluster also whether KEDA can "
        "scale (READY of the ScaledJobs): exit code 5 where it cannot, 6 where the cluster could not be used.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--context", help="of the kubeconfig (default: the pod's service account, or the current one)")
    doctor.add_argument("-n", "--namespace", help="where the chart is installed (default: the context's)")
    doctor.add_argument("--release", help="of helm (default: all)")
    doctor.add_argument(
        "--scaled-job", action="append", default=[], metavar="NAME", help="this one, without listing; may be repeated"
    )
    doctor.set_defaults(run=_doctor)


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting that has one."""
    for item in fields(Settings):
        about = item.metadata
        if about["flag"]:
            shown = f" (default: {about['default']})" if about["default"] else ""
            parser.add_argument(
                about["flag"], dest=item.name, metavar="VALUE", help=f"{about['help']} [{about['env']}]{shown}"
            )


def setting_flags(args: argparse.Namespace) -> dict[str, str | None]:
    """Return what `add_setting_flags` has parsed, as `settings.load` takes it."""
    return {item.name: getattr(args, item.name, None) for item in fields(Settings) if item.metadata["flag"]}


def _run(args: argparse.Namespace) -> NoReturn:
    settings = settings_module.load(flags=setting_flags(args))
    from runner.worker.app import run

    threading.excepthook = _thread_failed
    code = run(settings)
    # Native threads may still be at work: a model that loads, a photo that does not come back. The end of the
    # interpreter would take the ground from under them, and abort.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Say where a thread ended that should not have, without the message of its error, which may hold anything."""
    error = failure.exc_value
    where = "" if error is None else f" at {place(error)}"
    output.problem(f"spottmee-worker: a thread ended with {failure.exc_type.__name__}{where}; this is a defect")


def _doctor(args: argparse.Namespace) -> int:
    from runner.cli.doctor import examine

    asked = args.context or args.namespace or args.release or args.scaled_job
    checks = examine(settings_module.load(), (lambda: _scaled_jobs(args)) if asked else None)
    if args.json:
        output.document([check.document() for check in checks], indent=2)
    else:
        for check in checks:
            state = "ok  " if check.error is None else "FAIL"
            output.line(f"{state} {check.name:<24} {check.error or check.finding}")
    return next((check.exit_code for check in checks if check.exit_code), 0)


def _scaled_jobs(args: argparse.Namespace) -> str:
    from runner.cluster.readiness import check, open_reader

    reader = open_reader(context=args.context, namespace=args.namespace)
    try:
        return check(reader, names=args.scaled_job, release=args.release)
    finally:
        reader.close()
