"""The command line: one entry for every command, which imports only what that command needs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from runner.errors import RunnerError

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
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    args = _parser(chosen).parse_args(arguments)
    try:
        return int(args.run(args))
    except RunnerError as error:
        print(f"spottmee-worker: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe has seen enough; Python would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser of the chosen command, or of all of them for the help."""
    parser = argparse.ArgumentParser(
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
