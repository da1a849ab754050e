"""`debug` and `status` against a real API server, from the template in the cluster to the Job's removal."""

from __future__ import annotations

import base64
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from demo.album import Album
from demo.images import ImageServer
from tests.e2e.backends import Backends
from tests.e2e.roles import role
from tests.e2e.site import CHART, Site, wait

DEBUG = "app.kubernetes.io/component=debug"


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """The same release, but only debug runs take jobs."""
    quiet = copy.deepcopy(values)
    for name in ("process", "compare"):
        quiet["queues"][name]["paused"] = True
    return quiet


@pytest.fixture
def release_site(site: Site, namespace: str, release: str) -> tuple[Site, str]:
    """The site and the namespace in which the chart is installed."""
    return site, namespace


def _leftovers(site: Site, namespace: str) -> list[str]:
    """Return what is left of debug runs; what is being deleted is given its time."""
    deadline = time.monotonic() + 30
    while True:
        items = site.get("jobs,secrets,pods", "--namespace", namespace, "--selector", DEBUG)
        if not items or time.monotonic() > deadline:
            return [f"{item['kind']} {item['metadata']['name']}" for item in items]
        time.sleep(0.25)


def test_a_debug_run_does_one_job_and_cleans_up(
    site: Site, namespace: str, release: str, backends: Backends, images: ImageServer
) -> None:
    photos = backends.api.upload({name: images.url(name) for name in ("office.png", "Cleo & friends.jpg")})
    wanted = photos["Cleo & friends.jpg"]
    before = backends.leftovers()
    done = site.worker("debug", "--photo", wanted, "-n", namespace, "--json", REDIS_URL=backends.redis_url)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["outcome"], outcome["phase"], outcome["exit_code"]) == ("succeeded", "Complete", 0)
    assert outcome["summary"]["photos"] == 1
    assert outcome["job"].startswith(f"{release}-debug-")
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"time"')]
    assert [line["photo"] for line in logged if line.get("outcome")] == [wanted], "its log was followed"
    assert backends.api.statuses() == {photos["office.png"]: "UPLOADED", wanted: "READY"}
    assert backends.leftovers() == before, "the lists are as they were"
    assert _leftovers(site, namespace) == []


def test_a_selfie_of_megabytes_reaches_the_job_and_is_seen_nowhere(
    release_site: tuple[Site, str], backends: Backends, images: ImageServer, album: Album
) -> None:
    site, namespace = release_site
    photos = backends.api.upload({"Cleo & friends.jpg": images.url("Cleo & friends.jpg")})
    site.worker("debug", "--photo", *photos.values(), "-n", namespace, REDIS_URL=backends.redis_url)
    selfie = next(selfie.data for selfie in album.selfies if selfie.person == "Cleo")
    # What follows the end of a JPEG is not looked at; this makes three Secrets of it.
    large = base64.b64encode(selfie + b"\xff\xd9" + os.urandom(1_500_000) + b"\xff\xd9").decode()
    payload = json.dumps({"jobId": "guest", "storedIds": list(photos.values()), "selfie": large, "threshold": None})
    done = site.worker("debug", "--job", "-", "-n", namespace, "--keep", "--json", text=payload)
    assert done.returncode == 0, done.stderr
    assert backends.api.result("guest") == list(photos.values())
    sample = large[5000:5080]
    everything = site.kubectl("get", "jobs,pods,events", "--namespace", namespace, "--output", "yaml")
    assert sample not in everything + done.stdout + done.stderr
    name = json.loads(done.stdout)["job"]
    assert site.get("secrets", "--namespace", namespace, "--selector", DEBUG) == [], "--keep keeps no payload"
    assert f"describe job {name}" in done.stderr
    site.kubectl("delete", "job", name, "--namespace", namespace)


