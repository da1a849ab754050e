"""`make demo`: its verdict, its files, and that no process is left, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from demo.album import jpeg, landscape
from runner.bake.samples import sample_photos


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},  # tests change the working directory
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _demo(*arguments: str) -> tuple[int, str, str]:
    process = _start(*arguments)
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def _started_by(marker: str) -> list[int]:
    """Return the processes whose environment carries the marker: the demonstration's and everything below it."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # ended in the meantime, or not ours
            continue
    return [pid for pid in found if pid != os.getpid()]


class _Page(HTMLParser):
    """Counts what the page shows, and notes what it would fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value and value[:5] != "data:"]


def test_every_match_is_the_expected_one(tmp_path: Path) -> None:
    code, output, errors = _demo("--out", str(tmp_path))
    assert code == 0, errors
    assert "every match and every status is as expected" in output
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert summary["passed"] is True
    assert summary["faults"] == []
    assert summary["runners_left"] == 0
    assert summary["most_runners"] > 1
    assert all(len(matches) > 1 for matches in summary["selfies"].values())
    assert sum(run["claimed"] for run in summary["runs"]) == summary["photos"] + len(summary["selfies"])
    page = _Page()
    page.feed((tmp_path / "report.html").read_text("utf-8"))
    assert page.fetched == []  # self-contained
    pictures = summary["photos"] - 2 + len(summary["selfies"]) + sum(len(m) for m in summary["selfies"].values())
    assert page.tags["img"] == pictures  # two photos of the album are not images
    assert page.tags["figure"] == pictures + 2
    assert page.tags["rect"] >= summary["faces"]


def test_own_photos_have_no_expected_results(tmp_path: Path) -> None:
    album = tmp_path / "my album"
    album.mkdir()
    (album / "group.jpg").write_bytes(sample_photos()["t1.jpg"].read_bytes())
    (album / "lake.jpg").write_bytes(jpeg(landscape(400, 300)))
    (album / "notes.txt").write_text("not a photo")
    out = tmp_path / "out"
    code, _, errors = _demo("--album", str(album), "--selfie", str(album / "group.jpg"), "--out", str(out))
    assert code == 0, errors
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["expected"] is False
    assert list(summary["selfies"]["group.jpg"]) == ["group.jpg"]
    assert summary["statuses"] == {"READY": 1, "NO_FACES_FOUND": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--album", "nowhere"], "ALBUM=nowhere is not a folder"),
        (["--album", "."], "contains no image"),
        (["--selfie", "x.jpg"], "needs an ALBUM"),
        (["--runners", "0"], "at least 1"),
        (["--out", "/proc/nothing"], "cannot be written"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = _demo(*arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_keeps_running(tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"SPOTTMEE_TEST={tmp_path}"
    monkeypatch.setenv("SPOTTMEE_TEST", str(tmp_path))
    process = _start("--out", str(tmp_path))
    assert process.stdout is not None
    for line in process.stdout:
        if "runners" in line and "runners 0" not in line:
            break
    assert len(_started_by(marker)) >= 3  # itself, Valkey, and the runners at least
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    deadline = time.monotonic() + 20
    while left := _started_by(marker):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
