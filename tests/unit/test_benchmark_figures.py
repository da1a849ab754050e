"""The arithmetic of the benchmark's table."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import publish
from benchmarks.figures import HEADINGS, Row, Spread, Target, number, ratios, table

OURS, THEIRS = Spread.of([1.0, 3.0, 2.0]), Spread.of([2.0, 9.0, 5.0])


def row(**more: Any) -> Row:
    return Row("part", "what", "ms", OURS, THEIRS, "beside", ratios(THEIRS, OURS), **more)


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios(THEIRS, OURS).values == (2.0, 3.0, 2.5)
    with pytest.raises(ValueError, match="shorter"):
        ratios(THEIRS, Spread.of([1.0]))


def test_a_spread_shows_its_median_and_its_range() -> None:
    assert OURS.text() == "2 (1 to 3)"
    assert Spread.of([0.123456]).text() == "0.123"
    assert OURS.document() == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [1.0, 3.0, 2.0]}


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (None, ""),
        (Target("≥", 2.5), "met"),
        (Target("≥", 2.6), "NOT MET"),
        (Target("≤", 2.5), "met"),
        (Target("≤", 2.4), "NOT MET"),
    ],
)
def test_the_median_ratio_is_compared_with_the_target(target: Target | None, verdict: str) -> None:
    assert row(target=target).verdict == verdict


def test_without_a_ratio_the_measured_value_is_judged() -> None:
    assert Row("part", "what", "MiB", OURS, target=Target("≤", 2)).verdict == "met"
    assert Row("part", "what", "MiB", OURS, target=Target("≤", 1.9)).verdict == "NOT MET"


def test_numbers_have_three_significant_digits() -> None:
    assert [number(value) for value in (0.61234, 2.0, 45.67, 123.4, 12345.6)] == ["0.612", "2", "45.7", "123", "12,346"]


def test_the_table_is_markdown_with_every_row_and_its_verdict() -> None:
    lines = table([row(target=Target("≥", 2.2), note="a note"), row()]).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(HEADINGS)
    assert len({len(line) for line in lines}) == 1
    assert "met; a note" in lines[2]
    assert len(lines) == 4


@pytest.mark.parametrize("more", [{}, {"target": Target("≥", 2.2), "note": "a note"}])
def test_a_row_survives_serialisation(more: dict[str, Any]) -> None:
    assert Row.of(row(**more).document()) == row(**more)
    alone = Row("part", "what", "MiB", OURS)
    assert Row.of(alone.document()) == alone


def test_the_page_gets_the_table_between_its_markers_and_nothing_else() -> None:
    document = {
        "machine": {"processor": "a processor", "cores": 2, "load": 0.1},
        "versions": dict.fromkeys(("python", "onnxruntime", "insightface", "redis", "psycopg"), "1.0"),
        "rows": [row(target=Target("≥", 2.2)).document(), Row("part", "no target", "ms", OURS).document()],
    }
    page = "before\n<!-- bench: generated -->\nold\n<!-- /bench -->\nafter\n"
    once = publish.put(page, publish.section([document]))
    twice = publish.put(once, publish.section([document, document]))
    for text in (once, twice):
        assert text.startswith("before\n<!-- bench: generated -->\n\na processor, 2 cores; python 1.0")
        assert text.endswith("|\n\n<!-- /bench -->\nafter\n")
    assert (once.count("no target"), twice.count("no target")) == (1, 2)
    with pytest.raises(ValueError, match="no place"):
        publish.put("nothing", "text")


def test_the_performance_page_has_a_place_for_the_table() -> None:
    page = publish.PAGE.read_text("utf-8")
    assert publish.put(page, "text") != page