def test_a_job_that_fails_says_why(site: Site, namespace: str, release: str, backends: Backends) -> None:
    backends.connection.execute("INSERT INTO \"Photo\" (id) VALUES ('there')")
    done = site.worker("debug", "--photo", "gone", "--url", "http://127.0.0.1:1/x.jpg", "-n", namespace)
    assert (done.returncode, done.stdout.partition(":")[0]) == (5, "gone")
    done = site.worker("debug", "--photo", "there", "--url", "file:///etc/passwd", "-n", namespace)
    assert done.returncode == 5
    assert done.stdout.startswith("buried: The image URL is not one that this runner may fetch")
    assert backends.api.statuses()["there"] == "FAILED"
    assert _leftovers(site, namespace) == []
    assert release


def test_a_configuration_error_is_told_by_exit_code_and_reason(
    site: Site, namespace: str, values: dict[str, Any]
) -> None:
    values["settings"]["RUNNER_MODEL_DIR"] = "/nonexistent"
    site.helm("install", "party", str(CHART), "--namespace", namespace, values=values)
    done = site.worker("debug", "--photo", "x", "--url", "http://127.0.0.1:1/x.jpg", "-n", namespace, "--json")
    assert done.returncode == 5, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["outcome"], outcome["phase"], outcome["exit_code"]) == ("failed", "Failed", 4)
    site.helm("uninstall", "party", "--namespace", namespace)


def test_an_image_that_cannot_be_pulled_is_waited_for_no_longer_than_asked(
    site: Site, namespace: str, values: dict[str, Any]
) -> None:
    values["image"]["repository"] = "registry.invalid/nothing"
    values["migration"]["enabled"] = False
    site.helm("install", "party", str(CHART), "--namespace", namespace, values=values)
    arguments = ("debug", "--photo", "x", "--url", "http://x/y.jpg", "-n", namespace, "--timeout", "8")
    done = site.worker(*arguments)
    assert done.returncode == 6
    assert "--timeout" in done.stderr
    assert "Pull" in done.stderr
    assert "Traceback" not in done.stderr
    assert _leftovers(site, namespace) == []
    site.helm("uninstall", "party", "--namespace", namespace)


