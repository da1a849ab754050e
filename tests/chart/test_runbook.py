"""Follows the runbook: each fault is really caused, Prometheus fires its alert, and its section's commands work.

Alerts on the series of KEDA and kube-state-metrics need a cluster; promtool has their series (`test_alerts.py`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.servers import EmbeddedRedis
from runner.queue import keys
from tests.chart.test_alerts import RUNBOOK
from tests.chart.test_prometheus import Prometheus, eventually, prometheus
from tests.integration.test_metrics import Exporter, exporter
from tests.support.queue_tools import pass_time, queue_of
from tests.support.web import Web, hang
from tools import binaries

if TYPE_CHECKING:
    from tests.support.run_tools import Service

_COMMAND = re.compile(r"`((?:kubectl|spottmee-worker|redis-cli) [^`]+)`")
# How the runbook calls the command line, and where: on a computer, or in the exporter's pod.
_ELSEWHERE = re.compile(
    r"kubectl --namespace NAMESPACE exec deploy/RELEASE-metrics -- |exec --namespace NAMESPACE --release RELEASE -- "
)
_SECONDS = 120


@pytest.fixture(scope="module")
def redis_server() -> Iterator[EmbeddedRedis]:
    """A Redis that these tests may fill and kill."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="module")
def watched(redis_server: EmbeddedRedis) -> Iterator[Exporter]:
    with exporter(redis_server.url) as running:
        yield running


@pytest.fixture(scope="module")
def alerts(watched: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), watched.port, patient=False) as server:
        assert eventually(lambda: server.value("spottmee_redis_up") == 1)
        yield server


@pytest.fixture
def walk(alerts: Prometheus, service: Service) -> Walk:
    """The walk, from when Prometheus has seen the emptied Redis: what is counted from then on is an increase."""
    began = time.time()
    assert eventually(lambda: (alerts.value("timestamp(spottmee_jobs_waiting{queue='process'})") or 0) > began + 0.5)
    return Walk(alerts, service)


class Walk:
    def __init__(self, prometheus: Prometheus, service: Service) -> None:
        self.prometheus = prometheus
        self.service = service

    def firing(self, alert: str, **labels: str) -> bool:
        found = [item for item in self.prometheus.get("/api/v1/alerts")["alerts"] if item["state"] == "firing"]
        return any({"alertname": alert, **labels}.items() <= item["labels"].items() for item in found)

    def fires(self, alert: str, **labels: str) -> bool:
        return eventually(lambda: self.firing(alert, **labels))

    def ends(self, alert: str) -> bool:
        return eventually(lambda: not self.firing(alert))

    def follow(self, alert: str, **placeholders: str) -> list[str]:
        """Run the commands of an alert's section, in order; return what each prints."""
        return [self._run(text, placeholders) for text in commands(alert) if not text.startswith("kubectl")]

    def _run(self, text: str, placeholders: dict[str, str]) -> str:
        for name, value in placeholders.items():
            text = text.replace(name, value)
        assert not re.search(r"\b[A-Z]{2,}\b(?!=)", text.replace("UPLOADED", "").replace("PROCESSING", "")), text
        url = self.service.environment["REDIS_URL"]
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", text.replace("redis-cli", f"redis-cli -u {url}")],
            env={**self.service.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
        return done.stdout


def commands(alert: str) -> list[str]:
    """Return the commands of a section, as they are typed where the command line is."""
    found = re.search(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return [_ELSEWHERE.sub("", text) for text in _COMMAND.findall(" ".join(found[1].split()))]


def test_a_guest_waits_and_no_job_starts(walk: Walk, redis: Any) -> None:
    walk.service.api.compare(b"no image", ["x"])
    key = keys.arrivals("compare")
    assert eventually(lambda: redis.zcard(key))
    ((moment, arrived),) = redis.zrange(key, 0, -1, withscores=True)
    redis.delete(key)
    redis.zadd(key, {int(moment) - 61_000: arrived})
    assert walk.fires("SpottmeeGuestWaits")
    assert walk.fires("SpottmeeNoJobStarts", queue="compare")
    (status,) = walk.follow("SpottmeeGuestWaits")
    assert re.search(r"compare\W+1\b", status), status
    assert queue_of(redis, "runner", name="compare").claim(1)
    assert walk.ends("SpottmeeGuestWaits")


def test_a_run_without_a_model_fires_an_alert(walk: Walk, tmp_path: Path) -> None:
    assert walk.service.command("run", "--model-dir", str(tmp_path)).code == 4
    assert walk.fires("SpottmeeRunsMisconfigured", reason="model")
    doctor, *_ = walk.follow("SpottmeeRunsMisconfigured")
    assert re.search(r"^ok +model", doctor, re.MULTILINE)


def test_photos_that_are_missing_on_their_server(walk: Walk, redis: Any) -> None:
    with Web({}) as web:
        walk.service.api.upload({f"{number}": web.url(f"/{number}.jpg") for number in range(8)})
        walk.service.run()
    assert walk.fires("SpottmeeDeadLettersGrow", code="image_missing", queue="process")
    one = redis.hkeys(keys.dead("process"))[0].decode()
    listed, shown, requeued = walk.follow("SpottmeeDeadLettersGrow", CODE="image_missing", ID=one)
    assert listed.count("image_missing") >= 8
    assert "responds 404" in shown
    assert "8 of 8 dead letters requeued" in requeued
    assert redis.llen(keys.list_key("process")) == 8


def test_photos_that_have_lost_their_job(walk: Walk, redis: Any) -> None:
    walk.service.connection.execute(
        """INSERT INTO "Photo" (id, album_id, original_name, normalized_name, size, type, created_at, status)
        SELECT 'lost' || number, 'a', number, number || '.jpg', 1, 'image/jpeg',
            now() AT TIME ZONE 'UTC' - interval '1 hour', 'UPLOADED' FROM generate_series(1, 3) AS numbers(number)"""
    )
    assert walk.service.command("sweep").code == 0
    assert walk.fires("SpottmeePhotosWithoutJob")
    looked, pushed, _ = walk.follow("SpottmeePhotosWithoutJob", TEMPLATE="'http://127.0.0.1/{normalized_name}'")
    assert "3 photos to reprocess" in looked
    assert "3" in pushed
    assert redis.llen(keys.list_key("process")) == 3
    assert walk.ends("SpottmeePhotosWithoutJob")


def test_a_redis_that_is_nearly_full_and_evicts(walk: Walk, redis: Any) -> None:
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.05))
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert walk.fires("SpottmeeRedisMemory")
        assert walk.fires("SpottmeeRedisEvicts", policy="allkeys-lru")
        memory, keys_found, purged = walk.follow("SpottmeeRedisMemory")
        assert "used_memory:" in memory
        assert "biggest" in keys_found
        assert "0 dead letters" in purged  # none is that old
        walk.follow("SpottmeeRedisEvicts")
        assert walk.ends("SpottmeeRedisEvicts")
    finally:
        redis.config_set("maxmemory", 0)
        redis.config_set("maxmemory-policy", "noeviction")


