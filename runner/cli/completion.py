"""`spottmee-worker completion`."""

from __future__ import annotations

import argparse
from typing import Any

from runner import output
from runner.cli import COMMANDS, _parser
from runner.errors import UsageError

try:
    import shtab
except ModuleNotFoundError as missing:  # an extra
    _MISSING = missing.name
else:
    _MISSING = None

SHELLS = ("bash", "zsh", "fish")
EPILOG = """examples:
  spottmee-worker completion bash > ~/.local/share/bash-completion/completions/spottmee-worker
  spottmee-worker completion zsh > ~/.zfunc/_spottmee-worker          # a folder of $fpath
  spottmee-worker completion fish > ~/.config/fish/completions/spottmee-worker.fish"""


def add_parser(subparsers: Any) -> None:
    """Add `completion`."""
    parser = subparsers.add_parser(
        "completion",
        help=COMMANDS["completion"].help,
        description="Print a script with which a shell completes commands and flags on TAB. Recreate it after an "
        "upgrade.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")
    parser.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> int:
    if _MISSING is not None:
        raise UsageError(f"the package {_MISSING} is missing: pip install 'spottmee-worker[cluster]'")
    output.script(shtab.complete(_parser(), shell=args.shell))
    return 0
