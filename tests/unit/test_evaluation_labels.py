"""Labelled photos: folders of people, CSV files of pairs, and everything that is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import CheckFailedError, RunnerError, UsageError
from runner.evaluation.labels import LabelledPair, read_labels


def csv_file(folder: Path, content: bytes) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(content)
    return path


def test_a_folder_is_a_person_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    for name in ("ada/2.jpg", "ada/1.jpg", "ada/.DS_Store", "ben/1.png", ".git/x.jpg", "ada/more/3.jpg", "loose.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    labels = read_labels(tmp_path)
    assert [(photo.person, photo.name) for photo in labels.photos] == [
        ("ada", "ada/1.jpg"),
        ("ada", "ada/2.jpg"),
        ("ben", "ben/1.png"),
    ]
    assert labels.pairs is None


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_csv_names_each_photo_once(tmp_path: Path, mark: bytes) -> None:
    labels = read_labels(csv_file(tmp_path, mark + b"Second, same ,first,note\nb.jpg,1,a.jpg,x\n\nc.jpg,No,a.jpg,\n"))
    assert [photo.path for photo in labels.photos] == [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert labels.pairs == [LabelledPair(0, 1, same=True), LabelledPair(0, 2, same=False)]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", UsageError, "no column first"),
        (b"a,b,c\n", UsageError, "no column first"),
        (b"first,second\na,b\n", UsageError, "no column same"),
        (b"first,second,same\n", CheckFailedError, "no pairs"),
        (b"first,second,same\na,b\n", UsageError, "row 2: 2 columns, expected 3"),
        (b"first,second,same\na,b,1\na,b,1,5\n", UsageError, "row 3: 4 columns"),
        (b"first,second,same\na,b,maybe\n", UsageError, "row 2: column same is 'maybe'"),
        (b"first,second,same\n,b,1\n", UsageError, "row 2: the path of a photo is missing"),
        (b"first,second,same\na\0,b,1\n", UsageError, "pairs.csv"),
        (b"first,second,same\n\xff,b,1\n", UsageError, "not a valid CSV file in UTF-8"),
        (b'first,second,same\n"a,b,1\n', UsageError, "not a valid CSV file"),
        (b"first,second,same\n" + b"a" * 200_000 + b",b,1\n", UsageError, "not a valid CSV file"),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_a_malformed_csv_is_refused(tmp_path: Path, content: bytes, kind: type[RunnerError], message: str) -> None:
    with pytest.raises(kind, match=message):
        read_labels(csv_file(tmp_path, content))


def test_a_folder_without_people_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckFailedError, match="has no folder with photos"):
        read_labels(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("nothing", "does not exist"), ("/dev/null", "neither a folder nor")])
def test_other_paths_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / name)
