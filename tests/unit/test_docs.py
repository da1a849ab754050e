"""The generated parts of the documentation say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import chart_docs, docs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", docs.PAGES)
def test_the_generated_parts_of_a_reference_page_are_current(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == docs.renewed(text, docs.PAGES[name]), "run `make docs`"


@pytest.mark.parametrize("path", chart_docs.PAGES, ids=lambda path: path.parent.name)
def test_the_tables_of_chart_values_are_current(path: Path) -> None:
    values = (chart_docs.CHART / "values.yaml").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert text == chart_docs.page(text, values), "run `make docs`"


def test_the_schema_of_the_chart_is_current() -> None:
    values, schema = (
        (chart_docs.CHART / name).read_text(encoding="utf-8") for name in ("values.yaml", "values.schema.json")
    )
    assert schema == chart_docs.schema(schema, values), "run `make docs`"
