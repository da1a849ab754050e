"""`debug` and `status` on a real API server, from the template in the cluster to the removal of the Job."""

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
    """The same release with both lists paused, so that only debug runs take jobs."""
    quiet = copy.deepcopy(values)
    for name in ("process", "compare"):
        quiet["queues"][name]["paused"] = True
    return quiet


@pytest.fixture
def release_site(site: Site, namespace: str, release: str) -> tuple[Site, str]:
    """The site, and the namespace of the installed chart."""
    return site, namespace


def _leftovers(site: Site, namespace: str) -> list[str]:
    """Return the objects of debug runs that still exist, after waiting up to 30 s for their deletion."""
    deadline = time.monotonic() + 30
    while True:
        items = site.get("jobs,secrets,pods", "--namespace", namespace, "--selector", DEBUG)
        if not items or time.monotonic() > deadline:
            return [f"{item['kind']} {item['metadata']['name']}" for item in items]
        time.sleep(0.25)


def test_a_debug_run_processes_one_job_and_cleans_up(
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
    assert [line["photo"] for line in logged if line.get("outcome")] == [wanted], "the log was not followed"
    assert backends.api.statuses() == {photos["office.png"]: "UPLOADED", wanted: "READY"}
    assert backends.leftovers() == before, "the lists have changed"
    assert _leftovers(site, namespace) == []


def test_a_selfie_of_megabytes_reaches_the_job_and_appears_nowhere_else(
    release_site: tuple[Site, str], backends: Backends, images: ImageServer, album: Album
) -> None:
    site, namespace = release_site
    photos = backends.api.upload({"Cleo & friends.jpg": images.url("Cleo & friends.jpg")})
    site.worker("debug", "--photo", *photos.values(), "-n", namespace, REDIS_URL=backends.redis_url)
    selfie = next(selfie.data for selfie in album.selfies if selfie.person == "Cleo")
    # Bytes after the end of a JPEG are ignored; these make the payload large enough for three Secrets.
    large = base64.b64encode(selfie + b"\xff\xd9" + os.urandom(1_500_000) + b"\xff\xd9").decode()
    payload = json.dumps({"jobId": "guest", "storedIds": list(photos.values()), "selfie": large, "threshold": None})
    done = site.worker("debug", "--job", "-", "-n", namespace, "--keep", "--json", text=payload)
    assert done.returncode == 0, done.stderr
    assert backends.api.result("guest") == list(photos.values())
    sample = large[5000:5080]
    everything = site.kubectl("get", "jobs,pods,events", "--namespace", namespace, "--output", "yaml")
    assert sample not in everything + done.stdout + done.stderr
    name = json.loads(done.stdout)["job"]
    assert site.get("secrets", "--namespace", namespace, "--selector", DEBUG) == [], "--keep kept the payload"
    assert f"describe job {name}" in done.stderr
    site.kubectl("delete", "job", name, "--namespace", namespace)


def test_debug_reports_why_a_job_failed(site: Site, namespace: str, release: str, backends: Backends) -> None:
    backends.connection.execute("INSERT INTO \"Photo\" (id) VALUES ('there')")
    done = site.worker("debug", "--photo", "gone", "--url", "http://127.0.0.1:1/x.jpg", "-n", namespace)
    assert (done.returncode, done.stdout.partition(":")[0]) == (5, "photo_gone")
    done = site.worker("debug", "--photo", "there", "--url", "file:///etc/passwd", "-n", namespace)
    assert done.returncode == 5
    assert done.stdout.startswith("dead_lettered: The image URL is not one that this runner may fetch")
    assert backends.api.statuses()["there"] == "FAILED"
    assert _leftovers(site, namespace) == []
    assert release


def test_debug_reports_a_configuration_error_with_its_exit_code(
    site: Site, namespace: str, values: dict[str, Any]
) -> None:
    values["settings"]["RUNNER_MODEL_DIR"] = "/nonexistent"
    site.helm("install", "party", str(CHART), "--namespace", namespace, values=values)
    done = site.worker("debug", "--photo", "x", "--url", "http://127.0.0.1:1/x.jpg", "-n", namespace, "--json")
    assert done.returncode == 5, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["outcome"], outcome["phase"], outcome["exit_code"]) == ("failed", "Failed", 4)
    site.helm("uninstall", "party", "--namespace", namespace)


