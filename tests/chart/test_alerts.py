"""Every alert fires on the series of its fault and is silent on others, as Prometheus' own promtool evaluates them."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.metrics import catalogue
from tools import binaries
from tools.render import Rendered, cases, render

CASES = cases()
RUNBOOK = binaries.ROOT / "docs" / "how-to" / "runbook.md"
WITH_EXPORTER, ALONE = "metrics", "rules-alone"
STEP_SECONDS = 30
OURS = 'namespace="party",job="faces-metrics"'
PARTY = 'namespace="party"'

# What KEDA (2.21) and kube-state-metrics (2.x) expose, with the labels that the rules use.
OTHERS = {
    "keda_scaled_job_errors_total": {"namespace", "exported_namespace", "scaledJob"},
    "keda_scaler_metrics_value": {"namespace", "exported_namespace", "scaledObject", "metric", "type"},
    "kube_cronjob_created": {"namespace", "cronjob"},
    "kube_cronjob_status_last_schedule_time": {"namespace", "cronjob"},
    "kube_cronjob_status_last_successful_time": {"namespace", "cronjob"},
    "kube_deployment_status_replicas_available": {"namespace", "deployment"},
    "kube_job_created": {"namespace", "job_name"},
    "kube_job_failed": {"namespace", "job_name", "condition"},
    "kube_job_status_active": {"namespace", "job_name"},
    "kube_pod_deletion_timestamp": {"namespace", "pod"},
    "kube_pod_status_phase": {"namespace", "pod", "phase"},
}


@dataclass(frozen=True)
class Case:
    """Series (in promtool's notation, a value every 30 s) on which an alert fires after `minutes`, and does not."""

    firing: dict[str, str]
    silent: dict[str, str]
    minutes: int = 10


def _job(name: str, failed: str = "1x60", created: str = "100x60") -> dict[str, str]:
    return {
        f'kube_job_failed{{{PARTY},job_name="{name}",condition="true"}}': failed,
        f'kube_job_created{{{PARTY},job_name="{name}"}}': created,
    }


def _sweep(succeeded: str) -> dict[str, str]:
    about = f'{PARTY},cronjob="faces-sweep"'
    return {
        f"kube_cronjob_status_last_schedule_time{{{about}}}": "1000x120",
        f"kube_cronjob_status_last_successful_time{{{about}}}": succeeded,
        f"kube_cronjob_created{{{about}}}": "0x120",
    }


def _memory(used: int, limit: int) -> dict[str, str]:
    return {
        f"spottmee_redis_memory_used_bytes{{{OURS}}}": f"{used}x60",
        f"spottmee_redis_memory_limit_bytes{{{OURS}}}": f"{limit}x60",
    }


_WAITING = {
    f'spottmee_jobs_waiting{{{OURS},queue="compare"}}': "3x60",
    f'spottmee_leases_due{{{OURS},queue="compare"}}': "0x60",
}
_ACTIVE = {f'kube_job_status_active{{{PARTY},job_name="faces-compare-x1"}}': "1x60"}
_KEDA_WAITING = {'keda_scaler_metrics_value{exported_namespace="party",scaledObject="faces-process"}': "3x60"}
_KEDA_ACTIVE = {f'kube_job_status_active{{{PARTY},job_name="faces-process-x1"}}': "1x60"}
_PENDING = f'kube_pod_status_phase{{{PARTY},pod="faces-compare-x1-y2",phase="Pending"}}'
_DELETED = f'kube_pod_deletion_timestamp{{{PARTY},pod="faces-compare-x1-y2"}}'
_DEAD = f'spottmee_jobs_total{{{OURS},queue="compare",outcome="dead_lettered",code='


ALERTS = {
    "SpottmeeKedaCannotReadRedis": Case(
        {f'keda_scaled_job_errors_total{{{PARTY},scaledJob="faces-compare"}}': "0+1x60"},
        {
            f'keda_scaled_job_errors_total{{{PARTY},scaledJob="faces-compare"}}': "7x60",
            'keda_scaled_job_errors_total{namespace="other",scaledJob="faces-compare"}': "0+1x60",
        },
    ),
    "SpottmeeKedaDown": Case(
        {'kube_deployment_status_replicas_available{namespace="keda",deployment="keda-operator"}': "0x60"},
        {'kube_deployment_status_replicas_available{namespace="keda",deployment="keda-operator"}': "1x60"},
    ),
    "SpottmeeNoJobStarts": Case(_WAITING, _WAITING | _ACTIVE),
    "SpottmeePodPending": Case({_PENDING: "1x60"}, {_PENDING: "1x3 0x57"}),
    "SpottmeePodTerminating": Case({_DELETED: "0x60"}, {_DELETED: "500x60"}),
    "SpottmeeJobsFailing": Case(
        _job("faces-compare-x1") | _job("faces-compare-x2"),
        _job("faces-compare-x1")
        | _job("faces-compare-x2", failed="0x60")
        | _job("faces-sweep-1")
        | _job("faces-sweep-2"),
    ),
    "SpottmeeSweepFailing": Case(_sweep("100x120"), _sweep("1010x120"), minutes=50),
    "SpottmeeExporterDown": Case({}, {f"spottmee_redis_up{{{OURS}}}": "1x60"}),
    "SpottmeeRedisDown": Case({f"spottmee_redis_up{{{OURS}}}": "0x60"}, {f"spottmee_redis_up{{{OURS}}}": "1x60"}),
    "SpottmeeGuestWaits": Case(
        {f'spottmee_oldest_waiting_seconds{{{OURS},queue="compare"}}': "0+7x60"},
        {
            f'spottmee_oldest_waiting_seconds{{{OURS},queue="compare"}}': "59x60",
            f'spottmee_oldest_waiting_seconds{{{OURS},queue="process"}}': "900x60",
        },
    ),
    "SpottmeeRunsMisconfigured": Case(
        {f'spottmee_runs_total{{{OURS},queue="process",reason="photos_invisible"}}': "0x10 1x50"},
        {
            f'spottmee_runs_total{{{OURS},queue="process",reason="photos_invisible"}}': "4x60",
            f'spottmee_runs_total{{{OURS},queue="process",reason="empty"}}': "0+1x60",
        },
    ),
    "SpottmeeDeadLettersGrow": Case(
        {f'{_DEAD}"fetch_failed"}}': "0+1x60"},
        {f'{_DEAD}"fetch_failed"}}': "8x10 9x50", f'{_DEAD}"no_face_in_selfie"}}': "0+1x60"},
    ),
    "SpottmeePhotosWithoutJob": Case(
        {f'spottmee_photos_without_job{{{OURS},queue="process"}}': "2x60"},
        {f'spottmee_photos_without_job{{{OURS},queue="process"}}': "2x20 0x40"},
        minutes=25,
    ),
    "SpottmeeRedisMemory": Case(_memory(95, 100), _memory(95, 0)),
    "SpottmeeRedisEvicts": Case(
        {f'spottmee_redis_eviction_policy{{{OURS},policy="allkeys-lru"}}': "1x60"},
        {f'spottmee_redis_eviction_policy{{{OURS},policy="noeviction"}}': "1x60"},
    ),
    "SpottmeeLeasesExpire": Case(
        {f'spottmee_leases_expired_total{{{OURS},queue="process"}}': "0x10 1x50"},
        {f'spottmee_leases_expired_total{{{OURS},queue="process"}}': "5x60"},
    ),
    "SpottmeeGpuQueueOnCpu": Case(
        {f'spottmee_runs_loaded_total{{{OURS},queue="process",provider="cpu"}}': "0x10 1x50"},
        {
            f'spottmee_runs_loaded_total{{{OURS},queue="process",provider="cuda"}}': "0+1x60",
            f'spottmee_runs_loaded_total{{{OURS},queue="compare",provider="cpu"}}': "0+1x60",
        },
    ),
}
# The same by the series of KEDA and kube-state-metrics alone.
ALERTS_ALONE = {"SpottmeeNoJobStarts": Case(_KEDA_WAITING, _KEDA_WAITING | _KEDA_ACTIVE)}


def rules(objects: Rendered) -> list[dict[str, Any]]:
    (item,) = objects.of_kind("PrometheusRule")
    return [rule for group in item["spec"]["groups"] for rule in group["rules"]]


def rendered(case: str) -> Rendered:
    return render(binaries.HELM_4, CASES[case])


def _test(alert: str, series: dict[str, str], minutes: int, firing: bool) -> dict[str, Any]:
    expected = [{"labels": "{}", "value": 1}] if firing else []
    return {
        "interval": f"{STEP_SECONDS}s",
        "name": f"{alert} {'fires' if firing else 'is silent'}",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": f"{minutes}m",
                "exp_samples": expected,
            }
        ],
    }


