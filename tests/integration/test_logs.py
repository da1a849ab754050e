"""The log of a real run, and the queries that the documentation shows for it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import material
from demo.images import ImageServer
from tests.support.pages import blocks, shell_blocks
from tools.prose import ROOT

if TYPE_CHECKING:
    from tests.support.run_tools import Service

PAGE = ROOT / "docs/how-to/logs.md"
ORIGIN = {"POD_NAME": "pod-1", "JOB_NAME": "job-1", "NODE_NAME": "node-1"}
# Fields that a log collector adds.
STREAM_LABELS = {"namespace", "container"}

Query = Callable[[str], list[Any]]


@pytest.fixture
def log(service: Service, tmp_path: Path) -> Path:
    """A run of two good photos, two bad ones and a comparison, as `kubectl logs` prints it."""
    photo = material.first_photo()
    with ImageServer({"first.jpg": photo, "broken.jpg": b"\xff\xd8\xff\xe0broken"}) as images:
        urls = {name: images.url(name) for name in ("first.jpg", "broken.jpg", "missing.jpg")}
        photos = service.api.upload({**urls, "again.jpg": urls["first.jpg"]})
        service.api.compare(photo, list(photos.values()))
        ended = service.run(RUNNER_ALBUM_TIMEOUT_SECONDS="0", **ORIGIN)
    file = tmp_path / "run.log"
    file.write_text(f"a line of the container runtime\n{ended.errors}{ended.output}", encoding="utf-8")
    return file


@pytest.fixture
def query(log: Path) -> Query:
    """Return the output of the page's query about a topic for the log."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed (tests/integration/apt.txt)")
    commands = [block.text for block in shell_blocks(PAGE) if block.text.startswith("jq ")]
    known = next(line for line in lines(log) if line.get("outcome") == "succeeded" and "photo" in line)

    def run(part: str) -> list[Any]:
        (command,) = (command for command in commands if part in command)
        command = command.replace("PHOTO_ID", known["photo"])
        done = subprocess.run(["/bin/bash", "-c", command], cwd=log.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()[1:]]


def flattened(document: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of the labels that Loki's `json` makes."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}"


def test_the_jq_queries_answer_what_the_documentation_says(query: Query) -> None:
    failed = query("select(.error)")
    assert {one["code"] for one in failed} == {"image_undecodable", "image_missing"}
    assert all(one["id"] and one["outcome"] == "dead_lettered" for one in failed)

    outcomes = {(one["event"], one["outcome"], one["code"]): one["jobs"] for one in query("group_by([.event")}
    assert outcomes == {
        ("photo", "succeeded", None): 2,
        ("photo", "dead_lettered", "image_undecodable"): 1,
        ("photo", "dead_lettered", "image_missing"): 1,
        ("comparison", "succeeded", None): 1,
    }

    (durations,) = query("| .duration_ms]")
    assert durations["jobs"] == 3
    assert 0 < durations["p50"] <= durations["p95"] <= durations["max"]

    stages = {one["stage"]: one["mean_ms"] for one in query("stage_ms")}
    assert stages.keys() == {"fetch", "decode", "faces", "store"}
    assert all(mean >= 0 for mean in stages.values())

    (run,) = query("per_second")
    assert (run["photos"], run["exit_reason"]) == (2, "empty")
    assert run["per_second"] > 0

    (found,) = query("--arg id")
    assert found["outcome"] == "succeeded"


def test_every_jq_query_of_the_documentation_is_tested() -> None:
    assert len([block for block in shell_blocks(PAGE) if block.text.startswith("jq ")]) == 6


def test_the_fields_of_the_loki_queries_are_in_the_log(log: Path) -> None:
    (queries,) = (block.text for block in blocks(PAGE) if block.language == "logql")
    code = re.sub(r"(?m)^#.*$|\"[^\"]*\"", "", queries)
    compared = set(re.findall(r"([a-z_]+) ?(?:=~|!=|=)", code))
    grouped = {name.strip() for names in re.findall(r"by \(([^)]*)\)", code) for name in names.split(",")}
    used = compared | grouped | set(re.findall(r"unwrap ([a-z_]+)", code))
    assert {"error_code", "outcome", "duration_ms", "stage_ms_faces", "photo"} <= used
    there = {name for line in lines(log) for name in flattened(line)}
    assert used - STREAM_LABELS <= there


def test_the_documented_fields_are_those_of_a_line(log: Path) -> None:
    table = re.search(r"\| field \|.*?\n\n", PAGE.read_text("utf-8"), re.DOTALL)
    assert table is not None
    rows = table[0].strip().splitlines()[2:]
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    written = {name for line in lines(log) if "event" in line for name in line}
    assert written - documented <= {"faces_found", "reason", "pending", "matches", "complete"}
    assert documented <= written
