"""`spottmee-worker evaluate`, with the real engine on real photos, labelled by how they were made or by hand."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from demo.album import Album, jpeg, landscape
from demo.pairs import write_pairs
from runner.cli import main
from tests.support import forked
from tests.support.shared_files import SHARED_PHOTOS
from tools.prose import ROOT

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Run the command, and return its exit code, standard output and standard error."""

    def run(path: Path, *arguments: str) -> tuple[int, str, str]:
        code = main(["evaluate", str(path), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def people(tmp_path: Path, album: Album) -> Path:
    """A folder for each of four people; two of them have two photos."""
    photos = {photo.name: photo.data for photo in album.photos}
    selfies = {selfie.person: selfie.data for selfie in album.selfies}
    folder = tmp_path / "people"
    for name, data in {
        "Ada/selfie.jpg": selfies["Ada"],
        "Ada/tilted.jpg": photos["Ada tilted.jpg"],
        "Dan/selfie.jpg": selfies["Dan"],
        "Dan/night.jpg": photos["Dan at night.jpg"],
        "Eve/selfie.jpg": selfies["Eve"],
        "Gil/selfie.jpg": selfies["Gil"],
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def document_of(output: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(output)
    return document


def test_every_two_photos_of_a_folder_are_compared(evaluate: Evaluate, people: Path) -> None:
    code, out, err = evaluate(people, "--json", "--worst", "3")
    document = document_of(out)
    assert (code, err) == (0, "")  # only the result in a pipe
    assert (document["photos"], document["people"]) == (6, 4)
    assert document["pairs"] == {"same": 2, "different": 13, "left_out": 0}
    assert document["faces"] == "one"
    best = document["best"]
    assert (best["true_match_rate"]["rate"], best["false_match_rate"]["rate"]) == (1, 0)
    assert best["low"] <= best["threshold"] < best["high"]
    assert {(pair["first"], pair["second"]) for pair in document["worst"]["same"]} == {
        ("Ada/selfie.jpg", "Ada/tilted.jpg"),
        ("Dan/night.jpg", "Dan/selfie.jpg"),
    }
    worst = [pair["similarity"] for pair in document["worst"]["different"]]
    assert worst == sorted(worst, reverse=True)
    assert best["low"] == worst[0]


def test_pairs_of_a_csv_are_compared_as_a_run_compares(evaluate: Evaluate, tmp_path: Path, album: Album) -> None:
    """All faces of both photos: the matches at 0.5 are those that the demonstration's album expects."""
    write_pairs(album, tmp_path)
    code, out, _ = evaluate(tmp_path / "pairs.csv", "--json")
    document = document_of(out)
    with (tmp_path / "pairs.csv").open(encoding="utf-8") as file:
        same = sum(row["same"] == "1" for row in csv.DictReader(file))
    assert (code, document["faces"]) == (0, "all")
    assert document["pairs"] == {"same": same, "different": 210 - same, "left_out": 0}
    at_default = document["default"]
    assert at_default["threshold"] == 0.5
    assert (at_default["true_match_rate"]["count"], at_default["false_match_rate"]["count"]) == (same, 0)
    curve = [point["true_match_rate"]["count"] for point in document["thresholds"]]
    assert curve == sorted(curve, reverse=True)
    assert (curve[0], curve[-1]) == (same, 0)


def test_the_best_threshold_keeps_a_limit_on_false_matches(evaluate: Evaluate, people: Path) -> None:
    _, out, _ = evaluate(people, "--json", "--max-false-match-rate", "10")
    best = document_of(out)["best"]
    assert best["criterion"] == "limit"
    assert best["false_match_rate"]["rate"] <= 0.1


def test_the_table_shows_rates_with_intervals_and_what_was_left_out(
    evaluate: Evaluate, people: Path, album: Album
) -> None:
    photos = {photo.name: photo.data for photo in album.photos}
    (people / "Ada" / "lake.jpg").write_bytes(jpeg(landscape()))
    (people / "Ada" / "copy of selfie.jpg").write_bytes((people / "Ada" / "selfie.jpg").read_bytes())
    (people / "Dan" / "two.png").write_bytes(photos["Dan and Eve.png"])
    code, out, err = evaluate(people)
    assert code == 0
    assert "6 photos of 4 people, 2 pairs of the same person, 13 of different people; 3 photos left out" in out
    assert re.search(r"^0\.50 +100\.0 % \(34\.2 to 100\.0\) +0\.0 % \(0\.0 to 22\.8\) +the API's$", out, re.MULTILINE)
    assert err.splitlines() == [
        "left out: Ada/lake.jpg: no face was found",
        "left out: Dan/two.png: 2 faces, and it is not known which is the person (--faces)",
        "left out: Ada/selfie.jpg: the same file as Ada/copy of selfie.jpg",
    ]
    assert document_of(evaluate(people, "--json", "--faces", "largest")[1])["pairs"]["same"] == 1 + 3


def test_files_that_cannot_be_read_are_named_and_the_others_measured(evaluate: Evaluate, people: Path) -> None:
    (people / "Ada" / "notes.txt").write_text("no image")
    (people / "Eve" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(people / "Gil" / "pipe.jpg")
    code, out, err = evaluate(people, "--json")
    document = document_of(out)
    assert code == 5
    assert document["photos"] == 6
    assert {item["name"]: item["code"] for item in document["left_out"]} == {
        "Ada/notes.txt": "image_undecodable",
        "Eve/gone.jpg": "file_missing",
        "Gil/pipe.jpg": "file_unreadable",
    }
    assert "3 of 9 photos could not be read: Ada/notes.txt: " in err
    assert "Traceback" not in err


def test_a_csv_with_missing_files_is_measured_without_their_pairs(evaluate: Evaluate, people: Path) -> None:
    rows = ["first,second,same", "Ada/selfie.jpg,Ada/tilted.jpg,1", "Ada/selfie.jpg,Eve/selfie.jpg,0"]
    rows += ["Ada/selfie.jpg,Ada/gone.jpg,1", "Ada/gone.jpg,Eve/selfie.jpg,0"]
    (people / "pairs.csv").write_text("\n".join(rows))
    code, out, err = evaluate(people / "pairs.csv", "--json")
    assert code == 5
    assert document_of(out)["pairs"] == {"same": 1, "different": 1, "left_out": 2}
    assert "1 of 4 photos could not be read: Ada/gone.jpg: there is no such file" in err


@pytest.mark.parametrize(
    ("removed", "kind"), [(["Ada/tilted.jpg", "Dan/night.jpg"], "the same person"), ([], "different people")]
)
def test_without_a_pair_of_each_kind_there_is_nothing_to_measure(
    evaluate: Evaluate, people: Path, removed: Sequence[str], kind: str
) -> None:
    for name in removed:
        (people / name).unlink()
    if not removed:
        for person in ("Dan", "Eve", "Gil"):
            for photo in (people / person).iterdir():
                photo.unlink()
    code, out, err = evaluate(people)
    assert (code, out) == (5, "")
    assert f"there is no pair of {kind} to compare" in err


def test_bad_arguments_are_refused_before_the_model_is_loaded(evaluate: Evaluate, people: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path / "nothing")[0] == 2
    code, _, err = evaluate(people, "--html", str(tmp_path / "nowhere" / "report.html"))
    assert code == 2
    assert "--html" in err
    with pytest.raises(SystemExit) as left:
        evaluate(people, "--max-false-match-rate", "101")
    assert left.value.code == 2


def test_a_missing_pack_is_an_error_of_the_model(
    evaluate: Evaluate, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_MODEL_DIR", str(tmp_path))
    code, out, err = evaluate(people)
    assert (code, out) == (4, "")
    assert "bake" in err


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_private_page_with_plots_and_pictures(
    evaluate: Evaluate, people: Path, tmp_path: Path
) -> None:
    hostile = people / "<script>alert(1)<script>\u202e"
    hostile.mkdir()
    (people / "Gil" / "selfie.jpg").rename(hostile / "'x' & \x1b[31m.jpg")
    report = tmp_path / "report.html"
    report.touch(mode=0o644)
    code, out, _ = evaluate(people, "--html", str(report), "--worst", "13")
    assert code == 0
    assert f"report: {report}" in out
    assert report.stat().st_mode & 0o777 == 0o600
    text = report.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    # Plots without a closing tag each: <path/>, <polygon/>, <polyline/>.
    assert [tag for tag in page.open if tag not in ("path", "polygon", "polyline")] == []
    assert page.count["svg"] == 2
    assert page.count["img"] == 2 * (2 + 13)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "script" not in page.count
    assert not {"\x1b", "\u202e"} & set(text)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_progress_is_shown_on_a_terminal_alone(people: Path) -> None:
    reader, writer = pty.openpty()
    command = ["evaluate", str(people), "--json"]
    done = forked.run(command, stdout=subprocess.PIPE, stderr=writer, text=True, timeout=120, check=True)
    os.close(writer)
    shown = os.read(reader, 100_000).decode(errors="replace")
    os.close(reader)
    assert "photos" in shown
    assert "6" in shown
    assert document_of(done.stdout)["photos"] == 6


def _scaled(path: Path, longest: int) -> np.ndarray[Any, Any]:
    image = np.asarray(cv2.imread(str(path)))
    scale = longest / max(image.shape[:2])
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)) if scale < 1 else image


@pytest.mark.skipif(not SHARED_PHOTOS.exists(), reason="the labelled photographs (../shared/photos) are not here")
@pytest.mark.parametrize(("longest", "row"), [(10**6, "unchanged"), (160, "scaled to 160 pixels")])
def test_the_documented_rates_of_the_default_pack_are_measured(
    evaluate: Evaluate, tmp_path: Path, longest: int, row: str
) -> None:
    labels = json.loads((SHARED_PHOTOS / "labels.json").read_text())
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("first", "second", "same"))
        for selfie, matches in labels["matches"].items():
            for photo in labels["faces"]:
                writer.writerow((SHARED_PHOTOS / "selfies" / selfie, Path(photo).stem + ".jpg", int(photo in matches)))
    for photo in (SHARED_PHOTOS / "album").iterdir():
        pixels = _scaled(photo, longest)
        cv2.imwrite(str(tmp_path / f"{photo.stem}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])
    _, out, _ = evaluate(tmp_path / "pairs.csv", "--json")
    points = {point["threshold"]: point for point in document_of(out)["thresholds"]}
    measured = [points[at]["true_match_rate"]["count"] for at in (0.2, 0.3, 0.4, 0.5, 0.6)]
    page = (ROOT / "docs/how-to/thresholds.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith(f"| {row} |"))
    assert [int(cell) for cell in line.split("|")[2:7]] == measured
    assert points[0.2]["false_match_rate"]["count"] == 0
