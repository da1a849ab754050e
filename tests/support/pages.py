"""Extracts the blocks of shell commands from the pages of the documentation."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.prose import ROOT

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SECONDS = 180  # for the commands of a page, on a busy machine; a page takes a few
_SHELLS = ("sh", "bash", "shell", "console")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `reason` says why its commands cannot run in a test; None if they can."""

    page: Path
    language: str
    text: str
    reason: str | None


def name_of(page: Path) -> str:
    """Return the path of a page relative to the repository's root."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, found["language"], found["text"], found["reason"]) for found in _BLOCK.finditer(text)]


def shell_blocks(page: Path) -> list[Block]:
    """Return the blocks of shell commands of a page, in order."""
    return [block for block in blocks(page) if block.language in _SHELLS]


def script(page: Path) -> str:
    """Return the commands of a page that can run in a test, as one script; empty if there are none."""
    return "\n".join(block.text for block in shell_blocks(page) if block.reason is None)


@dataclass(frozen=True, slots=True)
class Reader:
    """The reader of a page: a folder like a checkout, an environment, and the values of the placeholders."""

    folder: Path
    environment: dict[str, str]
    placeholders: dict[str, str]

    def follow(self, commands: str) -> str:
        """Return what the commands print; the first one that fails, fails the test."""
        for placeholder, value in self.placeholders.items():
            commands = commands.replace(placeholder, value)
        process = subprocess.Popen(
            ["/bin/bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # background processes of a page are ended with its shell
        )
        timed_out = ""
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            timed_out = f"after {SECONDS} s not finished; so far:\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        assert process.returncode == 0, timed_out + output
        return output
