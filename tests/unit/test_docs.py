"""The README says what the code says."""

from __future__ import annotations

from pathlib import Path

from runner.docs import renewed

README = Path(__file__).parents[2] / "README.md"


def test_the_generated_parts_of_the_readme_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == renewed(text), "run `make docs`"
