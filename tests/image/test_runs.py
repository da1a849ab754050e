"""Runs in containers of the image, restricted like a pod, with a real Redis and a real PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import cv2
import pytest

from demo import api
from demo.album import Album, jpeg, landscape
from demo.images import ImageServer
from runner.cli import COMMANDS
from tests.support.containers import Cluster, wait_until
from tools.image_base import Limits

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]

TERMINATION_SECONDS = 10
OOM_KILLED = 137
TOO_LITTLE = Limits(memory="200m")


@pytest.fixture(scope="module")
def huge() -> Iterator[ImageServer]:
    """A photo of 99 megapixels, 296 MB decoded: more than TOO_LITTLE, and within the usual limit."""
    with ImageServer({"huge.jpg": jpeg(cv2.resize(landscape(), (12200, 8100)), quality=60)}) as server:
        yield server


def test_a_new_database_is_migrated_filled_and_matched(
    empty_cluster: Cluster, album: Album, images: ImageServer
) -> None:
    cluster, service = empty_cluster, empty_cluster.service
    api.create_table(service.connection)
    assert cluster.command("run").code == 3, "the missing schema was not noticed"
    assert cluster.command("migrate").code == 0
    checked = cluster.command("doctor")
    assert checked.code == 0, checked.output
    uploaded = service.api.upload({photo.name: images.url(photo.name) for photo in album.photos})
    ended = cluster.command("run")
    assert ended.code == 0, ended.errors
    assert ended.summary["claimed"] == len(album.photos)
    names = {photo_id: name for name, photo_id in uploaded.items()}
    assert {names[photo]: status for photo, status in service.api.statuses().items()} == {
        photo.name: photo.status for photo in album.photos
    }
    jobs = {selfie: service.api.compare(selfie.data, list(names)) for selfie in album.selfies}
    assert cluster.command("run", "--queues", "compare").summary["comparisons"] == len(jobs)
    for selfie, job in jobs.items():
        matched = [names[photo_id] for photo_id in service.api.result(job) or []]
        assert matched == album.expectation(selfie), selfie.name
    assert set(service.leftovers()) <= {"process dead"}  # the broken photos


@pytest.mark.parametrize("user", ["1000650000:0", "7:7"])
def test_the_image_runs_as_any_user(cluster: Cluster, images: ImageServer, user: str) -> None:
    cluster.service.api.upload({"team.jpg": images.url("team.jpg")})
    ended = cluster.command("run", limits=Limits(user=user))
    assert (ended.code, ended.summary["succeeded"]) == (0, 1), ended.errors


def test_sigterm_ends_a_run_in_time_and_releases_jobs_that_had_not_started(
    cluster: Cluster, album: Album, images: ImageServer
) -> None:
    jobs = 40
    for _ in range(jobs):
        cluster.service.api.upload({"twelve megapixels.jpg": images.url("twelve megapixels.jpg")})
    container = cluster.start("run", "--max-jobs", str(jobs))
    wait_until(lambda: "READY" in cluster.service.api.statuses().values(), "a photo is READY")
    container.terminate()
    sent = time.monotonic()
    ended = container.wait()
    assert time.monotonic() - sent < TERMINATION_SECONDS
    assert ended.code == 0, ended.errors
    assert ended.summary["exit_reason"] == "signal"
    assert ended.summary["claimed"] < jobs
    assert ended.summary["claimed"] == ended.summary["succeeded"] + ended.summary["released"]

    started = time.monotonic()
    ended = cluster.command("run", "--max-jobs", str(jobs))
    assert (ended.code, ended.summary["retried"]) == (0, 0), ended.errors
    assert set(cluster.service.api.statuses().values()) == {"READY"}
    assert cluster.service.leftovers() == {}
    assert time.monotonic() - started < 120, "the next run had to wait for the released leases"


def test_sigterm_ends_a_run_that_waits_for_jobs(cluster: Cluster) -> None:
    container = cluster.start("run", "--idle-seconds", "120", RUNNER_LOG_LEVEL="debug")
    wait_until(lambda: int(cluster.service.redis.info("clients")["connected_clients"]) > 1, "the run is connected")
    time.sleep(0.5)
    container.terminate()
    sent = time.monotonic()
    ended = container.wait()
    assert (ended.code, ended.summary["exit_reason"], ended.summary["claimed"]) == (0, "signal", 0), ended.errors
    assert time.monotonic() - sent < TERMINATION_SECONDS


def test_the_next_container_finishes_the_jobs_of_an_oom_killed_one(
    cluster: Cluster, images: ImageServer, huge: ImageServer
) -> None:
    uploaded = cluster.service.api.upload({"team.jpg": images.url("team.jpg"), "huge.jpg": huge.url("huge.jpg")})
    killed = cluster.command("run", limits=TOO_LITTLE, RUNNER_LEASE_SECONDS="3")
    assert killed.code == OOM_KILLED, killed.errors
    assert cluster.service.leftovers()["process leased"] >= 1, "the leases did not outlive the container"
    ended = cluster.command("run", RUNNER_LEASE_SECONDS="3")
    assert ended.code == 0, ended.errors
    statuses = cluster.service.api.statuses()
    assert {name: statuses[photo_id] for name, photo_id in uploaded.items()} == {
        "team.jpg": "READY",
        "huge.jpg": "NO_FACES_FOUND",
    }
    assert cluster.service.leftovers() == {}


def test_a_replacement_pod_of_the_same_job_takes_over_its_leases_at_once(cluster: Cluster, huge: ImageServer) -> None:
    cluster.service.api.upload({"huge.jpg": huge.url("huge.jpg")})
    killed = cluster.command("run", limits=TOO_LITTLE, RUNNER_OWNER="job-7", RUNNER_LEASE_SECONDS="600")
    assert killed.code == OOM_KILLED, killed.errors
    started = time.monotonic()
    ended = cluster.command("run", RUNNER_OWNER="job-7", RUNNER_LEASE_SECONDS="600")
    assert (ended.code, ended.summary["succeeded"]) == (0, 1), ended.errors
    assert time.monotonic() - started < 60


def test_every_command_starts_in_the_image(cluster: Cluster) -> None:
    for name in COMMANDS:
        ended = cluster.command(name, "--help")
        assert (ended.code, ended.errors) == (0, ""), name
        assert f"spottmee-worker {name}" in ended.output


@pytest.mark.parametrize("arguments", [("models", "bake", "--pack", "buffalo_sc"), ("models", "verify")])
def test_baking_in_the_image_fails_with_what_to_do_instead(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    ended = cluster.command(*arguments)
    assert ended.code == 4
    assert "InsightFace is not installed" in ended.errors
    assert "Traceback" not in ended.errors


def test_logs_are_json_lines_and_the_summary_is_the_last_line(cluster: Cluster, images: ImageServer) -> None:
    cluster.service.api.upload({"team.jpg": images.url("team.jpg")})
    ended = cluster.command("run", RUNNER_LOG_FORMAT="auto")
    assert ended.log
    assert len(ended.output.splitlines()) == 1
    assert json.loads(ended.output)["photos"] == 1


def test_an_unreachable_server_is_named_by_its_setting(cluster: Cluster) -> None:
    ended = cluster.command("run", REDIS_URL="redis://127.0.0.1:1/0", RUNNER_CONNECT_TIMEOUT_SECONDS="1")
    assert ended.code == 75
    assert "Redis is unavailable (REDIS_URL)" in ended.errors


def test_a_running_container_can_be_inspected(cluster: Cluster, images: ImageServer) -> None:
    """With `inspect` and `doctor` inside, as by `kubectl exec`, and `status` in a container of its own."""
    for _ in range(40):
        cluster.service.api.upload({"twelve megapixels.jpg": images.url("twelve megapixels.jpg")})
    container = cluster.start("run", "--max-jobs", "40")
    wait_until(lambda: cluster.service.leftovers().get("process leased", 0) > 0, "a job is leased")
    seen = json.loads(container.execute("spottmee-worker", "inspect", "--json"))
    assert seen["leases"], seen
    assert "ok" in container.execute("spottmee-worker", "doctor")
    status = cluster.command("status", "--json")
    assert status.code == 0, status.errors
    assert json.loads(status.output)["queues"].keys() == {"compare", "process"}
    container.terminate()
    assert container.wait().code == 0


def test_debug_without_a_cluster_says_so(cluster: Cluster) -> None:
    ended = cluster.command("debug", "--dry-run", "--job", '{"id": "x", "imageUrl": "https://example.com/x.jpg"}')
    assert ended.code == 6
    assert "Traceback" not in ended.errors
    assert "cluster" in ended.errors
