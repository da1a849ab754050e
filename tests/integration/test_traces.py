"""Traces of a run over OTLP: what is sent, and that no collector can fail or delay a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import material
from demo.images import ImageServer
from demo.servers import free_port
from runner.worker.traces import CLOSE_SECONDS, from_environment
from tests.support.collector import Collector, attributes_of

if TYPE_CHECKING:
    from tests.support.run_tools import Ended, Service

ORIGIN = {"POD_NAME": "pod-1", "JOB_NAME": "job-1", "NODE_NAME": "node-1"}


@dataclass(frozen=True, slots=True)
class Work:
    """Jobs for one run: a good photo, a missing one and a comparison."""

    service: Service
    photos: dict[str, str]
    comparison: str

    def run(self, **more: str) -> Ended:
        return self.service.run(RUNNER_ALBUM_TIMEOUT_SECONDS="0", **more)


@pytest.fixture
def work(service: Service) -> Iterator[Work]:
    photo = material.first_photo()
    with ImageServer({"first.jpg": photo}) as images:
        photos = service.api.upload({name: images.url(name) for name in ("first.jpg", "missing.jpg")})
        yield Work(service, photos, service.api.compare(photo, list(photos.values())))


def jobs_of(collector: Collector) -> dict[str | int, Any]:
    """Return id → the span of its job."""
    spans = [span for span in collector.spans if not span.parent_span_id]
    found = {}
    for span in spans:
        attributes = attributes_of(span)
        found[attributes.get("spottmee.photo") or attributes["spottmee.comparison"]] = span
    assert len(found) == len(spans)
    return found


def warnings_of(ended: Ended) -> list[dict[str, Any]]:
    return ended.lines(event="traces not sent")


def test_a_run_sends_a_span_for_each_job_with_its_stages(work: Work) -> None:
    before = time.time_ns()
    with Collector() as collector:
        ended = work.run(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **ORIGIN)
        after = time.time_ns()
        jobs = jobs_of(collector)
    assert warnings_of(ended) == []
    good, missing = work.photos["first.jpg"], work.photos["missing.jpg"]
    assert jobs.keys() == {good, missing, work.comparison}
    assert (jobs[good].name, jobs[work.comparison].name) == ("photo", "comparison")

    attributes = attributes_of(jobs[missing])
    assert (attributes["spottmee.outcome"], attributes["error.type"]) == ("dead_lettered", "image_missing")
    assert (attributes["spottmee.queue"], attributes["spottmee.attempt"]) == ("process", 1)
    assert jobs[missing].status.code == 2  # ERROR
    assert (attributes_of(jobs[good])["spottmee.outcome"], jobs[good].status.code) == ("succeeded", 0)

    children = [span for span in collector.spans if span.parent_span_id == jobs[good].span_id]
    assert {span.name for span in children} == {"fetch", "decode", "faces", "store"}
    for span in children:
        assert span.trace_id == jobs[good].trace_id
        assert before < jobs[good].start_time_unix_nano <= span.start_time_unix_nano + 1_000_000
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= jobs[good].end_time_unix_nano + 1_000_000 < after
    expected = {"service.name": "spottmee-worker", "k8s.pod.name": "pod-1", "k8s.job.name": "job-1"}
    assert expected.items() <= collector.resource.items()


def test_no_span_has_a_url_or_a_payload(work: Work) -> None:
    with Collector() as collector:
        work.run(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    assert b"photo" in sent
    assert b"http" not in sent
    assert b"selfie" not in sent


def test_opentelemetrys_own_variables_apply(work: Work) -> None:
    with Collector() as collector:
        work.run(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces",
            OTEL_EXPORTER_OTLP_HEADERS="x-tenant=party",
            OTEL_SERVICE_NAME="photos",
        )
    assert collector.resource["service.name"] == "photos"
    assert collector.headers[0]["x-tenant"] == "party"


@pytest.mark.parametrize("fault", ["never answers", "refuses", "is away"])
def test_a_collector_that_fails_costs_a_warning_and_bounded_time(work: Work, fault: str) -> None:
    with Collector(status=400 if fault == "refuses" else 200, delay=60 if fault == "never answers" else 0) as collector:
        url = f"http://127.0.0.1:{free_port()}" if fault == "is away" else collector.url
        ended = work.run(OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert ended.summary["succeeded"] == 2
    assert ended.summary["exit_reason"] == "empty"
    (warning,) = warnings_of(ended)
    assert warning["level"] == "warning"
    # The lines before it end with the last job; the summary's clock stops after it.
    jobs = [line["time"] for line in ended.log if "outcome" in line]
    assert seconds_between(max(jobs), warning["time"]) < CLOSE_SECONDS + 3
    assert work.service.leftovers() == {"process dead": 1}


def seconds_between(first: str, second: str) -> float:
    def seconds(text: str) -> float:
        hours, minutes, rest = text.rstrip("Z").partition("T")[2].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)

    return (seconds(second) - seconds(first)) % 86_400


def test_a_missing_package_costs_a_warning(work: Work) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None; from runner.cli import main; sys.exit(main(['run']))"
    )
    environment = {
        **work.service.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "RUNNER_ALBUM_TIMEOUT_SECONDS": "0",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (warning,) = (line for line in lines if line["event"] == "traces not sent")
    assert "extra traces" in warning["detail"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_sent_only_if_enabled(environment: dict[str, str], *, expected: bool) -> None:
    assert (from_environment(environment) is not None) is expected
