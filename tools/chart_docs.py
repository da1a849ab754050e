"""Generates the tables of chart values and the schema's descriptions from the comments in values.yaml (`make docs`).

What a value means is defined only in values.yaml, and what a setting of the worker means only in runner/settings.py. A
test compares the chart's README, the reference page and the schema with them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from runner.settings import Settings

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "spottmee-worker"
PAGES = (CHART / "README.md", ROOT / "docs" / "reference" / "chart-values.md")
START, END = "<!-- values: generated from values.yaml -->", "<!-- /values -->"
_KEY = re.compile(r"^( *)([A-Za-z]+):(.*)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of values.yaml: its path, the comment above it, and its default. A block contains other keys."""

    path: tuple[str, ...]
    comment: str
    default: Any
    is_block: bool


def entries(text: str) -> list[Entry]:
    """Return every key of values.yaml, in order. A comment is above its key and has the same indentation."""
    values = yaml.safe_load(text)
    found: list[Entry] = []
    comment: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
        elif match := _KEY.match(line):
            indent, key, rest = match.groups()
            path = [*path[: len(indent) // 2], key]
            found.append(Entry(tuple(path), " ".join(comment), _at(values, path), not rest.strip()))
            comment = []
        else:
            comment = []
    return found


def _at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else _flow(value)
    return f"`{text}`"


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n")).strip()


def values_tables(text: str) -> str:
    """Return the README's tables: one per top-level key, and one for both queues."""
    known = entries(text)
    sections: dict[str, list[Entry]] = {}
    for entry in known:
        sections.setdefault(entry.path[0], []).append(entry)
    single = [section[0] for section in sections.values() if len(section) == 1]
    parts = [_table([entry for entry in single if not entry.is_block])]
    for name, section in sections.items():
        if len(section) > 1:
            parts.append(_queues(section) if name == "queues" else _section(section))
    return "\n\n".join(parts)


def _section(section: list[Entry]) -> str:
    head, *rest = section
    intro = f"{head.comment}\n\n" if head.comment else ""
    return f"### `{head.path[0]}`\n\n{intro}{_table([entry for entry in rest if not entry.is_block])}"


def _table(rows: list[Entry]) -> str:
    lines = ["| value | default | what it is |", "|---|---|---|"]
    lines += [f"| `{'.'.join(entry.path)}` | {_shown(entry.default)} | {_cell(entry.comment)} |" for entry in rows]
    return "\n".join(lines)


def _queues(section: list[Entry]) -> str:
    process = [entry for entry in section if entry.path[1:2] == ("process",) and not entry.is_block]
    compare = {entry.path[2:]: entry.default for entry in section if entry.path[1:2] == ("compare",)}
    lines = ["| value | process | compare | what it is |", "|---|---|---|---|"]
    for entry in process:
        other = compare[entry.path[2:]]
        lines.append(
            f"| `queues.*.{'.'.join(entry.path[2:])}` | {_shown(entry.default)} | {_shown(other)} | "
            f"{_cell(entry.comment)} |"
        )
    return "### `queues`\n\n" + section[0].comment + "\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(current: str, values: str) -> str:
    """Return the page `current` with its tables generated again. Raises `ValueError` if a marker is missing."""
    before, opened, rest = current.partition(START)
    _, closed, after = rest.partition(END)
    if not opened or not closed:
        raise ValueError(f"the markers {START} and {END} are missing")
    return f"{before}{START}\n\n{values_tables(values)}\n\n{END}{after}"


def schema(current: str, values: str) -> str:
    """Return the schema `current` with the comments of values.yaml as descriptions, and the runner's settings."""
    document = json.loads(current)
    document["definitions"]["settings"]["properties"] = {
        item.metadata["env"]: {**_type(item.metadata["parse"]), "description": item.metadata["help"]}
        for item in fields(Settings)
        if item.metadata["env"].startswith("RUNNER_")
    }
    comments: dict[int, tuple[dict[str, Any], str]] = {}
    for entry in entries(values):
        target = property_of(document, entry.path)
        # A definition shared by several keys gets the comment of the first one.
        if entry.comment and id(target) not in comments:
            comments[id(target)] = (target, entry.comment)
    for target, comment in comments.values():
        target["description"] = comment
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _type(parse: Callable[[str], object]) -> dict[str, Any]:
    """Return the JSON schema of a setting's values, from its parser's error message for an invalid value."""
    try:
        parse("\0")
    except ValueError as error:
        message = str(error)
        if numbers := re.fullmatch(r"must be a (whole number|number of seconds) from (\S+) to (\S+)", message):
            kind, low, high = numbers.groups()
            limits = {"minimum": json.loads(low), "maximum": json.loads(high)}
            return {"type": "integer" if kind == "whole number" else "number", **limits}
        if words := re.fullmatch(r"must be one of (.+)", message):
            return {"type": "string", "enum": words[1].split(", ")}
        if message == "must be true or false":
            return {"type": "boolean"}
    return {"type": "string"}


def property_of(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema's entry for a value, following references on the way. Raises `KeyError`."""
    found = document
    for key in path:
        found = _followed(document, found)["properties"][key]
    return found


def properties_of(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return the properties that the schema allows in a block of values. Raises `KeyError`."""
    found: dict[str, Any] = _followed(document, property_of(document, path))["properties"]
    return found


def _followed(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: dict[str, Any] = document["definitions"][node["$ref"].rpartition("/")[2]]
    return found


def closed_objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every object of a schema that lists its properties, with its path."""
    if isinstance(node, dict):
        if "properties" in node and node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from closed_objects(value, f"{path}/{key}")


def main() -> int:
    """Write the tables of both pages and the descriptions in values.schema.json."""
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    for path, generate in (*((path, page) for path in PAGES), (CHART / "values.schema.json", schema)):
        path.write_text(generate(path.read_text(encoding="utf-8"), values), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
