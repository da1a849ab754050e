"""The Role in docs/how-to/debugging.md."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "debugging.md"


def role() -> str:
    """Return the YAML of the Role."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition("```yaml\n")[2].partition("```")[0]
