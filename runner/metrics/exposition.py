"""Samples of queues as families of metrics, and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from runner.metrics import catalogue
from runner.queue import totals
from runner.queue.memory import Memory
from runner.queue.samples import Sample

_GAUGES: Mapping[catalogue.Metric, Callable[[Sample], float]] = {
    catalogue.WAITING: lambda sample: sample.waiting,
    catalogue.LEASED: lambda sample: sample.leased,
    catalogue.DUE: lambda sample: sample.due,
    catalogue.DEFERRED: lambda sample: sample.deferred,
    catalogue.PARKED: lambda sample: sample.parked,
    catalogue.OLDEST: lambda sample: sample.oldest_seconds,
}
# The outcomes and codes that are exposed from the beginning, so that a rate notices the first one. Others are exposed
# once they have occurred.
_EXPECTED = {
    totals.SUCCEEDED: (totals.NO_CODE,),
    totals.GONE: (totals.PHOTO_GONE,),
    totals.FORGOTTEN: (totals.NO_CODE,),
    totals.DEAD_LETTERED: totals.fault_codes(),
}


def families(samples: Sequence[Sample] | None, seconds: float = 0.0, memory: Memory | None = None) -> Iterator[Metric]:
    """Yield every metric. `samples` is None if Redis did not answer; reading it took `seconds`."""
    yield _gauge(catalogue.UP, [([], 0 if samples is None else 1)])
    if samples is None:
        return
    yield _gauge(catalogue.READ_SECONDS, [([], seconds)])
    if memory is not None:
        yield _gauge(catalogue.MEMORY, [([], memory.used)])
        yield _gauge(catalogue.MEMORY_LIMIT, [([], memory.limit)])
        yield _gauge(catalogue.MEMORY_POLICY, [([memory.policy], 1)])
    for metric, value in _GAUGES.items():
        yield _gauge(metric, [([sample.name], value(sample)) for sample in samples])
    yield _gauge(
        catalogue.DEAD,
        [
            ([sample.name, code], sample.dead[code])
            for sample in samples
            for code in dict.fromkeys([*totals.fault_codes(), *sample.dead])
        ],
    )
    yield _gauge(
        catalogue.ORPHANS,
        [([sample.name], sample.orphans) for sample in samples if sample.orphans is not None],
    )
    yield from _counters(samples)
    for metric, name in catalogue.HISTOGRAMS.items():
        yield _histogram(metric, [([sample.name], sample.totals, name) for sample in samples])
    yield _histogram(
        catalogue.STAGE_SECONDS,
        [([sample.name, stage], sample.totals, stage) for sample in samples for stage in totals.STAGES],
    )


def _counters(samples: Sequence[Sample]) -> Iterator[Metric]:
    yield _counter(catalogue.JOBS, [row for sample in samples for row in _jobs(sample)])
    for metric, field in catalogue.PLAIN.items():
        yield _counter(metric, [([sample.name], sample.totals[field]) for sample in samples])
    for metric, field_of, labels in (
        (catalogue.RETRIES, totals.retry_field, totals.transient_codes()),
        (catalogue.RELEASES, totals.release_field, totals.RELEASE_REASONS),
        (catalogue.RUNS, totals.run_field, totals.exit_reasons()),
        (catalogue.PROVIDERS, totals.provider_field, totals.PROVIDERS),
    ):
        every = catalogue.label_values(metric)[metric.labels[0]]
        yield _counter(
            metric,
            [
                ([sample.name, label], sample.totals[field_of(label)])
                for sample in samples
                for label in every
                if label in labels or sample.totals[field_of(label)]
            ],
        )


def _jobs(sample: Sample) -> Iterator[tuple[list[str], int]]:
    for outcome in totals.OUTCOMES:
        for code in totals.job_codes():
            number = sample.totals[totals.job_field(outcome, code)]
            if number or code in _EXPECTED[outcome]:
                yield [sample.name, outcome, code], number


def _gauge(metric: catalogue.Metric, rows: Iterable[tuple[list[str], float]]) -> Metric:
    family = GaugeMetricFamily(metric.name, metric.about, labels=metric.label_names)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _counter(metric: catalogue.Metric, rows: Iterable[tuple[list[str], float]]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.about, labels=metric.label_names)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _histogram(metric: catalogue.Metric, rows: Iterable[tuple[list[str], totals.Tally, str]]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.about, labels=metric.label_names)
    for labels, tally, name in rows:
        bounds = [*(repr(bound) for bound in totals.HISTOGRAMS[name]), "+Inf"]
        cumulative = accumulate(totals.buckets(tally, name))
        family.add_metric(labels, list(zip(bounds, cumulative, strict=True)), totals.sum_seconds(tally, name))
    return family


class _Collector:
    def __init__(self, found: Sequence[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def text(found: Iterable[Metric], accept: str = "") -> tuple[bytes, str]:
    """Return the exposition and its content type: OpenMetrics if `accept` has it, otherwise Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(list(found)))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
