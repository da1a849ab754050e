"""README and chart say what the code says."""

from __future__ import annotations

from pathlib import Path

from tools import chart_docs
from tools.docs import renewed

README = Path(__file__).parents[2] / "README.md"


def test_the_generated_parts_of_the_readme_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == renewed(text), "run `make docs`"


def test_the_generated_parts_of_the_chart_are_current() -> None:
    values, readme, schema = (
        (chart_docs.CHART / name).read_text(encoding="utf-8")
        for name in ("values.yaml", "README.md", "values.schema.json")
    )
    assert readme == chart_docs.readme(readme, values), "run `make docs`"
    assert schema == chart_docs.schema(schema, values), "run `make docs`"
