"""Parsers of argument values that several commands take."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

from runner.errors import InvalidJobError
from runner.worker.messages import check_identifier

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])")
_LONGEST_DAYS = 3650  # PostgreSQL's timestamps end in 4714 BC
LARGEST_WHOLE = 9_999_999_999
_WHOLE_PERCENT = 100


def duration(text: str) -> float:
    """Return the seconds of a duration such as 90s, 15m, 2h or 7d, up to 3650d."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is not a valid duration: write 90s, 15m, 2h or 7d")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > _LONGEST_DAYS * _UNITS["d"]:
        raise ArgumentTypeError(f"{text!r} is too long: the maximum is {_LONGEST_DAYS}d")
    return seconds


def whole(text: str) -> int:
    """Return a whole number from 0 on."""
    if not (text.isascii() and text.isdecimal()) or int(text) > LARGEST_WHOLE:
        raise ArgumentTypeError(f"{text!r} is not a whole number of 0 or more, up to {LARGEST_WHOLE}")
    return int(text)


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    if text.strip("0") == "" or not whole(text):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {LARGEST_WHOLE}")
    return whole(text)


def percentage(text: str) -> float:
    """Return a number from 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= _WHOLE_PERCENT:
        raise ArgumentTypeError(f"must be a percentage from 0 to 100 (got {text!r})")
    return value


def identifier(text: str) -> str:
    """Return an id: 1 to 256 characters that PostgreSQL can store."""
    try:
        check_identifier(text)
    except InvalidJobError as error:
        raise ArgumentTypeError(error.detail) from None
    return text
