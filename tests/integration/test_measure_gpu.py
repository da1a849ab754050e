"""tools/measure_gpu.py, up to the point where the device is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo.album import Album
from tools import measure_gpu


@pytest.fixture
def photos(album: Album, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in album.photos[:2]:
        (folder / photo.name.replace("/", "_")).write_bytes(photo.data)
    return folder


def test_without_a_gpu_only_the_cpu_is_measured(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    code = measure_gpu.main(["--photos", str(photos), "--repeat", "1", "--threads", "1", "--batch-sizes", "8",
                             "--out", str(out)])  # fmt: skip
    printed = capfd.readouterr()
    assert code == 75, printed.err
    _, _, header, rule, cpu = out.read_text().splitlines()
    assert header.startswith("| provider | threads | batch |")
    assert rule.count("---") == 9
    cells = [cell.strip() for cell in cpu.strip("|").split("|")]
    assert (cells[0], cells[6]) == ("cpu", "reference")
    assert float(cells[3]) > 0
    assert float(cells[4]) > 0
    assert int(cells[5]) > 0
    assert int(cells[7]) > 50
    assert "cuda" in printed.err


def test_a_folder_without_photos_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_gpu.main(["--photos", str(tmp_path)]) == 5
    assert f"{tmp_path} has no photo" in capsys.readouterr().err


def test_answers_are_compared_face_by_face() -> None:
    one, other = np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[2:]
    assert measure_gpu.lowest_cosine([one], [one[::-1]]) == 1
    assert measure_gpu.lowest_cosine([one], [other]) == 0
    assert measure_gpu.lowest_cosine([one], [one[:1]]) == 0, "a face is missing"