def test_a_run_that_dies_with_a_job(walk: Walk, redis: Any) -> None:
    with Web({"*": hang()}) as web:
        walk.service.api.upload({"a": web.url("/a.jpg")})
        process = walk.service.start("run")
        assert eventually(lambda: redis.zcard(keys.leases("process")) == 1)
        process.kill()
        process.communicate()
    pass_time(redis, 3600)
    other = queue_of(redis, "job/another/1")
    (lease,) = other.claim(1)
    assert other.dead_letter(lease, "too_many_attempts", "")
    assert walk.fires("SpottmeeLeasesExpire", queue="process")
    (listed,) = walk.follow("SpottmeeLeasesExpire")
    assert "too_many_attempts" in listed


def test_a_run_that_computes_on_the_cpu_in_a_gpu_queue(walk: Walk) -> None:
    walk.service.run(RUNNER_PROVIDERS="cpu")
    assert walk.fires("SpottmeeGpuQueueOnCpu")


def test_an_unreachable_redis_and_then_exporter_fire_alerts(
    walk: Walk, watched: Exporter, redis_server: EmbeddedRedis
) -> None:
    redis_server.kill()
    assert walk.fires("SpottmeeRedisDown")
    watched.process.kill()
    assert walk.fires("SpottmeeExporterDown")
    redis_server.restart()


def test_kubectl_knows_every_command_and_flag() -> None:
    """Without a cluster they fail where they would reach for it, not before."""
    names = {"NAMESPACE": "party", "RELEASE": "faces", "POD": "p", "NODE": "n", "JOB": "j", "COMMAND": "true"}
    found = re.findall(r"`?(kubectl [^`\n]+)", RUNBOOK.read_text("utf-8").replace("\n  ", " "))
    assert len(found) > 10
    for text in found:
        words = [re.sub("|".join(names), lambda name: names[name[0]], word) for word in text.split()]
        done = subprocess.run(
            [str(binaries.ensure(binaries.KUBECTL)), "--server", "http://127.0.0.1:1", *words[1:]],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert "connection refused" in done.stderr or "was refused" in done.stderr, f"{text}: {done.stderr}"
