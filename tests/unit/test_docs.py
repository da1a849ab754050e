"""README and chart say what the code says."""

from __future__ import annotations

from pathlib import Path

from runner.docs import renewed
from tests.chart import document

README = Path(__file__).parents[2] / "README.md"


def test_the_generated_parts_of_the_readme_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == renewed(text), "run `make docs`"


def test_the_generated_parts_of_the_chart_are_current() -> None:
    values, readme, schema = (
        (document.CHART / name).read_text(encoding="utf-8")
        for name in ("values.yaml", "README.md", "values.schema.json")
    )
    assert readme == document.readme(readme, values), "run `make docs`"
    assert schema == document.schema(schema, values), "run `make docs`"
