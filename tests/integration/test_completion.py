"""The scripts of `spottmee-worker completion`, used by the shells themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli.completion import SHELLS
from tests.support import forked

# What zsh lists on TAB, seen from outside: a shell in a pseudo-terminal. Each step waits for what the last one prints.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f
zpty -w shell 'PS1=; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D'
zpty -w shell 'LISTMAX=1000; bindkey "^I" list-choices; print REA""DY'
zpty -r shell before '*READY*'
zpty -n -w shell '{typed}'$'\\t'
zpty -r shell listed '*{expected}*'
zpty -w shell $'\\nprint DO""NE'
zpty -r shell rest '*DONE*'
print -r -- "$listed$rest"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        done = forked.run(["completion", shell], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (folder / f"_spottmee-worker{'' if shell == 'zsh' else '.' + shell}").write_text(done.stdout)
    return folder


def _bash(folder: Path, typed: str, _expected: str) -> str:
    words = typed.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    return _run(
        "bash",
        f"source {folder}/_spottmee-worker.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "function=$(complete -p spottmee-worker | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        f"$function spottmee-worker '{words[-1]}' '{words[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    )


def _fish(folder: Path, typed: str, _expected: str) -> str:
    return _run("fish", f"source {folder}/_spottmee-worker.fish; complete --do-complete '{typed}'")


def _zsh(folder: Path, typed: str, expected: str) -> str:
    return _run("zsh", ZSH.format(folder=folder, typed=typed, expected=expected))


def _run(shell: str, text: str) -> str:
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout


@pytest.mark.parametrize("complete", [_bash, _fish, _zsh], ids=lambda one: one.__name__.strip("_"))
def test_commands_subcommands_and_flags_are_completed(scripts: Path, complete: Callable[[Path, str, str], str]) -> None:
    commands = complete(scripts, "spottmee-worker de", "dead")
    assert "dead" in commands
    assert "debug" in commands
    assert "sweep" not in commands
    assert "requeue" in complete(scripts, "spottmee-worker dead re", "requeue")
    assert "--max-share" in complete(scripts, "spottmee-worker sweep --m", "--max-share")
