"""`spottmee-worker run`."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.flags import add_setting_flags, setting_flags
from runner.errors import SettingsError, place
from runner.settings import Settings
from runner.worker.shutdown import wait_before_exit


def add_parser(subparsers: Any) -> None:
    """Add `run`."""
    run = subparsers.add_parser(
        "run",
        help=COMMANDS["run"].help,
        description="Claim up to N jobs from the Redis lists, finish them, print a summary as one JSON object, and "
        "exit. No job is lost when a run is killed: its leases expire, and other runs claim the jobs again.",
        epilog="Every other setting is an environment variable: see docs/reference/settings.md",
    )
    add_setting_flags(run)
    run.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> NoReturn:
    settings = _settings(args)
    from runner.worker.app import run  # after the settings: its start-up chooses the order of the imports

    threading.excepthook = _report_thread_failure
    code = run(settings)
    # Native threads may still be running: a model that is being loaded, a photo that does not return. They would abort
    # when the interpreter shuts down.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # closed or full
            stream.flush()
    os._exit(code)


def _settings(args: argparse.Namespace) -> Settings:
    """Return the settings. If they are not valid, says why and exits, after the delay of a run that cannot work."""
    flags = setting_flags(args)
    try:
        return settings_module.load(flags=flags)
    except SettingsError as error:
        message = output.without_secrets(str(error), filter(None, flags.values()))
        output.problem(f"spottmee-worker: {message}")
        wait_before_exit(settings_module.failure_delay())
        sys.exit(error.exit_code)


def _report_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Print the type and place of an error that ended a thread; its message may hold a selfie or a password."""
    error = failure.exc_value
    where = "" if error is None else f" at {place(error)}"
    output.problem(
        f"spottmee-worker: a thread ended with {failure.exc_type.__name__}{where}; this is a bug: please report it"
    )
