"""Measurements: spreads over rounds, rows with their targets, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """One measured number in all rounds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of `values`, which must not be empty."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    def document(self) -> dict[str, object]:
        """Return the JSON representation."""
        return {
            "median": round(self.median, 4),
            "min": round(min(self.values), 4),
            "max": round(max(self.values), 4),
            "rounds": [round(value, 4) for value in self.values],
        }

    def text(self) -> str:
        """Return the median, and the range if there are several rounds."""
        middle = number(self.median)
        return (
            middle if len(self.values) == 1 else f"{middle} ({number(min(self.values))} to {number(max(self.values))})"
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A lower or upper bound for a number."""

    relation: str  # "≥" or "≤"
    value: float

    def met(self, value: float) -> bool:
        """Return whether `value` meets the target."""
        return value >= self.value if self.relation == "≥" else value <= self.value

    def text(self) -> str:
        """Return the target as the table shows it."""
        return f"{self.relation} {self.value:g}"

    @classmethod
    def of(cls, text: str) -> Target:
        """Return the target that `text` was made from."""
        relation, value = text.split()
        return cls(relation, float(value))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: this runner, its baseline, and their ratio round by round.

    A target applies to the median of the ratio if there is one, else to the median of this runner's own number.
    `note` is shown in the table: what a reader must know to judge the line.
    """

    part: str
    what: str
    unit: str
    ours: Spread
    baseline: Spread | None = None
    baseline_name: str = ""
    ratio: Spread | None = None
    target: Target | None = None
    note: str = ""

    @property
    def judged(self) -> float:
        """The number that the target applies to."""
        return (self.ratio or self.ours).median

    @property
    def verdict(self) -> str:
        """Whether the target is met; empty if there is none."""
        if self.target is None:
            return ""
        return "met" if self.target.met(self.judged) else "NOT MET"

    def document(self) -> dict[str, object]:
        """Return the JSON representation."""
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.document(),
            "baseline": self.baseline.document() if self.baseline else None,
            "baseline_name": self.baseline_name or None,
            "ratio": self.ratio.document() if self.ratio else None,
            "target": self.target.text() if self.target else None,
            "verdict": self.verdict or None,
            "note": self.note or None,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Row:
        """Return the row that `document` was made from."""
        spreads = {
            name: Spread.of(document[name]["rounds"]) for name in ("ours", "baseline", "ratio") if document[name]
        }
        return cls(
            document["part"],
            document["what"],
            document["unit"],
            spreads["ours"],
            spreads.get("baseline"),
            document["baseline_name"] or "",
            spreads.get("ratio"),
            Target.of(document["target"]) if document["target"] else None,
            document["note"] or "",
        )

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row."""
        return (
            self.what,
            f"{self.ours.text()} {self.unit}".rstrip(),
            f"{self.baseline_name}: {self.baseline.text()}" if self.baseline else "",
            self.ratio.text() if self.ratio else "",
            self.target.text() if self.target else "",
            self.verdict + (f"; {self.note}" if self.note and self.verdict else self.note),
        )


HEADINGS = ("what", "this runner", "compared with", "ratio", "target", "verdict")


def ratios(above: Spread, below: Spread) -> Spread:
    """Return `above` / `below`, round by round."""
    return Spread.of(a / b for a, b in zip(above.values, below.values, strict=True))


def number(value: float) -> str:
    """Return `value` with three significant digits, from 100 on without decimals."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with aligned columns."""
    cells = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    rule = "|".join(["", *("-" * (width + 2) for width in widths), ""])
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], rule, *lines[1:]])
