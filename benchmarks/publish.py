"""Writes the results of `make bench` into the documentation.

    python -m benchmarks.publish bench-out/bench.json …

The rows of several files become one table, in the order of the files. The table replaces the one between the markers
in docs/explanation/performance.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, table

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"
_PLACE = re.compile(r"(<!-- bench: generated -->\n).*?(<!-- /bench -->)", re.DOTALL)


def section(documents: Sequence[dict[str, Any]]) -> str:
    """Return the lines between the markers."""
    rows = [Row.of(row) for document in documents for row in document["rows"]]
    about, versions = documents[0]["machine"], documents[0]["versions"]
    loads = sorted(document["machine"]["load"] for document in documents)
    shown = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "onnxruntime", "insightface", "redis", "psycopg")
    )
    return (
        f"\n{about['processor']}, {about['cores']} cores; {shown}. Load average at the start: {loads[-1]:g} "
        "(0 is an idle machine). Median (minimum to maximum) of the rounds.\n\n"
        f"{table(rows)}\n\n"
    )


def put(page: str, text: str) -> str:
    """Return `page` with `text` between its markers. Raises `ValueError` if a marker is missing."""
    if not _PLACE.search(page):
        raise ValueError("the page has no place for the table: the markers `bench: generated` and `/bench` are missing")
    return _PLACE.sub(lambda found: f"{found[1]}{text}{found[2]}", page)


def main(files: Sequence[str]) -> None:
    """Write the page."""
    documents = [json.loads(Path(file).read_text("utf-8")) for file in files]
    PAGE.write_text(put(PAGE.read_text("utf-8"), section(documents)), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
