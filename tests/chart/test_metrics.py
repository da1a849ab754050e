"""What `metrics.enabled` renders, and that commands work in its pod's environment against real servers."""

from __future__ import annotations

import os
from typing import Any

import pytest
from redis import Redis

from runner.queue import keys
from tests.support import forked
from tests.support.queue_tools import NAME, push, queue_of
from tools import binaries
from tools.render import Object, Rendered, cases, environment, render

CASES = cases()
KINDS = {"Deployment", "Service", "ServiceMonitor", "PodMonitor", "PrometheusRule"}


def rendered(case: str = "metrics") -> Rendered:
    return render(binaries.HELM_4, CASES[case])


def pod_of(objects: Rendered) -> Object:
    return dict(objects.pods())["faces-metrics"]


def test_each_part_is_off_by_default_and_on_by_its_own_value() -> None:
    def kinds(metrics: Object) -> set[str]:
        found = render(binaries.HELM_4, {"metrics": metrics}).objects
        return {item["kind"] for item in found if item["kind"] in KINDS}

    assert kinds({}) == set()
    assert kinds({"enabled": True}) == {"Deployment", "Service"}
    assert kinds({"rules": {"enabled": True}}) == {"PrometheusRule"}
    assert kinds({"enabled": True, "monitor": {"enabled": True}}) == {"Deployment", "Service", "ServiceMonitor"}


def test_one_small_pod_stays_and_is_probed() -> None:
    deployment = rendered().find("Deployment", "faces-metrics")
    pod = pod_of(rendered())
    (container,) = pod["spec"]["containers"]
    assert (deployment["spec"]["replicas"], pod["spec"]["restartPolicy"]) == (1, "Always")
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert container["ports"] == [{"name": "metrics", "containerPort": 9464}]
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["args"][:5] == ["metrics", "--host", "::", "--port", "9464"]
    assert "queues.example.org" in container["args"]


def test_the_dashboard_is_found_by_its_label_and_follows_its_annotations() -> None:
    metadata = rendered().find("ConfigMap", "faces-dashboard")["metadata"]
    assert metadata["labels"]["grafana_dashboard"] == "1"
    assert metadata["annotations"] == {"grafana_folder": "Parties"}
    names = {item["metadata"]["name"] for item in render(binaries.HELM_4, {}).of_kind("ConfigMap")}
    assert names == {"faces"}


def test_a_changed_setting_replaces_the_pod() -> None:
    def checksum(settings: Object) -> str:
        objects = render(binaries.HELM_4, CASES["metrics"] | {"settings": settings})
        found: str = pod_of(objects)["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum({"RUNNER_LOG_LEVEL": "debug"}) != checksum({"RUNNER_LOG_LEVEL": "info"})


@pytest.mark.parametrize("case", ["metrics", "metrics-redis-only"])
def test_the_service_and_the_monitor_find_the_pod(case: str) -> None:
    objects = rendered(case)
    pod, service = pod_of(objects), objects.find("Service", "faces-metrics")
    kind = CASES[case]["metrics"]["monitor"].get("kind", "ServiceMonitor")
    monitor = objects.find(kind, "faces-metrics")["spec"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == pod["spec"]["containers"][0]["ports"][0]["name"]
    labelled = service if kind == "ServiceMonitor" else pod
    assert monitor["selector"]["matchLabels"].items() <= labelled["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")


def test_the_pod_is_reached_by_the_given_peers_and_reaches_no_image_server() -> None:
    objects = rendered()
    policy, release = objects.find("NetworkPolicy", "faces-metrics"), objects.find("NetworkPolicy", "faces")
    (ingress,) = policy["spec"]["ingress"]
    assert ingress["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert ingress["ports"] == [{"port": 9464, "protocol": "TCP"}]
    assert _ports(policy) == [53, 53, 6379, 5432, 6432]
    (excluded,) = release["spec"]["podSelector"]["matchExpressions"]
    component = pod_of(objects)["metadata"]["labels"][excluded["key"]]
    assert (excluded["operator"], component in excluded["values"]) == ("NotIn", True)


def test_without_databases_the_pod_has_and_reaches_only_redis() -> None:
    objects = rendered("metrics-redis-only")
    assert _ports(objects.find("NetworkPolicy", "faces-metrics")) == [53, 53, 26379, 6379]
    variables = {variable["name"] for variable in pod_of(objects)["spec"]["containers"][0]["env"]}
    assert not {name for name in variables if "DATABASE" in name}


def _ports(policy: Object) -> list[int]:
    return [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]


class TestCommandsInThePod:
    """`kubectl exec deploy/RELEASE-metrics -- spottmee-worker …`: nothing but the pod's environment is there."""

    @pytest.fixture
    def given(self, redis_url: str, database_url: str) -> dict[str, str]:
        host, _, port = redis_url.removeprefix("redis://").partition("/")[0].partition(":")
        values: dict[str, Any] = {
            "checkCluster": False,
            "redis": {"host": host, "port": int(port)},
            "database": {"url": database_url},
            "embeddingsDatabase": {"url": database_url},
            "metrics": {"enabled": True},
        }
        objects = render(binaries.HELM_4, values)
        fields = {"POD_NAME": "faces-metrics-1", "NODE_NAME": "node"}
        return environment(pod_of(objects), objects) | fields | {"PATH": os.environ["PATH"], "HOME": "/"}

    def run(self, given: dict[str, str], *arguments: str) -> tuple[int, str]:
        done = forked.run(
            [*arguments],
            env=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def test_doctor_passes_every_check(self, given: dict[str, str]) -> None:
        code, printed = self.run(given, "doctor")
        assert code == 0, printed

    def test_status_shows_the_queues(self, given: dict[str, str], redis: Redis) -> None:
        push(redis, [b"one", b"two"])
        code, printed = self.run(given, "status", "--json")
        assert code == 0, printed
        assert '"waiting": 2' in printed

    def test_dead_letters_are_listed_and_requeued(self, given: dict[str, str], redis: Redis) -> None:
        push(redis, [b'{"id": "photo-1", "imageUrl": "https://h/1.jpg"}'])
        queue = queue_of(redis, "runner/pod/1")
        (lease,) = queue.claim(1)
        assert queue.dead_letter(lease, "fetch_failed", "no answer")
        code, printed = self.run(given, "dead", "list")
        assert code == 0, printed
        assert lease.id in printed
        code, printed = self.run(given, "dead", "requeue", lease.id)
        assert code == 0, printed
        assert redis.llen(keys.list_key(NAME)) == 1

    def test_the_metrics_are_those_of_the_queues(self, given: dict[str, str], redis: Redis) -> None:
        push(redis, [b"one", b"two", b"three"])
        code, printed = self.run(given, "metrics", "--once")
        assert code == 0, printed
        assert f'spottmee_jobs_waiting{{queue="{NAME}"}} 3.0' in printed.splitlines()
