"""The command line: finds the requested command, and imports only its module."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from runner import __version__
from runner.core_dumps import disable_core_dumps
from runner.errors import RunnerError, UsageError, place
from runner.output import LONGEST_REPEATED, has_credentials, is_utf8, printable, problem, without_secrets

# File names may be any bytes, and so may the payload of `debug --job`, whose outcome is that of a malformed job.
_ANY_BYTES = frozenset({"job", "model_dir", "save_image", "source", "template"})


class Command(NamedTuple):
    """A command's module and its line in `spottmee-worker --help`.

    The module offers `add_parser(subparsers)`, which sets the default `run`: a function that takes the parsed arguments
    and returns the exit code. Several commands may share a module, which then adds all of them.
    """

    module: str
    help: str


# In the order of the help. Only the module of the requested command is imported, so that it can import what it needs at
# its top: Redis, PostgreSQL, Kubernetes and ONNX Runtime together take most of a second.
COMMANDS = {
    "run": Command("runner.cli.run", "claim up to N jobs, finish them and exit"),
    "doctor": Command("runner.cli.doctor", "check the settings, servers, schema and model pack that a run needs"),
    "migrate": Command("runner.cli.database", "migrate the embeddings database to the schema of this version"),
    "sweep": Command(
        "runner.cli.database", "remove embeddings of deleted photos, and end comparisons that have expired"
    ),
    "import-legacy": Command("runner.cli.database", "copy the embeddings of the previous worker into this one's table"),
    "dead": Command("runner.cli.dead", "list, show, requeue or purge dead letters"),
    "forget": Command("runner.cli.forget", "remove all data of a photo, an album or a comparison"),
    "reprocess": Command(
        "runner.cli.reprocess",
        "push jobs for photos that are stuck, failed, or lack embeddings of the current model",
    ),
    "models": Command("runner.cli.models", "bake, verify and list model packs"),
    "evaluate": Command("runner.cli.evaluate", "measure true and false match rates on labelled photos"),
    "simulate": Command("runner.cli.simulate", "simulate arrivals with KEDA's algorithm: waiting times, pods and cost"),
    "status": Command("runner.cli.status", "show lists, runners, Jobs, pods and ScaledJobs"),
    "metrics": Command("runner.cli.metrics", "serve metrics and a status page of the queues"),
    "debug": Command("runner.cli.debug", "run a single job, in the cluster or in this process, and show its outcome"),
    "exec": Command("runner.cli.exec", "run another command in the cluster, as a Job, and print its output"),
    "inspect": Command("runner.cli.inspect", "show the state of the run in this container (for kubectl exec)"),
    "completion": Command("runner.cli.completion", "print a script that completes commands in bash, zsh or fish"),
}

EXIT_CODES = """exit codes:
  0   success (also after SIGTERM: jobs in progress were finished or released)
  1   an error in this program, or a Redis key that another program has written
  2   a setting or argument is missing or not valid
  3   the embeddings database does not have the schema of this version: run spottmee-worker migrate
  4   the model pack is missing, damaged or not the expected one
  5   a check or a job failed, or a named object does not exist
  6   the Kubernetes API is unreachable, or refused a request
  7   the photos in DATABASE_URL are not visible: wrong database, or row-level security; jobs were released
  75  Redis or PostgreSQL is unreachable or too slow, the GPU cannot be used, or a --job did not finish: try again later
  76  native code did not return for one photo: its job is retried
  130 interrupted (Ctrl-C)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    disable_core_dumps()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without UTF-8 must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    # Libraries log messages from servers. Without a handler Python would print them unescaped on standard error.
    logging.getLogger().addHandler(logging.NullHandler())
    arguments = list(sys.argv[1:] if argv is None else argv)
    typed = next((argument for argument in arguments if not argument.startswith("-")), "")
    # Each further parser takes 0.2 ms, and only the help and a mistyped command list them.
    args = _parser(COMMANDS.keys() & {typed}, with_others=arguments[:1] != [typed]).parse_args(arguments)
    if typed != "run":  # whose start-up imports far more
        gc.enable()
    _warn_of_unknown_variables(typed)
    with _interruptible():
        return _run(args, arguments)


def _warn_of_unknown_variables(command: str) -> None:
    """Warn of variables that look like misspelt settings; `run` does so in its log."""
    if command == "run":
        return
    from runner.settings import unknown_variables  # the help must not pay for this import

    for warning in unknown_variables(os.environ):
        problem(f"spottmee-worker: {warning}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` in the block, unless it is ignored; after it the command ends at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        yield


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        _check_encoding(args)
        return int(args.run(args))
    except RunnerError as error:
        problem(f"spottmee-worker: {without_secrets(str(error), arguments)}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - its message is not shown: it may hold a password or a selfie
        problem(f"spottmee-worker: {type(error).__name__} at {place(error)}; this is a bug: please report it")
        return RunnerError.exit_code


def _check_encoding(args: argparse.Namespace) -> None:
    """Raise `UsageError` for text that is not valid UTF-8: neither servers nor JSON take it."""
    for name, value in vars(args).items():
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if name not in _ANY_BYTES and not all(map(is_utf8, texts)):
            raise UsageError(
                f"the argument {name.replace('_', '-')} is not valid UTF-8: check the encoding of the terminal or "
                "script that it comes from"
            )


class _Parser(argparse.ArgumentParser):
    """A parser whose messages never repeat a password or a payload: an unquoted one arrives as several arguments."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        shown = printable(message)
        mistyped = re.match(r"argument COMMAND: invalid choice: (.{1,40}) \(choose from ", shown)
        if mistyped:  # the list of all commands is long
            shown = f"{mistyped[1]} is not a command; spottmee-worker --help lists them"
        summary, _, repeated = shown.partition(": ")
        if has_credentials(message):
            shown = f"{message.partition(': ')[0]} (not repeated: it looks like a URL with a password)"
        elif len(repeated) > LONGEST_REPEATED or "selfie" in repeated.lower():
            shown = f"{summary} (not repeated; a payload must be one quoted argument)"
        super().error(shown)


def _parser(complete: Collection[str] = tuple(COMMANDS), *, with_others: bool = True) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the commands in `complete`, and the names of all others for the help."""
    parser = _Parser(
        prog="spottmee-worker",
        description="One-shot runner for face-embedding jobs. Settings are environment variables "
        "(docs/reference/settings.md); `spottmee-worker COMMAND --help` explains a command.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"spottmee-worker {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {COMMANDS[name].module for name in complete}
    for name, command in COMMANDS.items():
        if name in subparsers.choices:  # its module has added it together with another command
            continue
        if command.module in modules:
            importlib.import_module(command.module).add_parser(subparsers)
        elif with_others or not modules:
            subparsers.add_parser(name, help=command.help)
    return parser
