"""The parts of the README that are generated: `make docs` writes them, a test checks that they are current."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from runner.cli import EXIT_CODES
from runner.settings import Settings


def settings_table() -> str:
    """Return the table of settings, in the order of `Settings`."""
    rows = ["| variable | flag | default | what it does |", "|---|---|---|---|"]
    for item in fields(Settings):
        about = item.metadata
        default = "required" if about["default"] is None else f"`{about['default']}`" if about["default"] else ""
        flag = f"`{about['flag']}`" if about["flag"] else ""
        rows.append(f"| `{about['env']}` | {flag} | {default} | {about['help']} |")
    return "\n".join(rows)


def exit_code_table() -> str:
    """Return the table of exit codes, from the text of `--help`."""
    rows = ["| code | meaning |", "|---|---|"]
    for line in EXIT_CODES.splitlines()[1:]:
        code, _, meaning = line.strip().partition(" ")
        rows.append(f"| {code} | {meaning.strip()} |")
    return "\n".join(rows)


SECTIONS = {"settings": settings_table, "exit-codes": exit_code_table}


def renewed(text: str) -> str:
    """Return `text` with each section between its markers generated anew.

    Raises `ValueError` where a marker is missing.
    """
    for name, generate in SECTIONS.items():
        start, end = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"the markers {start} and {end} are missing")
        text = f"{before}{start}\n{generate()}\n{end}{after}"
    return text


def main(path: Path) -> int:
    """Write the generated sections of the file at `path`."""
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")))