def test_ctrl_c_cleans_up(site: Site, namespace: str, values: dict[str, Any]) -> None:
    values["image"]["repository"] = "registry.invalid/nothing"
    values["migration"]["enabled"] = False
    site.helm("install", "party", str(CHART), "--namespace", namespace, values=values)
    command = [sys.executable, "-m", "runner", "debug", "--photo", "x", "--url", "http://x/y.jpg", "-n", namespace]
    with subprocess.Popen(
        command, env={**os.environ, "KUBECONFIG": str(site.kubeconfig)}, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # created
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert _leftovers(site, namespace) == []
    site.helm("uninstall", "party", "--namespace", namespace)


def test_without_a_template_or_rights_it_says_what_to_do(
    site: Site, namespace: str, release: str, tmp_path: Path
) -> None:
    job = ("debug", "--photo", "x", "--url", "http://x/y.jpg")
    absent = site.worker(*job, "-n", "default")
    assert (absent.returncode, "debug.enabled" in absent.stderr) == (6, True)
    other = site.worker(*job, "-n", namespace, "--release", "another")
    assert (other.returncode, "of release another" in other.stderr) == (6, True)

    account = f"system:serviceaccount:{namespace}:helper"
    site.kubectl("create", "serviceaccount", "helper", "--namespace", namespace)
    kubeconfig = str(_as_account(site, namespace, tmp_path))
    forbidden = site.worker(*job, "-n", namespace, KUBECONFIG=kubeconfig)
    assert forbidden.returncode == 6
    assert "`list cronjobs` is forbidden" in forbidden.stderr
    assert "docs/how-to/debugging.md" in forbidden.stderr
    lists = site.worker("status", "-n", namespace, KUBECONFIG=kubeconfig)
    assert "forbidden" in lists.stdout

    site.kubectl("create", "--namespace", namespace, "-f", "-", text=role())
    binding = ("rolebinding", "helper", "--role", "spottmee-worker-debug", f"--serviceaccount={namespace}:helper")
    site.kubectl("create", *binding, "--namespace", namespace)
    wait(
        lambda: "yes" in site.kubectl("auth", "can-i", "create", "jobs", "-n", namespace, "--as", account, check=False),
        "it",
    )
    allowed = site.worker(*job, "-n", namespace, KUBECONFIG=kubeconfig)
    assert allowed.returncode == 0, allowed.stderr
    assert release


def _as_account(site: Site, namespace: str, folder: Path) -> Path:
    """Return a kubeconfig of the service account `helper`."""
    token = site.kubectl("create", "token", "helper", "--namespace", namespace).strip()
    document = json.loads(site.kubectl("config", "view", "--raw", "--output", "json"))
    for user in document["users"]:
        user["user"] = {"token": token}
    path = folder / "helper"
    path.write_text(json.dumps(document))
    return path


def test_a_run_by_hand_from_the_template(
    site: Site, namespace: str, release: str, backends: Backends, images: ImageServer
) -> None:
    photos = backends.api.upload({name: images.url("office.png") for name in ("first", "second")})
    site.kubectl("--namespace", namespace, "create", "job", "debug-1", f"--from=cronjob/{release}-debug")
    site.kubectl("--namespace", namespace, "wait", "--for=condition=Complete", "job/debug-1", "--timeout=90s")
    selector = "batch.kubernetes.io/job-name=debug-1"
    path = "{.items[0].status.containerStatuses[0].state.terminated.message}"
    message = site.kubectl("-n", namespace, "get", "pods", "--selector", selector, "--output", f"jsonpath={path}")
    assert (json.loads(message)["claimed"], json.loads(message)["reason"]) == (1, "max_jobs")
    assert backends.api.statuses() == {photos["first"]: "READY", photos["second"]: "UPLOADED"}
    site.kubectl("--namespace", namespace, "delete", "job", "debug-1")


def test_dry_run_prints_what_the_server_accepts_and_no_payload(site: Site, namespace: str, release: str) -> None:
    arguments = ("debug", "--photo", "x", "--url", "http://secret/y.jpg", "--dry-run", "-n", namespace)
    done = site.worker(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    job, secret = json.loads(done.stdout)["items"]
    assert "secret/y" not in done.stdout
    assert list(secret["data"].values()) == ["<46 bytes, not shown: it may hold a selfie>"]
    said = site.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-", text=json.dumps(job)
    )
    assert "created" in said
    rendered = site.helm("template", release, str(CHART), "--namespace", namespace)
    offline = site.worker(*arguments, "--template", "-", text=rendered, KUBECONFIG="/nonexistent")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.startswith("apiVersion: batch/v1\nkind: Job\n")


def test_status_shows_both_halves(
    site: Site, namespace: str, release: str, backends: Backends, images: ImageServer
) -> None:
    backends.api.upload({"office.png": images.url("office.png")})
    site.worker("debug", "--photo", "x", "--url", "http://x/y.jpg", "-n", namespace, "--keep")
    done = site.worker("status", "-n", namespace, "--json", REDIS_URL=backends.redis_url)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["queues"]["process"]["waiting"] == 1
    cluster = document["cluster"]
    assert cluster["namespace"] == namespace
    assert {job["name"] for job in cluster["scaled_jobs"]} == {f"{release}-process", f"{release}-compare"}
    (job,) = [job for job in cluster["jobs"] if job["component"] == "debug"]
    assert (job["phase"], job["release"], job["succeeded"]) == ("Complete", release, 1)
    (pod,) = [pod for pod in cluster["pods"] if pod["component"] == "debug"]
    assert (pod["phase"], pod["job"], pod["exit_code"]) == ("Succeeded", job["name"], 0)
    assert pod["summary"]["claimed"] == 1
    if not site.no_keda:
        paused = wait(lambda: _conditions(site, namespace, backends).get("Paused"), "KEDA's conditions")
        assert paused.startswith("True")
    text = site.worker("status", "-n", namespace, "--release", release, REDIS_URL=backends.redis_url).stdout
    assert f"{release}-process" in text
    assert job["name"] in text


def _conditions(site: Site, namespace: str, backends: Backends) -> dict[str, str]:
    done = site.worker("status", "-n", namespace, "--json", REDIS_URL=backends.redis_url)
    conditions: dict[str, str] = json.loads(done.stdout)["cluster"]["scaled_jobs"][0]["conditions"]
    return conditions
