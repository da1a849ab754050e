"""The Role that docs/how-to/debugging.md gives to people."""

from __future__ import annotations

from pathlib import Path

HANDBOOK = Path(__file__).parents[2] / "docs" / "how-to" / "debugging.md"


def role() -> str:
    """Return the YAML of the Role."""
    text = HANDBOOK.read_text(encoding="utf-8")
    return text.partition("```yaml\n")[2].partition("```")[0]
