"""Wraps the prose of Markdown pages at 100 characters (`make docs`); a test checks it."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "helm" / "spottmee-worker" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
WIDTH = 100
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) +")
_FENCE = re.compile(r"\s*```")
_GENERATED = re.compile(r"<!-- [\w-]+: generated")
_CLOSED = re.compile(r"<!-- /")
# Tables, headings, comments, images: these are not prose, and end a paragraph.
_OTHER = re.compile(r"\s*(?:\||#|<|!\[|```)")
_CODE = re.compile(r"`[^`]*`")
_JOINED = "\x01"  # a placeholder for a space inside code, where no line may be broken


def wrapped(text: str) -> str:
    """Return `text` with every paragraph and list item wrapped; code, tables and generated parts are unchanged."""
    return "\n".join(_lines(text.split("\n")))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    fenced = generated = False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
        generated = bool(_GENERATED.match(line)) or (generated and not _CLOSED.match(line))
        verbatim = fenced or generated or not line.strip() or bool(_OTHER.match(line))
        if paragraph and (verbatim or _ITEM.match(line)):
            yield from _wrapped(paragraph)
            paragraph = []
        if verbatim:
            yield line
        else:
            paragraph.append(line)
    yield from _wrapped(paragraph)


def _wrapped(paragraph: list[str]) -> list[str]:
    if not paragraph:
        return []
    item = _ITEM.match(paragraph[0])
    indent = item[0] if item else re.sub(r"\S.*", "", paragraph[0])
    text = " ".join([paragraph[0][len(indent) :].strip(), *(line.strip() for line in paragraph[1:])])
    done = textwrap.wrap(
        _CODE.sub(lambda code: code[0].replace(" ", _JOINED), text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_JOINED, " ") for line in done]


def main() -> int:
    """Wrap every page."""
    for path in PAGES:
        path.write_text(wrapped(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
