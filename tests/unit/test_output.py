"""Text from outside, escaped: nothing controls a terminal, forges a line, or ends in an encoding error."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import output
from runner.cli.output import columns
from runner.errors import FetchError
from runner.logs import JsonFormatter, TextFormatter
from runner.output import json_text, printable

DANGEROUS = (
    [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))]
    + [chr(code) for code in (0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
    + ["\u2028", "\u2029", "\ufeff", "\u200b", "\ud800", "\udfff", "\U000e0041"]
)
ANYTHING = st.text(st.characters(codec=None) | st.sampled_from(DANGEROUS))


def _is_safe(text: str) -> bool:
    return all(unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for one in text)


@pytest.mark.parametrize("character", DANGEROUS, ids=ascii)
def test_every_dangerous_character_is_escaped(character: str) -> None:
    assert printable(f"a{character}b").isascii()
    assert json.loads(json_text({"id": character}, ascii_only=False)) == {"id": character}
    assert _is_safe(json_text({"id": character}))


def test_printable_text_is_not_changed() -> None:
    text = "Zoë & Søren, фото №1, 写真, 🎉 'quoted' \\ 100 %.jpg"
    assert printable(text) == text
    assert text in json_text([text.replace("\\", "/")], ascii_only=False).replace("/", "\\")


@given(ANYTHING)
def test_escaped_text_contains_nothing_dangerous(text: str) -> None:
    assert _is_safe(printable(text))
    printable(text).encode()
    written = json_text({text: text}, ascii_only=False)
    assert _is_safe(written)
    assert json.loads(written) == {text: text}


@given(ANYTHING, ANYTHING)
def test_a_log_record_is_always_one_line(event: str, value: str) -> None:
    record = logging.makeLogRecord(
        {
            "levelno": 20,
            "levelname": "INFO",
            "msg": event.replace("%", ""),
            "photo": value,
            "error": FetchError(value).document(),
        }
    )
    for formatter in (TextFormatter(), JsonFormatter({"pod": value})):
        line = formatter.format(record)
        assert _is_safe(line)
        assert len(line.splitlines()) <= 1
        line.encode()
    assert json.loads(line)["photo"] == value


def test_a_value_of_the_text_log_cannot_be_read_as_another_one() -> None:
    record = logging.makeLogRecord(
        {
            "levelno": 20,
            "levelname": "INFO",
            "msg": "photo",
            "photo": "a  outcome=succeeded",
            "outcome": "dead_lettered",
        }
    )
    assert TextFormatter().format(record).endswith('photo  photo="a  outcome=succeeded"  outcome=dead_lettered')


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter({})], ids=["text", "json"])
def test_a_logged_exception_is_named_without_its_message(formatter: logging.Formatter) -> None:
    error = ValueError("S3cret\x1b[2J")
    fields = {"msg": "x", "levelno": 40, "levelname": "ERROR", "exc_info": (ValueError, error, None)}
    line = formatter.format(logging.makeLogRecord(fields))
    assert "S3cret" not in line
    assert "ValueError at " in line
    assert _is_safe(line)


@given(st.lists(st.tuples(ANYTHING, ANYTHING), min_size=1, max_size=4))
def test_a_table_has_one_line_a_row(rows: list[tuple[str, str]]) -> None:
    found = list(columns(rows))
    assert len(found) == len(rows)
    assert all(_is_safe(line) for line in found)


@pytest.mark.parametrize(("stream", "show"), [("stdout", output.line), ("stderr", output.problem)])
def test_a_line_and_its_end_are_one_write(
    monkeypatch: pytest.MonkeyPatch, stream: str, show: Callable[[str], None]
) -> None:
    """`kubectl exec` joins the two streams as they come, so the end of a line must not follow later."""
    writes: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    monkeypatch.setattr(sys, stream, Recorder())
    show("a line")
    assert "".join(writes) == "a line\n"
    assert "\n" not in writes
