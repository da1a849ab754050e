"""Debian's Prometheus scrapes the exporter while jobs are done, and answers every query of the dashboard."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import yaml
from redis import Redis

from demo.servers import free_port
from tests.chart.test_alerts import WITH_EXPORTER, queries, rendered
from tests.integration.test_metrics import exporter, once
from tests.support.queue_tools import push, queue_of

PATIENCE_SECONDS = 60.0


class Prometheus:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        with urlopen(self.address + path, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/api/v1/query?query={quote(text)}")["result"]
        return found

    def value(self, text: str) -> float | None:
        found = self.query(text)
        return float(found[0]["value"][1]) if found else None


@contextmanager
def prometheus(folder: Path, target: int, *, patient: bool = True) -> Iterator[Prometheus]:
    """Prometheus with the chart's rules, which scrapes one exporter as the chart's ServiceMonitor says.

    Unless it is `patient`, an alert fires as soon as its expression holds.
    """
    (item,) = rendered(WITH_EXPORTER).of_kind("PrometheusRule")
    if not patient:
        for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
            del rule["for"]
    (folder / "rules.yaml").write_text(yaml.safe_dump(item["spec"]), encoding="utf-8")
    scrape = {
        "job_name": "faces-metrics",
        "static_configs": [{"targets": [f"127.0.0.1:{target}"], "labels": {"namespace": "party"}}],
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                ),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


def eventually(look: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if look():
                return True
        except OSError:
            pass  # it is starting
        time.sleep(0.2)
    return False


def test_a_burst_is_scraped_and_every_query_is_answered(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    push(redis, [b"job %d" % number for number in range(10)])
    with exporter(redis_url) as running, prometheus(tmp_path, running.port) as server:
        waiting = 'spottmee_jobs_waiting{namespace="party",job="faces-metrics",queue="process"}'
        assert eventually(lambda: server.value(waiting) == 10), (tmp_path / "log").read_text()
        (target,) = server.get("/api/v1/targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        queue = queue_of(redis, "runner/pod/1")
        for lease in queue.claim(7):
            assert queue.acknowledge(lease, {"jobs:succeeded:": 1})
        succeeded = 'sum(spottmee_jobs_total{outcome="succeeded",queue="process"})'
        assert eventually(lambda: server.value(succeeded) == 7)
        assert eventually(lambda: server.value(waiting) == 3)
        assert eventually(lambda: all(rule["health"] == "ok" for rule in _rules(server)))
        answered = {text: server.query(_filled(text)) for text in queries() if not text.startswith("label_values")}
        assert len(answered) > 20
        assert sum(bool(rows) for rows in answered.values()) > len(answered) / 2


def test_promtool_finds_no_fault_in_names_units_and_help(redis_url: str) -> None:
    code, text, _ = once(redis_url)
    assert (code, text.count("# HELP") > 25) == (0, True)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def _rules(server: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in server.get("/api/v1/rules")["groups"] for rule in group["rules"]]


def _filled(text: str) -> str:
    """Return a query of the dashboard as Grafana sends it."""
    values = {"$namespace": "party", "$job": "faces-metrics", "$release": "faces", "$queue": ".*"}
    for name, value in (values | {"$__rate_interval": "1m"}).items():
        text = text.replace(name, value)
    return text
