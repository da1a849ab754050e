"""Generates parts of the documentation (`make docs`); a test checks that they are current."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from runner import errors
from runner.cli import EXIT_CODES, _parser
from runner.metrics import catalogue
from runner.queue import totals
from runner.settings import Settings


def settings_table() -> str:
    """Return the table of settings, in the order of `Settings`."""
    rows = ["| variable | flag | default | what it does |", "|---|---|---|---|"]
    for item in fields(Settings):
        about = item.metadata
        default = "required" if about["default"] is None else f"`{about['default']}`" if about["default"] else ""
        flag = f"`{about['flag']}`" if about["flag"] else ""
        rows.append(f"| `{about['env']}` | {flag} | {default} | {_cell(about['help'])} |")
    return "\n".join(rows)


def exit_code_table() -> str:
    """Return the table of exit codes, from the text of `--help`."""
    rows = ["| code | meaning |", "|---|---|"]
    for line in EXIT_CODES.splitlines()[1:]:
        code, _, meaning = line.strip().partition(" ")
        rows.append(f"| {code} | {meaning.strip()} |")
    return "\n".join(rows)


def job_error_table() -> str:
    """Return the table of the errors of a single job, from their classes."""
    rows = ["| code | message | retried | dead letter |", "|---|---|---|---|"]
    for kind in _leaves(errors.JobError):
        retried, dead = ("yes" if message else "no" for message in (kind.transient, kind.is_fault))
        rows.append(f"| `{kind.code}` | {_cell(' '.join((inspect.getdoc(kind) or '').split()))} | {retried} | {dead} |")
    return "\n".join(rows)


def _leaves(kind: type[errors.JobError]) -> Iterator[type[errors.JobError]]:
    """Return the subclasses of `kind` that have an error code of their own, in source order."""
    for below in kind.__subclasses__():
        if "code" in vars(below):
            yield below
        yield from _leaves(below)


def command_reference() -> str:
    """Return a section for every command with its arguments, from the command line's parsers."""
    return "\n\n".join(_sections(_parser()))


def _sections(parser: argparse.ArgumentParser, about: str = "") -> Iterator[str]:
    """Return the sections of the subcommands of `parser`, or its own section if it has none.

    Reads private attributes, because argparse has no public way to inspect a parser.
    """
    actions = parser._actions
    below = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield _section(parser, [action for action in actions if action.dest != "help"], about)
    for action in below:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            yield from _sections(sub, helps.get(name, ""))


def _section(parser: argparse.ArgumentParser, actions: list[argparse.Action], about: str) -> str:
    text = parser.description or f"{about[:1].upper()}{about[1:]}."
    parts = [f"## `{parser.prog}`", " ".join(text.split())]
    if actions:
        rows = [f"| {_code(_usage(action))} | {_cell(_help(action))} |" for action in actions]
        parts.append("\n".join(["| argument | what it does |", "|---|---|", *rows]))
    if parser.epilog:
        raw = "\n" in parser.epilog
        parts.append(f"```text\n{parser.epilog}\n```" if raw else _sentence(parser.epilog))
    return "\n\n".join(parts)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _usage(action: argparse.Action) -> str:
    """Return an argument as a user types it: `--limit N`, `ID …`."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    shown = f"{value} …" if action.nargs in ("*", "+") else str(value)
    if not action.option_strings:
        return f"[{shown}]" if action.nargs in ("*", "?") else shown
    takes_value = action.nargs != 0
    return f"{', '.join(action.option_strings)}{f' {shown}' if takes_value else ''}"


def _help(action: argparse.Action) -> str:
    return (action.help or "") % vars(action)


def _code(text: str) -> str:
    """Return `text` as code in a table cell; GitHub and Python-Markdown disagree on an escaped `|` in backticks."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def metric_table() -> str:
    """Return the table of all metrics."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in catalogue.METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.sample}` | {metric.kind} | {labels} | {_cell(metric.about)} |")
    return "\n".join(rows)


def metric_label_table() -> str:
    """Return the table of the values that labels can have."""
    rows = ["| metric | label | values |", "|---|---|---|"]
    for metric in catalogue.METRICS:
        for label in metric.labels:
            values = ", ".join(f"`{value}`" for value in catalogue.label_values(metric)[label] if value)
            rows.append(f"| `{metric.sample}` | `{label}` | {values} |")
    return "\n".join(rows)


def metric_bucket_table() -> str:
    """Return the table of the bounds of histograms."""
    named = {name: metric for metric, name in catalogue.HISTOGRAMS.items()}
    rows = ["| histogram | bounds |", "|---|---|"]
    for name, metric in [*named.items(), (totals.STAGES[0], catalogue.STAGE_SECONDS)]:
        rows.append(f"| `{metric.name}` | {', '.join(format(bound, 'g') for bound in totals.HISTOGRAMS[name])} |")
    return "\n".join(rows)


# Page → the sections between its markers.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/reference/settings.md": {"settings": settings_table},
    "docs/reference/exit-codes.md": {"exit-codes": exit_code_table, "job-errors": job_error_table},
    "docs/reference/commands.md": {"commands": command_reference},
    "docs/reference/metrics.md": {
        "metrics": metric_table,
        "metric-labels": metric_label_table,
        "metric-buckets": metric_bucket_table,
    },
}


def renewed(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """Return `text` with each section between its markers generated again.

    Raises `ValueError` if a marker is missing.
    """
    for name, generate in sections.items():
        start, end = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"the markers {start} and {end} are missing")
        text = f"{before}{start}\n\n{generate()}\n\n{end}{after}"
    return text


def main(root: Path) -> int:
    """Write the generated sections of every page below `root`."""
    for name, sections in PAGES.items():
        path = root / name
        path.write_text(renewed(path.read_text(encoding="utf-8"), sections), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
