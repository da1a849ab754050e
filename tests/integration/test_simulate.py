"""`spottmee-worker simulate` on the command line: tables, JSON, the report, and what it rejects."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cli import main
from tests.support import forked

Simulate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str]) -> Simulate:
    """Run the command, and return its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(["simulate", *arguments])
        except SystemExit as refused:  # an argument that argparse refuses
            code = int(refused.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def document_of(simulate: Simulate, *arguments: str) -> dict[str, Any]:
    code, out, err = simulate(*arguments, "--json")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


def test_one_setting_is_a_table_with_every_assumption(simulate: Simulate) -> None:
    code, out, err = simulate("--burst", "400", "--node-cpus", "2")
    assert (code, err) == (0, "")
    title, heading, row, *rest = out.splitlines()
    assert title == "process: a burst of 400 jobs"
    assert heading.split()[:3] == ["JOBS/POD", "POLL", "MAX"]
    assert row.split()[:3] == ["200", "2", "20"]  # the chart's
    assert "recommended" not in out
    assert [line.split()[0] for line in rest] == [
        "assumed:", "--throughput", "--pod-delay", "--start-up", "--job-latency", "--finish-delay", "--node-delay",
        "--reserved-cpus", "--node-cpus",
    ]  # fmt: skip


def test_a_sweep_recommends_a_setting_and_writes_a_report(simulate: Simulate, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    code, out, _ = simulate(
        "--burst", "400", "--jobs-per-pod", "20,200", "--polling-interval", "1,10", "--target", "30",
        "--pod-hour-price", "0.1", "--html", str(report),
    )  # fmt: skip
    assert code == 0
    assert out.count("\n200 ") == out.count("\n20 ") == 2
    assert "COST" in out
    assert "recommended: jobsPerPod 200, pollingInterval" in out
    assert "p95 is within --target" in out
    page = report.read_text("utf-8")
    assert page.count("<svg") == 3
    assert page.count("<circle") == 4
    assert "http" not in page.replace("http-equiv", "")  # it loads nothing


def test_json_has_waits_pods_and_cost_of_every_setting(simulate: Simulate) -> None:
    document = document_of(simulate, "--burst", "400", "--max-replicas", "1,6", "--pod-hour-price", "3.6")
    first, second = document["outcomes"]
    assert (first["setting"]["max_replicas"], second["setting"]["max_replicas"]) == (1, 6)
    assert first["wait_seconds"]["p50"] <= first["wait_seconds"]["p95"] <= first["wait_seconds"]["max"]
    assert first["cost"] == pytest.approx(first["pod_seconds"] / 1000, rel=0.01)
    assert document["machine"]["throughput"] == 29
    assert document["recommended"] in (first["setting"], second["setting"])


def test_flags_override_values_and_values_override_the_chart(simulate: Simulate, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("queues: {compare: {jobsPerPod: 7, maxReplicas: 3, idleSeconds: 9}}\n", encoding="utf-8")
    document = document_of(
        simulate, "--day", "50", "--queue", "compare", "--values", str(values), "--max-replicas", "4"
    )
    (outcome,) = document["outcomes"]
    setting = outcome["setting"]
    assert (setting["jobs_per_pod"], setting["max_replicas"], setting["idle_seconds"]) == (7, 4, 9)
    assert setting["polling_interval"] == 1


def test_arrivals_of_a_csv_file_are_simulated(simulate: Simulate, tmp_path: Path) -> None:
    file = tmp_path / "pushes.csv"
    file.write_text("seconds,jobs\n0,100\n3600,50\n", encoding="utf-8")
    document = document_of(simulate, "--csv", str(file))
    assert document["jobs"] == 150
    assert document["outcomes"][0]["drained_seconds"] > 3600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --burst --day --csv is required"),
        (("--burst", "0"), "is not a whole number from 1"),
        (("--burst", "1", "--day", "1"), "not allowed with"),
        (("--burst", "99999999"), "--burst is at most 10,000,000 jobs"),
        (("--csv", "absent.csv"), "absent.csv cannot be read (--csv): No such file"),
        (("--burst", "1", "--values", "absent.yaml"), "absent.yaml cannot be read (--values)"),
        (("--burst", "1", "--jobs-per-pod", "1,,2"), "is not a whole number from 1"),
        (("--burst", "1", "--throughput", "0"), "must be a number greater than 0"),
        (("--burst", "1", "--node-cpus", "-1"), "must be a number of 0 or more"),
        (("--burst", "1", "--node-cpus", "1"), "raise --node-cpus"),
        (("--burst", "1", "--nodes", "2"), "need --node-cpus"),
        (("--burst", "1", "--node-cpus", "4", "--nodes", "2", "--max-nodes", "1"), "less than --nodes"),
        (("--burst", "1", "--cpu-request", "3"), "its limit is 2"),
        (("--burst", "1", "--jobs-per-pod", ",".join(map(str, range(1, 1002)))), "1,001 settings are too many"),
        (("--burst", "1", "--html", "absent/report.html"), "absent/report.html cannot be written (--html)"),
    ],
)
def test_bad_input_is_refused_with_exit_code_2(simulate: Simulate, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = simulate(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_values_file_without_yaml_says_what_to_install(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.cli.simulate._MISSING", "yaml")
    code, _, err = simulate("--burst", "1", "--values", "values.yaml")
    assert code == 2
    assert "pip install 'spottmee-worker[cluster]'" in err


def test_progress_is_shown_on_a_terminal() -> None:
    primary, secondary = pty.openpty()
    command = ["simulate", "--burst", "10", "--sweep", "--json"]
    done = forked.run(command, stderr=secondary, stdout=subprocess.DEVNULL, check=True, timeout=120)
    os.close(secondary)
    shown = os.read(primary, 65_536).decode()
    os.close(primary)
    assert done.returncode == 0
    assert "settings" in shown
