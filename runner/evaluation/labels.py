"""The photos to evaluate and what is known of them: a folder for each person, or a CSV file of pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import CheckFailedError, UsageError

COLUMNS = ("first", "second", "same")
_SAME = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_ADVICE = "pass a folder that contains one folder of photos per person, or a CSV file with the columns " + ",".join(
    COLUMNS
)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo: its file, its name in the report, and the person it shows, which is empty in a CSV of pairs."""

    path: Path
    name: str
    person: str = ""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two photos, by their index, and whether they show the same person."""

    first: int
    second: int
    same: bool


@dataclass(frozen=True, slots=True)
class Labels:
    """The photos, and the pairs to compare; without `pairs`, every two photos are one."""

    photos: list[Photo]
    pairs: list[LabelledPair] | None = field(default=None, repr=False)


def read_labels(path: Path) -> Labels:
    """Read a folder or a CSV file.

    Raises `UsageError` for what is neither or a malformed file, and `CheckFailedError` where there is nothing in it.
    """
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file():
            return _of_csv(path)
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    reason = "is neither a folder nor a file" if path.exists() else "does not exist"
    raise UsageError(f"{path} {reason}: {_ADVICE}")


def _of_folder(folder: Path) -> Labels:
    photos = [
        Photo(file, str(file.relative_to(folder)), person.name)
        for person in _visible(folder)
        if person.is_dir()
        for file in _visible(person)
        if not file.is_dir()
    ]
    if not photos:
        raise CheckFailedError(f"{folder} has no folder with photos in it: {_ADVICE}")
    return Labels(photos)


def _visible(folder: Path) -> list[Path]:
    """Return what is in `folder`, sorted, without hidden files such as .DS_Store."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _of_csv(path: Path) -> Labels:
    indexes: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            pairs = [
                LabelledPair(indexes.setdefault(first, len(indexes)), indexes.setdefault(second, len(indexes)), same)
                for first, second, same in _rows(csv.reader(file, strict=True), path)
            ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a valid CSV file in UTF-8: {error}") from None
    if not pairs:
        raise CheckFailedError(f"{path} has no pairs: {_ADVICE}")
    return Labels([Photo(path.parent / name, name) for name in indexes], pairs)


def _rows(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[str, str, bool]]:
    header = [cell.strip().lower() for cell in next(reader, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        raise UsageError(f"{path} has no column {missing[0]} in its first line: {_ADVICE}")
    places = [header.index(name) for name in COLUMNS]
    for number, row in enumerate(reader, 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise UsageError(f"{path}, row {number}: {len(row)} columns, expected {len(header)}")
        first, second, same = (row[place].strip() for place in places)
        if not first or not second or "\0" in first + second:
            raise UsageError(f"{path}, row {number}: the path of a photo is missing")
        if same.lower() not in _SAME:
            raise UsageError(f"{path}, row {number}: column same is {same!r}, expected one of {', '.join(_SAME)}")
        yield first, second, _SAME[same.lower()]
