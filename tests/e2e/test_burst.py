"""The service on Kubernetes: a burst is scaled up, processed and scaled to zero, whatever happens to its pods."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from demo.album import Album
from demo.images import ImageServer
from tests.e2e.backends import Backends
from tests.e2e.site import CHART, Object, Site, wait

PROCESS = "app.kubernetes.io/component=process"
BURST = 12
BURST_SECONDS = 240.0


@pytest.fixture(autouse=True)
def _needs_keda(site: Site) -> None:
    if site.no_keda:
        pytest.skip(site.no_keda)


@dataclass(frozen=True)
class Burst:
    """Uploads many photos at once, like the API."""

    backends: Backends
    images: ImageServer
    album: Album

    def upload(self, count: int = BURST) -> list[str]:
        """Upload `count` photos, repeating those of the album, and return their ids."""
        names = [photo.name for photo in self.album.photos]
        urls = {f"{number}": self.images.url(names[number % len(names)]) for number in range(count)}
        return list(self.backends.api.upload(urls).values())

    def is_complete(self, photos: list[str]) -> bool:
        """Return whether every photo is processed, and no job is left in Redis."""
        statuses = self.backends.api.statuses()
        ended = all(statuses[photo] in {"READY", "NO_FACES_FOUND"} for photo in photos)
        return ended and not self.backends.leftovers()


@pytest.fixture(scope="module")
def slow_images(site: Site, album: Album) -> Iterator[ImageServer]:
    """Slow images, so that the tests can disturb a pod while it works."""
    photos = {photo.name: photo.data for photo in album.photos}
    with ImageServer(photos, host=site.host, seconds=4.0) as server:
        yield server


@pytest.fixture
def burst(backends: Backends, slow_images: ImageServer, album: Album) -> Burst:
    return Burst(backends, slow_images, album)


def _jobs(site: Site, namespace: str) -> list[Object]:
    return site.get("jobs", "--namespace", namespace, "--selector", PROCESS)


def _pods(site: Site, namespace: str, phase: str = "Running") -> list[Object]:
    selector = ("--selector", PROCESS, "--field-selector", f"status.phase={phase}")
    return site.get("pods", "--namespace", namespace, *selector)


def _unfinished(site: Site, namespace: str) -> list[str]:
    def finished(job: Object) -> bool:
        conditions = job["status"].get("conditions") or []
        return any(item["type"] in {"Complete", "Failed"} and item["status"] == "True" for item in conditions)

    return [job["metadata"]["name"] for job in _jobs(site, namespace) if not finished(job)]


def _assert_completion_and_scale_to_zero(site: Site, namespace: str, burst: Burst, photos: list[str]) -> None:
    wait(lambda: burst.is_complete(photos), "every photo to be processed, and no job left in Redis", BURST_SECONDS)
    wait(lambda: not _unfinished(site, namespace), "the Jobs to end", 60)
    assert not _pods(site, namespace), "the pool is not scaled to zero"
    failed = [job["metadata"]["name"] for job in _jobs(site, namespace) if job["status"].get("succeeded") != 1]
    assert not failed


def _summaries(site: Site, namespace: str) -> list[dict[str, Any]]:
    """Return the termination messages of the pods that succeeded."""
    ended = [
        status["state"]["terminated"]
        for pod in _pods(site, namespace, "Succeeded")
        for status in pod["status"]["containerStatuses"]
    ]
    return [json.loads(state["message"]) for state in ended]


def test_a_burst_is_scaled_up_processed_and_scaled_to_zero(
    site: Site, namespace: str, release: str, burst: Burst
) -> None:
    assert _jobs(site, namespace) == []
    backends, photos = burst.backends, burst.upload()
    most = wait(lambda: len(_jobs(site, namespace)), "a Job")
    _assert_completion_and_scale_to_zero(site, namespace, burst, photos)
    count = len(_jobs(site, namespace))
    assert most <= count <= 4, "more than ceil(12 / 4) Jobs, plus one for a poll between two claims"
    summaries = _summaries(site, namespace)
    assert sum(summary["photos"] for summary in summaries) == BURST
    assert all(summary["unsettled"] == 0 for summary in summaries)

    # A guest's comparison, while no pod runs, starts one for the other list.
    selfie = burst.album.selfies[0]
    job = backends.api.compare(selfie.data, photos)
    wait(lambda: backends.api.result(job), "the guest's photos", 60)
    log = site.kubectl(
        "--namespace", namespace, "logs", "--selector", "app.kubernetes.io/component=compare", "--tail", "-1"
    )
    lines = [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
    (answered,) = [line for line in lines if line.get("comparison") == job]
    assert {"pod", "job", "node", "lease", "queue", "outcome"} <= answered.keys()
    assert answered["pod"].startswith(f"{release}-compare-")
    assert answered["job"] == answered["pod"].rpartition("-")[0]


def test_a_killed_pod_loses_no_job(site: Site, namespace: str, release: str, burst: Burst) -> None:
    photos = burst.upload()
    wait(lambda: _pods(site, namespace) and burst.backends.leftovers().get("process leased"), "a pod with leased jobs")
    names = [found["metadata"]["name"] for found in _pods(site, namespace)]
    site.kubectl("--namespace", namespace, "delete", "pod", names[0], "--grace-period=0", "--force")
    _assert_completion_and_scale_to_zero(site, namespace, burst, photos)
    assert release


@pytest.mark.parametrize("strategy", ["immediate", "gradual"])
def test_an_upgrade_during_a_burst_replaces_running_jobs_or_leaves_them_alone(
    site: Site, namespace: str, values: dict[str, Any], burst: Burst, strategy: str
) -> None:
    queues = {
        "process": values["queues"]["process"] | {"rollout": {"strategy": strategy}},
        "compare": {"enabled": False},
    }
    changed = copy.deepcopy(values | {"queues": queues})
    site.helm("install", "party", str(CHART), "--namespace", namespace, "--wait", values=changed)
    photos = burst.upload()
    wait(lambda: _pods(site, namespace), "a running pod")
    before = {pod["metadata"]["name"] for pod in _pods(site, namespace)}
    changed["podLabels"] = {"generation": "second"}
    site.helm("upgrade", "party", str(CHART), "--namespace", namespace, values=changed)
    _assert_completion_and_scale_to_zero(site, namespace, burst, photos + burst.upload())
    ended = {pod["metadata"]["name"]: pod for pod in _pods(site, namespace, "Succeeded")}
    assert (before <= ended.keys()) is (strategy == "gradual")
    assert any(pod["metadata"]["labels"].get("generation") == "second" for pod in ended.values())


def test_draining_a_node_loses_no_job_and_fails_no_job(site: Site, namespace: str, release: str, burst: Burst) -> None:
    if site.no_drain:
        pytest.skip(site.no_drain)
    photos = burst.upload()
    wait(lambda: _pods(site, namespace) and burst.backends.leftovers().get("process leased"), "a pod with leased jobs")
    node = _pods(site, namespace)[0]["spec"]["nodeName"]
    selector = f"app.kubernetes.io/instance={release}"
    try:
        flags = ("--force", "--delete-emptydir-data", "--timeout=90s")
        assert "evicted" in site.kubectl("drain", node, "--pod-selector", selector, *flags)
    finally:
        site.kubectl("uncordon", node)  # it may be the only one
    _assert_completion_and_scale_to_zero(site, namespace, burst, photos)
    assert not any(job["status"].get("failed") for job in _jobs(site, namespace)), "a disruption counted as a failure"


def test_a_lost_node_loses_no_job(site: Site, namespace: str, release: str, burst: Burst) -> None:
    """The node vanishes with its pods, as in a power cut, and the cloud's controller then removes the Node."""
    if site.control_plane is None:
        pytest.skip("only nodes of the tests' own control plane are killed")
    photos = burst.upload()
    wait(lambda: _pods(site, namespace) and burst.backends.leftovers().get("process leased"), "a pod with leased jobs")
    node = _pods(site, namespace)[0]["spec"]["nodeName"]
    site.control_plane.daemons[node].kill()
    site.kubectl("delete", "node", node, "--wait=false")
    try:
        wait(lambda: burst.is_complete(photos), "the other pods to process every photo", BURST_SECONDS)
    finally:
        site.start_node(node)
    assert release


def test_a_node_that_hangs_does_not_block_its_list(
    site: Site, namespace: str, values: dict[str, Any], burst: Burst
) -> None:
    """Its Node stays, so its pod is terminating and its Job unfinished until the node is back."""
    if site.control_plane is None:
        pytest.skip("only nodes of the tests' own control plane are killed")
    queues = {"process": values["queues"]["process"] | {"unreachableSeconds": 2}, "compare": {"enabled": False}}
    site.helm("install", "party", str(CHART), "--namespace", namespace, "--wait", values=values | {"queues": queues})
    photos = burst.upload(4)  # one Job
    wait(lambda: _pods(site, namespace) and burst.backends.leftovers().get("process leased"), "a pod with leased jobs")
    (hung,) = _unfinished(site, namespace)
    node = _pods(site, namespace)[0]["spec"]["nodeName"]
    site.control_plane.daemons[node].kill()
    try:
        wait(lambda: burst.is_complete(photos), "another Job to process every photo", BURST_SECONDS)
        assert hung in _unfinished(site, namespace), "the node does not hang"
        assert len(_jobs(site, namespace)) == 2
    finally:
        site.start_node(node)
    wait(lambda: not _unfinished(site, namespace), "the Job of the node that is back")
