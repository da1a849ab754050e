"""The simulation of KEDA and the pods, against cases that are calculated by hand and bursts on a real node."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runner.errors import UsageError
from runner.simulation.arrivals import DAY_CURVE, Arrivals, burst, day, from_csv
from runner.simulation.keda import SETTINGS, Machine, Setting, new_jobs
from runner.simulation.outcome import Criterion, recommend, simulate
from runner.simulation.play import play
from runner.simulation.plots import most_between
from runner.simulation.values import with_values
from tools.prose import ROOT

CHART = ROOT / "helm/spottmee-worker/values.yaml"
# One job a second, every delay a round number.
ROUND = Machine(throughput=1, job_latency=0, pod_delay=2, start_up=3, finish_delay=1)
SMALL = Setting(jobs_per_pod=10, polling_interval=10, max_replicas=5, max_jobs=100, max_seconds=1000)


def at(*seconds: float) -> Arrivals:
    return Arrivals("by hand", np.asarray(seconds, np.float64))


def done(arrivals: Arrivals, setting: Setting, machine: Machine = ROUND, offset: float = 0) -> list[float]:
    return [round(float(one), 6) for one in play(arrivals, setting, machine, offset=offset).done]


BESIDE = replace(SMALL, min_replicas=2, strategy="default")


@pytest.mark.parametrize(
    ("setting", "state", "expected"),
    [
        (SMALL, {"waiting": 25, "in_flight": 0, "unfinished": 0}, 3),
        (SMALL, {"waiting": 20, "in_flight": 5, "unfinished": 2}, 1),
        (SMALL, {"waiting": 0, "in_flight": 9, "unfinished": 1}, 0),
        (SMALL, {"waiting": 1000, "in_flight": 0, "unfinished": 2}, 3),  # up to maxReplicas
        (SMALL, {"waiting": 0, "in_flight": 0, "unfinished": 0}, 0),
        (SMALL, {"waiting": 1, "in_flight": 0, "unfinished": 3}, 0),  # never below zero
        (replace(SMALL, activation=5), {"waiting": 5, "in_flight": 0, "unfinished": 0}, 0),
        (replace(SMALL, activation=5), {"waiting": 6, "in_flight": 0, "unfinished": 0}, 1),
        (replace(SMALL, min_replicas=2), {"waiting": 0, "in_flight": 0, "unfinished": 1}, 1),
        (replace(SMALL, min_replicas=2), {"waiting": 1, "in_flight": 0, "unfinished": 2}, 0),  # for the warm ones
        (replace(SMALL, min_replicas=2), {"waiting": 1000, "in_flight": 0, "unfinished": 2}, 3),
        (BESIDE, {"waiting": 1, "in_flight": 0, "unfinished": 2}, 1),
        (BESIDE, {"waiting": 1000, "in_flight": 0, "unfinished": 2}, 5),
        (replace(SMALL, strategy="eager"), {"waiting": 30, "in_flight": 0, "unfinished": 1, "pending": 1}, 3),
    ],
)
def test_keda_creates_as_many_jobs_as_its_formula_says(setting: Setting, state: dict[str, int], expected: int) -> None:
    assert new_jobs(setting, **state) == expected


def test_a_job_waits_for_the_poll_the_pod_and_its_start() -> None:
    # Poll at 10, container at 12, claim at 15, done at 16.
    assert done(at(4), SMALL, offset=0) == [16]


def test_a_pod_takes_jobs_one_after_the_other_and_ends_when_none_waits() -> None:
    played = play(burst(3), SMALL, ROUND, offset=0)
    assert played.done.tolist() == [6, 7, 8]
    assert (played.jobs_created, played.pod_seconds, played.zero) == (1, 8, 9)


def test_a_poll_creates_a_pod_for_every_n_jobs() -> None:
    played = play(burst(20), SMALL, ROUND, offset=0)  # two pods from 5 on, ten jobs each
    assert (played.jobs_created, played.done.max(), played.pod_seconds) == (2, 15, 30)


def test_a_pod_that_has_reached_its_cap_is_replaced_at_a_later_poll() -> None:
    # The first pod does two jobs until 7 and leaves; its Job is finished at 8, and KEDA looks again at 10.
    assert done(burst(3), replace(SMALL, max_jobs=2)) == [6, 7, 16]


def test_a_pod_claims_nothing_after_its_maximum_time() -> None:
    # The run begins at 2: its time is up at 7, after the second job.
    assert done(burst(3), replace(SMALL, max_seconds=5)) == [6, 7, 16]


def test_an_idle_pod_is_woken_by_a_push_until_its_time_is_up() -> None:
    # Done at 6; idle until 26. The push at 20 is claimed at once, that at 50 needs the poll and a new pod.
    played = play(at(0, 20, 50), replace(SMALL, idle_seconds=20), ROUND, offset=0)
    assert played.done.tolist() == [6, 21, 56]
    assert played.pod_seconds == 41 + 26


def test_pods_share_the_cpus_of_a_node() -> None:
    # Two pods with two CPUs each on one node with two: they start at once (one CPU each), and work at half speed.
    setting = replace(SMALL, cpu_request=1, cpu_limit=2)
    played = play(burst(20), setting, replace(ROUND, node_cpus=2, reserved_cpus=0), offset=0)
    assert played.done.max() == pytest.approx(25)


def test_a_pod_without_room_waits_until_another_exits() -> None:
    setting = replace(SMALL, max_jobs=10)
    played = play(burst(20), setting, replace(ROUND, node_cpus=1, reserved_cpus=0, nodes=1), offset=0)
    # cpu_limit 2 on one CPU: the start-up at full speed until 5, ten jobs at half speed until 25; then the second pod.
    assert played.done.tolist()[9::10] == pytest.approx([25, 50])
    assert played.assigned.tolist() == pytest.approx([0, 25])


def test_an_autoscaler_adds_a_node_for_pods_without_room() -> None:
    machine = replace(ROUND, node_cpus=2, reserved_cpus=0, max_nodes=2, node_delay=4)
    played = play(burst(40), replace(SMALL, max_replicas=4, cpu_limit=1), machine, offset=0)
    assert played.assigned.tolist() == [0, 0, 4, 4]


def test_warm_pods_take_jobs_at_once() -> None:
    setting = replace(SMALL, min_replicas=1, idle_seconds=1000)
    assert done(at(3), setting) == [4]


def test_a_pod_that_finds_no_job_exits_when_no_job_is_in_flight() -> None:
    # The first pod works from 3 to 7 and to 11; KEDA's second, of 5, can claim nothing at 8, and looks every 0.5 s.
    setting = replace(SMALL, jobs_per_pod=1, polling_interval=5)
    played = play(at(0, 1), setting, replace(ROUND, throughput=0.25, start_up=1), offset=0)
    assert played.done.tolist() == [7, 11]
    assert played.assigned.tolist() == [0, 5]
    assert played.left.tolist() == [11, 11]


def test_a_pod_that_has_worked_exits_while_others_work() -> None:
    played = play(burst(11), SMALL, ROUND, offset=0)  # the eleventh job is done from 10 to 11, by one of two pods
    assert played.left.tolist() == [11, 10]


def test_a_pattern_that_is_never_done_is_refused() -> None:
    with pytest.raises(UsageError, match="activationListLength"):
        play(burst(3), replace(SMALL, activation=10, polling_interval=600), ROUND, offset=0)


def test_a_pod_that_has_room_on_no_node_is_refused() -> None:
    with pytest.raises(UsageError, match=r"requests 1 CPUs, and a node has 1, of which 0.1"):
        play(burst(1), SMALL, Machine(node_cpus=1), offset=0)


def test_every_job_is_claimed_in_order_and_done_once() -> None:
    arrivals = day(3000, seed=1)
    for queue, setting in SETTINGS.items():
        played = play(arrivals, setting, Machine(), offset=0.3)
        assert len(played.claimed) == len(played.done) == 3000, queue
        assert (played.claimed >= arrivals.seconds).all()
        assert (np.diff(played.claimed) >= 0).all()
        assert (played.done - played.claimed >= 1 / 29).all()
        assert (played.left > played.assigned).all()


def test_the_defaults_are_those_of_the_chart() -> None:
    for queue, setting in SETTINGS.items():
        assert with_values(Setting(jobs_per_pod=1, max_replicas=1), CHART, queue) == setting


# What is recorded of real bursts and guests (docs/explanation/simulation.md), and the largest error that it states.
NODE = Machine(node_cpus=2, throughput=33)
BURSTS = {
    "one process": (Setting(100_000, 1, 1, 100_000), 11, 14, 0.10),
    "N 20, 6 replicas, 1 s": (Setting(20, 1, 6, 20), 29, 29, 0.20),
    "N 20, 6 replicas, 10 s": (Setting(20, 10, 6, 20), 40, 40, 0.20),
    "N 50, 20 replicas, 1 s": (Setting(50, 1, 20, 50), 22, 22, 0.20),
}


def drained(setting: Setting) -> float:
    (outcome,) = simulate(burst(400), [setting], NODE, lambda _: None)
    return outcome.drained


@pytest.mark.parametrize("name", BURSTS)
def test_bursts_take_as_long_as_on_the_real_node(name: str) -> None:
    setting, least, most, error = BURSTS[name]
    assert least * (1 - error) <= drained(setting) <= most * (1 + error)


@pytest.mark.parametrize(("interval", "median", "longest"), [(5, 3.78, 6.26), (1, 1.76, 2.75)])
def test_guests_from_idle_wait_as_long_as_on_the_real_node(interval: int, median: float, longest: float) -> None:
    moments = np.random.default_rng(0).random(200).cumsum() * 600
    setting = replace(SETTINGS["compare"], polling_interval=interval, idle_seconds=0)
    waits = play(at(*moments), setting, Machine(throughput=25), offset=0).waits
    assert np.median(waits) == pytest.approx(median, rel=0.10)
    assert waits.max() == pytest.approx(longest, rel=0.25)


def test_the_cheapest_setting_within_the_target_is_recommended() -> None:
    settings = [replace(SMALL, jobs_per_pod=jobs) for jobs in (1, 10, 100)]
    outcomes = simulate(burst(30), settings, replace(ROUND, start_up=0), lambda _: None)
    quick, middle, cheap = outcomes
    assert quick.p95 < middle.p95 < cheap.p95
    assert recommend(outcomes, None) == (quick, Criterion.QUICKEST)
    assert recommend(outcomes, 1000) == (min(outcomes, key=lambda one: one.pod_seconds), Criterion.TARGET)
    assert recommend(outcomes, 0.1) == (quick, Criterion.MISSED)


def test_a_burst_is_simulated_for_several_moments_between_two_polls() -> None:
    (outcome,) = simulate(burst(1), [SMALL], ROUND, lambda _: None)
    assert outcome.plays == 10
    assert outcome.p50 == pytest.approx(5 + 6)  # half an interval, and what follows
    assert outcome.longest == pytest.approx(9.5 + 6)


def test_a_day_follows_its_curve() -> None:
    seconds = day(240_000, seed=0).seconds
    counts, _ = np.histogram(seconds, 24, (0, 86_400))
    assert counts / 240_000 == pytest.approx(np.asarray(DAY_CURVE) / sum(DAY_CURVE), abs=0.003)
    assert (day(100, seed=1).seconds != day(100, seed=2).seconds).any()


def test_a_csv_file_gives_the_number_of_jobs_per_second(tmp_path: Path) -> None:
    file = tmp_path / "pushes.csv"
    file.write_text("\ufeffseconds,jobs\n\n20.5,1\n10,2\n11,0\n", encoding="utf-8")
    assert from_csv(file).seconds.tolist() == [0, 0, 10.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the first line must be seconds,jobs"),
        (b"jobs,seconds\n1,2\n", "the first line must be seconds,jobs"),
        (b"seconds,jobs\n1,x\n", "row 2: must be"),
        (b"seconds,jobs\n1,2\n-1,2\n", "row 3: must be"),
        (b"seconds,jobs\nnan,2\n", "row 2: must be"),
        (b"seconds,jobs\n1,2,3\n", "row 2: must be"),
        (b"seconds,jobs\n1\n", "row 2: must be"),
        (b"seconds,jobs\n1,99999999\n", "row 2: more than"),
        (b"seconds,jobs\n1,0\n", "has no jobs"),
        (b"\xff\xfe", "not a CSV file"),
    ],
)
def test_a_malformed_csv_file_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "pushes.csv"
    file.write_bytes(text)
    with pytest.raises(UsageError, match=message):
        from_csv(file)


def values(tmp_path: Path, document: Any) -> Path:
    file = tmp_path / "values.yaml"
    file.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return file


def test_values_override_the_charts(tmp_path: Path) -> None:
    resources = {"requests": {"cpu": "250m"}, "limits": {"cpu": 1.5}}
    queue = {"jobsPerPod": 7, "scalingStrategy": "eager", "resources": resources, "paused": True, "maxJobs": None}
    found = with_values(SMALL, values(tmp_path, {"queues": {"process": queue}}), "process")
    assert found == replace(SMALL, jobs_per_pod=7, strategy="eager", cpu_request=0.25, cpu_limit=1.5)
    assert with_values(SMALL, values(tmp_path, ""), "process") == SMALL


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not a YAML file"),
        ("[1]", "the file must be a mapping"),
        ({"queues": 1}, "queues must be a mapping"),
        ({"queues": {"process": {"jobsPerPod": "many"}}}, "queues.process.jobsPerPod must be a whole number of 1"),
        ({"queues": {"process": {"maxReplicas": 0}}}, "queues.process.maxReplicas must be a whole number of 1"),
        ({"queues": {"process": {"idleSeconds": True}}}, "queues.process.idleSeconds must be"),
        ({"queues": {"process": {"scalingStrategy": "custom"}}}, "must be one of accurate, default, eager"),
        ({"queues": {"process": {"resources": {"limits": {"cpu": "two"}}}}}, "limits.cpu must be a number of CPUs"),
    ],
)
def test_malformed_values_are_refused(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_values(SMALL, values(tmp_path, document), "process")


def test_a_plot_shows_every_peak_and_no_job_that_has_not_waited() -> None:
    moments = np.asarray([0.0, 10.0, 20.0])
    pushed, claimed = np.asarray([1.0, 2.0, 3.0, 12.0]), np.asarray([4.0, 5.0, 6.0, 12.0])
    assert most_between(pushed, claimed, moments).tolist() == [3, 0, 0]


def test_a_million_jobs_take_seconds() -> None:
    before = time.process_time()
    played = play(day(1_000_000, seed=0), SETTINGS["process"], Machine(), offset=1)
    assert time.process_time() - before < 30
    assert played.done.size == 1_000_000
