"""Sends finished jobs as OpenTelemetry spans. `traces` imports it, and with it the SDK, if traces are enabled."""

from __future__ import annotations

import os
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from runner import __version__
from runner.worker.traces import FinishedJob

# The chart sets these variables; the attributes are those of OpenTelemetry's conventions.
_ORIGIN = {"k8s.pod.name": "POD_NAME", "k8s.job.name": "JOB_NAME", "k8s.node.name": "NODE_NAME"}


class _Watched(SpanExporter):
    """An OTLP exporter that records failures, because the SDK's log of them is not shown."""

    def __init__(self) -> None:
        self._exporter = OTLPSpanExporter()
        self.failed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        self.failed |= result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Sender:
    """Creates a span for each job, with a child for each stage, and sends them in batches."""

    def __init__(self) -> None:
        origin = {name: os.environ[variable] for name, variable in _ORIGIN.items() if os.environ.get(variable)}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override these.
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "spottmee-worker"}
        self._exporter = _Watched()
        self._provider = TracerProvider(resource=Resource.create({**named, **origin}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("spottmee-worker", __version__)

    @property
    def failed(self) -> bool:
        """Whether a batch was not accepted."""
        return self._exporter.failed

    def add(self, job: FinishedJob) -> None:
        """Add a job to the next batch."""
        span = self._tracer.start_span(
            job.name, kind=SpanKind.CONSUMER, start_time=job.start, attributes=dict(job.attributes)
        )
        if job.error is not None:
            span.set_attribute("error.type", job.error)
            span.set_status(Status(StatusCode.ERROR, job.error))
        context = set_span_in_context(span)
        for stage in job.stages:
            child = self._tracer.start_span(stage.name, context, start_time=stage.start)
            child.end(stage.start + stage.nanoseconds)
        span.end(job.end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
