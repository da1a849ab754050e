"""The command line: one entry for every command, which imports only what that command needs."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from runner.core_dumps import disable_core_dumps
from runner.errors import RunnerError, place
from runner.output import printable, problem

# Command → the module that has it, in the order of the help. A module offers `add_parser(subparsers)`, which sets
# `run` (a function of the parsed arguments that returns the exit code) as a default of its parser.
COMMANDS = {
    "run": "runner.cli.run",
    "doctor": "runner.cli.run",
    "migrate": "runner.cli.database",
    "sweep": "runner.cli.database",
    "import-legacy": "runner.cli.database",
    "dead": "runner.cli.dead",
    "models": "runner.cli.models",
    "status": "runner.cli.cluster",
    "debug": "runner.cli.cluster",
    "inspect": "runner.cli.cluster",
}

LONGEST_ARGUMENT = 200

EXIT_CODES = """exit codes:
  0   done (also after SIGTERM: what had begun was finished or given back)
  1   an error of this program itself, or a key of Redis that something else has written
  2   wrong or missing settings or arguments
  3   the embeddings database is not at the schema of this version: spottmee-worker migrate
  4   the model pack is missing, damaged or not the right one
  5   a check did not hold
  6   the Kubernetes API could not be used
  7   the photos cannot be seen in DATABASE_URL: wrong database, or row-level security; jobs were given back
  75  Redis or PostgreSQL could not be reached in time, or did not answer before the end: try again later
  76  native code did not return for one photo: its job is tried again
  130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    disable_core_dumps()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without UTF-8 must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    # Libraries log what servers say. Without a handler Python would print it raw on standard error.
    logging.getLogger().addHandler(logging.NullHandler())
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    args = _parser(chosen).parse_args(arguments)
    try:
        return int(args.run(args))
    except RunnerError as error:
        problem(f"spottmee-worker: {error}")
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe has seen enough; Python would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - its message may hold anything, a password or a selfie among it
        problem(f"spottmee-worker: {type(error).__name__} at {place(error)}; this is a defect: please report it")
        return RunnerError.exit_code


class _Parser(argparse.ArgumentParser):
    """Its messages repeat arguments, which may be a payload that the shell has taken apart."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        shown = printable(message)
        summary, _, repeated = shown.partition(": ")
        if len(repeated) > LONGEST_ARGUMENT or "selfie" in repeated.lower():
            shown = f"{summary} (not repeated; a payload must be one quoted argument)"
        super().error(shown)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser of the chosen command, or of all of them for the help."""
    parser = _Parser(
        prog="spottmee-worker",
        description="One-shot runner for face-embedding jobs. Every setting is an environment variable too; "
        "`spottmee-worker COMMAND --help` explains each command.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from runner import __version__

    parser.add_argument("--version", action="version", version=f"spottmee-worker {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = [COMMANDS[chosen]] if chosen in COMMANDS else list(dict.fromkeys(COMMANDS.values()))
    for name in modules:
        importlib.import_module(name).add_parser(subparsers)
    return parser