@pytest.mark.parametrize(("values", "alerts"), [(WITH_EXPORTER, ALERTS), (ALONE, ALERTS_ALONE)])
def test_each_alert_fires_on_its_fault_and_is_silent_otherwise(
    values: str, alerts: dict[str, Case], tmp_path: Path
) -> None:
    (item,) = rendered(values).of_kind("PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(item["spec"]), encoding="utf-8")
    tests = [
        _test(alert, series, case.minutes, firing)
        for alert, case in alerts.items()
        for series, firing in ((case.firing, True), (case.silent, False))
    ]
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{STEP_SECONDS}s", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_fault_and_a_section_of_the_runbook() -> None:
    alerts = {rule["alert"] for rule in rules(rendered(WITH_EXPORTER))}
    assert alerts == set(ALERTS)
    sections = re.findall(r"^## (\S+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(sections) == sorted(alerts)
    for rule in rules(rendered(WITH_EXPORTER)):
        assert rule["annotations"]["runbook_url"] == (
            f"https://runbooks.example.org/runbook.html#{rule['alert'].lower()}"
        )
        assert rule["labels"].keys() == {"severity", "team"}


def test_without_the_exporter_only_alerts_on_other_series_are_rendered() -> None:
    objects = rendered(ALONE)
    assert not objects.of_kind("Deployment")
    assert "SpottmeeNoJobStarts" in {rule["alert"] for rule in rules(objects)}
    assert "spottmee_" not in str([rule["expr"] for rule in rules(objects)])


def test_rules_and_dashboard_use_only_series_and_labels_that_exist() -> None:
    expressions = [rule["expr"] for case in (WITH_EXPORTER, ALONE) for rule in rules(rendered(case))]
    expressions += queries()
    used = {found for text in expressions for found in selectors(text)}
    assert len({name for name, _ in used}) > 30
    assert {name: labels for name, labels in used if not labels <= exposed().get(name, set())} == {}


def test_reasons_and_codes_in_rules_are_those_of_the_exporter() -> None:
    for rule in rules(rendered(WITH_EXPORTER)):
        for label, values in re.findall(r'\b(reason|code|outcome|provider)[=!]~?"([^"]+)"', rule["expr"]):
            metrics = [metric for metric in catalogue.METRICS if metric.sample in rule["expr"]]
            known = {value for metric in metrics for value in catalogue.label_values(metric)[label]}
            assert set(values.split("|")) <= known, rule["alert"]


def queries() -> list[str]:
    """Return every query of the dashboard, those of its variables too."""
    (text,) = rendered(WITH_EXPORTER).find("ConfigMap", "faces-dashboard")["data"].values()
    dashboard = json.loads(text)
    variables = [item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def selectors(expression: str) -> list[tuple[str, frozenset[str]]]:
    """Return every series that an expression selects, with the labels that it matches."""
    found = re.findall(r"\b((?:spottmee|keda|kube)_\w+)\b(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', expression))
    return [(name, frozenset(re.findall(r"(\w+)\s*[=!]", matchers))) for name, matchers in found]


def exposed() -> dict[str, set[str]]:
    """Return every series that exists, with its labels: those of the exporter have two more from the scrape."""
    known: dict[str, set[str]] = dict(OTHERS)
    for metric in catalogue.METRICS:
        names = [f"{metric.name}_{end}" for end in ("bucket", "sum", "count")] if metric.kind == "histogram" else []
        for name in names or [metric.sample]:
            more = {"le"} if name.endswith("_bucket") else set()
            known[name] = {*metric.label_names, "namespace", "job", *more}
    return known