def test_debug_waits_for_an_image_pull_no_longer_than_its_timeout(
    site: Site, namespace: str, values: dict[str, Any]
) -> None:
    values["image"]["repository"] = "registry.invalid/nothing"
    values["migration"]["mode"] = "none"
    site.helm("install", "party", str(CHART), "--namespace", namespace, values=values)
    arguments = ("debug", "--photo", "x", "--url", "http://x/y.jpg", "-n", namespace, "--timeout", "8")
    done = site.worker(*arguments)
    assert done.returncode == 6
    assert "--timeout" in done.stderr
    assert "Pull" in done.stderr
    assert "Traceback" not in done.stderr
    assert _leftovers(site, namespace) == []
    site.helm("uninstall", "party", "--namespace", namespace)


def test_ctrl_c_removes_the_debug_job(site: Site, namespace: str, values: dict[str, Any]) -> None:
    values["image"]["repository"] = "registry.invalid/nothing"
    values["migration"]["mode"] = "none"
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


def test_without_a_template_or_permissions_debug_says_what_to_do(
    site: Site, namespace: str, release: str, backends: Backends, tmp_path: Path
) -> None:
    backends.connection.execute(
        'INSERT INTO "Photo" (id) VALUES (gen_random_uuid()::text)'
    )  # an empty table is suspicious
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
        "the permissions of the service account",
    )
    allowed = site.worker(*job, "-n", namespace, KUBECONFIG=kubeconfig)
    assert allowed.returncode == 5, allowed.stderr  # the job ran: its photo is not in the table
    assert "photo_gone" in allowed.stderr
    assert release


def _as_account(site: Site, namespace: str, folder: Path) -> Path:
    """Return a kubeconfig for the service account `helper`."""
    token = site.kubectl("create", "token", "helper", "--namespace", namespace).strip()
    document = json.loads(site.kubectl("config", "view", "--raw", "--output", "json"))
    for user in document["users"]:
        user["user"] = {"token": token}
    path = folder / "helper"
    path.write_text(json.dumps(document))
    return path


def test_a_job_created_from_the_template_by_hand_processes_one_job(
    site: Site, namespace: str, release: str, backends: Backends, images: ImageServer
) -> None:
    photos = backends.api.upload({name: images.url("office.png") for name in ("first", "second")})
    site.kubectl("--namespace", namespace, "create", "job", "debug-1", f"--from=cronjob/{release}-debug")
    site.kubectl("--namespace", namespace, "wait", "--for=condition=Complete", "job/debug-1", "--timeout=90s")
    selector = "batch.kubernetes.io/job-name=debug-1"
    path = "{.items[0].status.containerStatuses[0].state.terminated.message}"
    message = site.kubectl("-n", namespace, "get", "pods", "--selector", selector, "--output", f"jsonpath={path}")
    assert (json.loads(message)["claimed"], json.loads(message)["exit_reason"]) == (1, "max_jobs")
    assert backends.api.statuses() == {photos["first"]: "READY", photos["second"]: "UPLOADED"}
    site.kubectl("--namespace", namespace, "delete", "job", "debug-1")


def test_dry_run_prints_a_valid_object_without_its_payload(site: Site, namespace: str, release: str) -> None:
    arguments = ("debug", "--photo", "x", "--url", "http://secret/y.jpg", "--dry-run", "-n", namespace)
    done = site.worker(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    job, secret = json.loads(done.stdout)["items"]
    assert "secret/y" not in done.stdout
    assert list(secret["data"].values()) == ["<46 bytes, not shown: it may contain a selfie>"]
    output = site.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-", text=json.dumps(job)
    )
    assert "created" in output
    rendered = site.helm("template", release, str(CHART), "--namespace", namespace)
    offline = site.worker(*arguments, "--template", "-", text=rendered, KUBECONFIG="/nonexistent")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.startswith("apiVersion: batch/v1\nkind: Job\n")


def test_status_shows_redis_and_the_cluster(
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


def test_exec_runs_any_command_with_the_pool_at_zero(release_site: tuple[Site, str], backends: Backends) -> None:
    site, namespace = release_site
    backends.redis.rpush("face_embeddings:process", b"not a job")
    site.worker("exec", "-n", namespace, "--", "run", "--max-jobs", "1")
    listed = site.worker("exec", "-n", namespace, "--", "dead", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "invalid_job" in listed.stdout
    assert site.worker("exec", "-n", namespace, "--", "dead", "show", "missing").returncode == 5
    assert _leftovers(site, namespace) == []
