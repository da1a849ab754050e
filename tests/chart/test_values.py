"""Invalid values are rejected with a message that says what to do; the schema is closed and complete."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tools import binaries, chart_docs
from tools.render import CHART, HelmError, cases, helm, render

VALUES_TEXT = (CHART / "values.yaml").read_text(encoding="utf-8")
SCHEMA_TEXT = (CHART / "values.schema.json").read_text(encoding="utf-8")
SCHEMA = json.loads(SCHEMA_TEXT)
DEFAULTS = yaml.safe_load(VALUES_TEXT)

PEM = "-----BEGIN CERTIFICATE-----"
GPU_LIMIT = {"limits": {"nvidia.com/gpu": 1}}

# Values → a pattern for the message. The chart's own messages are the same with both versions of helm; those of the
# schema are helm's, and the pattern matches both wordings.
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"replicas": 3}, r"replicas.* not allowed"),
    "an unknown nested key": ({"redis": {"hots": "redis"}}, r"hots.* not allowed"),
    "an unknown key of a queue": ({"queues": {"process": {"jobPerPod": 5}}}, r"jobPerPod.* not allowed"),
    "an unknown queue": ({"queues": {"train": {"enabled": True}}}, r"train.* not allowed"),
    "an unknown setting": ({"settings": {"RUNNER_LEASE_SECOND": 30}}, r"RUNNER_LEASE_SECOND.* not allowed"),
    "a setting out of range": ({"settings": {"RUNNER_CLAIM_SIZE": 0}}, r"RUNNER_CLAIM_SIZE.*\b1\b"),
    "a setting of the wrong type": ({"settings": {"RUNNER_LEASE_SECONDS": "soon"}}, r"RUNNER_LEASE_SECONDS.*number"),
    "an unknown log level": ({"settings": {"RUNNER_LOG_LEVEL": "loud"}}, r"RUNNER_LOG_LEVEL.*debug.*warning"),
    "a misspelt toleration": (
        {"queues": {"process": {"tolerations": [{"keys": "gpu"}]}}},
        r"keys.* not allowed",
    ),
    "text for a number": ({"queues": {"compare": {"maxReplicas": "many"}}}, r"maxReplicas.*integer"),
    "a fraction of a job": ({"queues": {"process": {"jobsPerPod": 1.5}}}, r"jobsPerPod.*integer"),
    "a null block": ({"queues": {"process": {"gpu": None}}}, r"gpu"),
    "an unknown strategy": (
        {"queues": {"process": {"scalingStrategy": "custom"}}},
        r"scalingStrategy.*eager",
    ),
    "an unknown mode of migration": ({"migration": {"mode": "sometimes"}}, r"mode.*hook.*job.*none"),
    "an unknown mode": ({"redis": {"mode": "sharded"}}, r"mode.*standalone.*sentinel.*cluster"),
    "a port too high": ({"redis": {"port": 70000}}, r"port.*65,?535"),
    "a tag with a space": ({"image": {"tag": "1.0 beta"}}, r"tag"),
    "a negative deadline": ({"queues": {"process": {"activeDeadlineSeconds": -1}}}, r"activeDeadlineSeconds"),
    "root": ({"podSecurityContext": {"runAsUser": 0}}, r"runAsUser"),
    "reprocess without the URL of photos": (
        {"reprocess": {"enabled": True}},
        r"reprocess\.enabled is true, .*set settings\.RUNNER_PHOTO_URL",
    ),
    "a monitor without metrics": (
        {"metrics": {"monitor": {"enabled": True}}},
        r"metrics\.monitor\.enabled is true, and metrics\.enabled is false, .*: set metrics\.enabled to true",
    ),
    "peers of metrics without a policy": (
        {"metrics": {"enabled": True, "networkPolicy": {"from": [{"podSelector": {}}]}}},
        r"metrics\.networkPolicy\.from is set, .* is false: set both to true, or leave it empty",
    ),
    "a scrape that takes longer than its interval": (
        {"metrics": {"enabled": True, "monitor": {"enabled": True, "interval": "5s"}}},
        r"metrics\.monitor\.scrapeTimeout is 10s, above interval \(5s\), .*: lower it, or raise interval",
    ),
    "a scrape that takes longer than its interval in another unit": (
        {"metrics": {"enabled": True, "monitor": {"enabled": True, "interval": "9999ms"}}},
        r"metrics\.monitor\.scrapeTimeout is 10s, above interval \(9999ms\), .*: lower it, or raise interval",
    ),
    "an unknown kind of monitor": (
        {"metrics": {"enabled": True, "monitor": {"enabled": True, "kind": "Probe"}}},
        r"kind.*ServiceMonitor.*PodMonitor",
    ),
    "an age that is no duration": ({"reprocess": {"age": "soon"}}, r"age"),
    "no jobs per pod": (
        {"queues": {"process": {"jobsPerPod": 0}}},
        r"queues\.process\.jobsPerPod is 0: a pod takes at least 1 job; to stop the list set queues\.process\.enabled",
    ),
    "fewer jobs than KEDA reckons with": (
        {"queues": {"compare": {"maxJobs": 5}}},
        r"maxJobs is 5, below jobsPerPod \(20\): .*; raise it, or lower jobsPerPod",
    ),
    "no polling": ({"queues": {"compare": {"pollingInterval": 0}}}, r"pollingInterval is 0: .* set it to 1 or more"),
    "no replicas": ({"queues": {"process": {"maxReplicas": 0}}}, r"maxReplicas is 0: set it to 1 or more; to stop"),
    "min above max": (
        {"queues": {"process": {"minReplicas": 5, "maxReplicas": 2}}},
        r"minReplicas is 5, above maxReplicas \(2\): lower it, or raise maxReplicas",
    ),
    "a minimum of pods without idle time": (
        {"queues": {"process": {"minReplicas": 1}}},
        r"minReplicas is 1, and queues\.process\.idleSeconds is 0: .*; set queues\.process\.idleSeconds",
    ),
    "a grace period below the shutdown time": (
        {"queues": {"compare": {"shutdownSeconds": 40}}},
        r"terminationGracePeriodSeconds is 30, below shutdownSeconds \+ 5 \(45\): .*, or lower shutdownSeconds",
    ),
    "a deadline below the time of a run": (
        {"queues": {"process": {"activeDeadlineSeconds": 900}}},
        r"activeDeadlineSeconds is 900, not above maxSeconds \+ shutdownSeconds \(908\): .*, or lower maxSeconds",
    ),
    "a run without time": ({"queues": {"process": {"maxSeconds": 0}}}, r"maxSeconds must be from 1 to 86400"),
    "a GPU with the CPU image": (
        {"image": {"tag": "1.0"}, "queues": {"process": {"gpu": {"count": 1}}}},
        r"gpu\.count is 1, and image has a tag or a digest, .*: set queues\.process\.image\.tag or digest",
    ),
    "a GPU runtime class without a GPU": (
        {"queues": {"process": {"gpu": {"runtimeClassName": "nvidia"}}}},
        r"gpu\.count is 0: set the count, or leave the class empty",
    ),
    "a GPU among the resources": (
        {"queues": {"process": {"resources": GPU_LIMIT}}},
        r"resources\.limits has nvidia\.com/gpu: set queues\.process\.gpu\.count instead",
    ),
    "all queues disabled": (
        {"queues": {"process": {"enabled": False}, "compare": {"enabled": False}}},
        r"none of them is enabled, so nothing would ever run: enable process, compare or both",
    ),
    "a URL as host": ({"redis": {"host": "redis://redis"}}, r"redis\.host is not just a host name"),
    "no host": ({"redis": {"host": ""}}, r"redis\.host is empty: name the host"),
    "a loopback host": (
        {"redis": {"host": "localhost"}},
        r"redis\.host has \"localhost\", which is each pod itself, .*: name",
    ),
    "a loopback address": (
        {"redis": {"host": "127.0.0.1"}},
        r"has \"127\.0\.0\.1\", which is each pod itself, .*: name",
    ),
    "a pod of a headless Service without its namespace": (
        {"redis": {"mode": "sentinel", "nodes": ["redis-0.redis.data.svc:26379", "redis-1.redis:26379"]}},
        r"redis\.nodes has \"redis-1\.redis\"\. .* KEDA's operator runs in another: write redis-1\.redis\.party\.svc",
    ),
    "a Service without its namespace": (
        {"redis": {"host": "redis.svc"}},
        r"redis\.host has \"redis\.svc\", which lacks the namespace: write redis\.party\.svc, or another",
    ),
    "a final dot": ({"redis": {"host": "redis."}}, r"redis\.host has \"redis\.\", which is not a host name: write"),
    "nodes without a mode": (
        {"redis": {"nodes": ["a:1"]}},
        r"redis\.nodes are for the modes sentinel and cluster",
    ),
    "sentinels without nodes": ({"redis": {"mode": "sentinel"}}, r"list the sentinels as host:port"),
    "a node without port": (
        {"redis": {"mode": "cluster", "nodes": ["redis-0"]}},
        r"redis\.nodes has an entry that is not host:port",
    ),
    "a node with too high a port": (
        {"redis": {"mode": "cluster", "nodes": ["redis-0:65535", "redis-1:65536"]}},
        r"redis\.nodes has an entry whose port is not from 1 to 65535: write host:port",
    ),
    "a node with port 0": (
        {"redis": {"mode": "sentinel", "nodes": ["redis-0:0"]}},
        r"redis\.nodes has an entry whose port is not from 1 to 65535: write host:port",
    ),
    "a node with a password": (
        {"redis": {"mode": "cluster", "nodes": ["u:hidden@redis-0:6379"]}},
        r"redis\.nodes has an entry that is not host:port",
    ),
    "a database of a cluster": (
        {"redis": {"mode": "cluster", "nodes": ["a:6379"], "database": 3}},
        r"redis\.database is 3, and a cluster has only database 0: set it to 0",
    ),
    "sentinels without a master": (
        {"redis": {"mode": "sentinel", "nodes": ["a:26379"], "sentinel": {"master": ""}}},
        r"redis\.sentinel\.master is empty: give the name",
    ),
    "a password without authentication": (
        {"redis": {"auth": {"password": "hidden"}}},
        r"redis\.auth\.enabled is false, .*: set redis\.auth\.enabled to true, or leave them empty",
    ),
    "an inline password and an existing Secret": (
        {"redis": {"auth": {"enabled": True, "password": "hidden", "existingSecret": "redis"}}},
        r"redis\.auth\.password and redis\.auth\.existingSecret are both set: keep one of them",
    ),
    "two user names": (
        {"redis": {"username": "a", "auth": {"enabled": True, "usernameKey": "user"}}},
        r"redis\.username and redis\.auth\.usernameKey are both set: keep one of them",
    ),
    "a sentinel password without sentinels": (
        {"redis": {"sentinel": {"auth": {"enabled": True}}}},
        r"redis\.mode is standalone: set redis\.mode to sentinel, or remove redis\.sentinel",
    ),
    "certificates without TLS": (
        {"redis": {"tls": {"existingSecret": "tls", "caKey": "ca.crt"}}},
        r"redis\.tls\.enabled is false, .*: set redis\.tls\.enabled to true, or leave them empty",
    ),
    "certificates twice": (
        {"redis": {"tls": {"enabled": True, "ca": PEM, "existingSecret": "tls", "caKey": "ca.crt"}}},
        r"redis\.tls has certificates in the values and an existing Secret: keep one of them",
    ),
    "a certificate without key": (
        {"redis": {"tls": {"enabled": True, "existingSecret": "tls", "certificateKey": "tls.crt"}}},
        r"certificateKey and redis\.tls\.privateKeyKey belong together: set both or neither",
    ),
    "a Secret without keys": (
        {"redis": {"tls": {"enabled": True, "existingSecret": "tls"}}},
        r"none of its keys is named: set redis\.tls\.caKey",
    ),
    "an authority without verification": (
        {"redis": {"tls": {"enabled": True, "skipVerify": True, "existingSecret": "tls", "caKey": "ca.crt"}}},
        r"skipVerify accepts any certificate, .*: leave one of them out",
    ),
    "a database twice": (
        {"database": {"url": "postgresql://u:hidden@db/x", "existingSecret": "api"}},
        r"database\.url and database\.existingSecret are both set: keep one of them",
    ),
    "an unsupported database": (
        {"embeddingsDatabase": {"url": "mysql://u:hidden@db/x"}},
        r"embeddingsDatabase\.url must begin with postgresql://",
    ),
    "a tag in the repository": (
        {"image": {"repository": "registry:5000/worker:1.0"}},
        r"put what follows the name into image\.tag or image\.digest",
    ),
    "a bad digest": (
        {"image": {"digest": "sha256:abc"}},
        r"image\.digest is .*: it is sha256: with 64 hexadecimal",
    ),
    "a tag in the repository of a queue": (
        {"queues": {"compare": {"image": {"repository": "worker:1.0"}}}},
        r"queues\.compare\.image\.repository is .*: put what follows the name into queues\.compare\.image\.tag",
    ),
    "a URL and a host of a database": (
        {"database": {"url": "postgresql://u:hidden@db/x", "host": "db", "name": "x", "username": "u"}},
        r"database\.url and database\.host are both set: keep one of them",
    ),
    "a host of a database alone": (
        {"embeddingsDatabase": {"host": "db"}},
        r"embeddingsDatabase\.host is set, and embeddingsDatabase\.name, username or passwordKey is empty: ",
    ),
    "a host of a database with a user": (
        {"database": {"host": "u:hidden@db", "name": "x", "username": "u"}},
        r"database\.host is not just a host name",
    ),
    "a host of a database with a port": (
        {"database": {"host": "db:5433", "name": "x", "username": "u"}},
        r"database\.host is not just a host name \(it has a colon\): set database\.port, or put an IPv6 address into",
    ),
    "a database without a host": (
        {"database": {"name": "x"}},
        r"belong to database\.host, which is empty: set the host, or put them into the URL",
    ),
    "authorities twice": (
        {"authorities": {"images": {"existingSecret": "a", "existingConfigMap": "b"}}},
        r"authorities\.images\.existingConfigMap and existingSecret are both set: keep one of them",
    ),
    "a volume of the chart's own": (
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        r"extraVolumes has tmp, which is a volume of the chart's own: choose another name",
    ),
    "a mount of the chart's own": (
        {"extraVolumes": [{"name": "a"}], "extraVolumeMounts": [{"name": "a", "mountPath": "/tmp"}]},
        r"extraVolumeMounts has /tmp, where the chart mounts a volume of its own: choose another path",
    ),
    "two mounts in one place": (
        {"extraVolumes": [{"name": "a"}], "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}] * 2},
        r"extraVolumeMounts has the mountPath /a more than once: keep one of them",
    ),
    "two volumes of one name": (
        {"extraVolumes": [{"name": "a"}] * 2},
        r"extraVolumes has the name a more than once: keep one of them",
    ),
    "two init containers of one name": (
        {"initContainers": [{"name": "a", "image": "busybox"}] * 2},
        r"initContainers has the name a more than once: keep one of them",
    ),
    "a second container runner": (
        {"initContainers": [{"name": "runner", "image": "busybox"}]},
        r"initContainers has runner, which is the worker's own container: choose another name",
    ),
    "a release that is not enabled": (
        {"enabled": False},
        r"enabled is false, which only a parent chart can act on: give its dependency `condition: ",
    ),
    "a common label that finds objects": (
        {"commonLabels": {"app.kubernetes.io/name": "other"}},
        r"commonLabels has app\.kubernetes\.io/name, .*: choose another key",
    ),
    "a variable that the chart sets": (
        {"extraEnv": [{"name": "REDIS_URL", "value": "redis://other"}]},
        r"extraEnv has REDIS_URL, which the chart sets: use redis instead",
    ),
    "a variable that comes with an authority": (
        {
            "authorities": {"postgresql": {"existingSecret": "ca"}},
            "extraEnv": [{"name": "PGSSLMODE", "value": "require"}],
        },
        r"extraEnv has PGSSLMODE, which the chart sets: use authorities\.postgresql\.mode instead",
    ),
    "a variable twice": (
        {"extraEnv": [{"name": "TZ", "value": "UTC"}, {"name": "TZ", "value": "CET"}]},
        r"extraEnv has TZ more than once: keep one of them",
    ),
    "a variable that is also a setting": (
        {"settings": {"RUNNER_LEASE_SECONDS": 30}, "extraEnv": [{"name": "RUNNER_LEASE_SECONDS", "value": "40"}]},
        r"extraEnv and settings both have RUNNER_LEASE_SECONDS: remove it from extraEnv, or from settings if",
    ),
    "a variable that is also a setting of a queue": (
        {
            "queues": {"compare": {"settings": {"RUNNER_LEASE_SECONDS": 30}}},
            "extraEnv": [{"name": "RUNNER_LEASE_SECONDS", "value": "40"}],
        },
        r"extraEnv and queues\.compare\.settings both have RUNNER_LEASE_SECONDS: remove it from extraEnv, or from",
    ),
    "a log level for debug runs too": (
        {"extraEnv": [{"name": "RUNNER_LOG_LEVEL", "value": "warning"}]},
        r"extraEnv has RUNNER_LOG_LEVEL, which debug\.logLevel sets for debug runs: use settings\.RUNNER_LOG_LEVEL",
    ),
    "a setting that the chart sets": (
        {"settings": {"RUNNER_MAX_JOBS": 5}},
        r"settings has RUNNER_MAX_JOBS, which the chart sets: use queues\.\*\.maxJobs instead",
    ),
    "a proxy's password in a ConfigMap": (
        {"queues": {"process": {"settings": {"RUNNER_FETCH_PROXY_URL": "http://u:hidden@proxy"}}}},
        r"queues\.process\.settings has RUNNER_FETCH_PROXY_URL, .*: set it in extraEnv, from a Secret",
    ),
    "a Secret that KEDA cannot read": (
        {
            "keda": {"authentication": {"kind": "ClusterTriggerAuthentication"}},
            "redis": {"auth": {"enabled": True, "password": "hidden"}},
        },
        r"use existing Secrets with copies in KEDA's namespace, or TriggerAuthentication",
    ),
    "a label that selects pods": (
        {"podLabels": {"app.kubernetes.io/instance": "other"}},
        r"podLabels has app\.kubernetes\.io/instance, .*: choose another key",
    ),
    "an invalid name": ({"fullnameOverride": "My_Faces"}, r"fullnameOverride is \"My_Faces\": a name has"),
    "a name that no Service can have": (
        {"fullnameOverride": "1abc", "metrics": {"enabled": True}},
        r"metrics\.enabled creates a Service, .* \"1abc\": set fullnameOverride to a name of .* begins with a letter",
    ),
    "a priority class that gets no nodes": (
        {"priorityClasses": [{"name": "bulk", "value": -100}]},
        r"priorityClasses has bulk with the value -100: the cluster autoscaler adds no node for pods below -10, ",
    ),
    "a duplicate priority class": (
        {"priorityClasses": [{"name": "bulk", "value": 1}, {"name": "bulk", "value": 2}]},
        r"priorityClasses has bulk twice: keep one of them",
    ),
    "a priority class without a value": ({"priorityClasses": [{"name": "bulk"}]}, r"value"),
    "an invalid network": ({"networkPolicy": {"privateNetworks": ["fc00"]}}, r"privateNetworks"),
    "a network of impossible numbers": (
        {"networkPolicy": {"privateNetworks": ["10.0.0.0/8", "999.1.1.1/99"]}},
        r"networkPolicy\.privateNetworks has \"999\.1\.1\.1/99\", which is not a network: write",
    ),
    "a network of too many groups": (
        {"networkPolicy": {"privateNetworks": ["2001:1:2:3:4:5:6:7::/64"]}},
        r"has \"2001:1:2:3:4:5:6:7::/64\", which is not a network: write",
    ),
    "every IPv4 address as a private network": (
        {"networkPolicy": {"privateNetworks": ["0.0.0.0/0"]}},
        r"has \"0\.0\.0\.0/0\", which leaves no public address: write .*, or set networkPolicy\.imagePorts",
    ),
    "every IPv6 address as a private network": (
        {"networkPolicy": {"privateNetworks": ["::/0"]}},
        r"has \"::/0\", which leaves no public address: write smaller networks",
    ),
    "no DNS port": ({"networkPolicy": {"dnsPorts": []}}, r"dnsPorts"),
    "annotations of an account that is not created": (
        {"serviceAccount": {"create": False, "annotations": {"a": "b"}}},
        r"annotate the existing account, or set create to true",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_values_are_rejected_with_what_to_do(helm_tool: binaries.Tool, name: str) -> None:
    values, expected = INVALID[name]
    with pytest.raises(HelmError) as caught:
        render(helm_tool, values)
    message = str(caught.value)
    assert re.search(expected, message), message
    assert "hidden" not in message


@pytest.mark.parametrize("release", ["my.release", "1abc"])
def test_metrics_need_a_release_name_that_a_service_can_have(helm_tool: binaries.Tool, release: str) -> None:
    values: dict[str, Any] = {"metrics": {"enabled": True}}
    with pytest.raises(HelmError, match=f'creates a Service, .* "{release}": set fullnameOverride'):
        render(helm_tool, values, release=release)
    assert render(helm_tool, values | {"fullnameOverride": "faces"}, release=release).find("Service", "faces-metrics")
    assert render(helm_tool, {}, release=release).find("ScaledJob", f"{release}-process")


@pytest.mark.parametrize(("interval", "timeout"), [("10s", "10s"), ("1m", "60s"), ("1h", "3600000ms"), ("08s", "7s")])
def test_a_scrape_may_take_as_long_as_its_interval(interval: str, timeout: str) -> None:
    monitor = {"enabled": True, "interval": interval, "scrapeTimeout": timeout}
    objects = render(binaries.HELM_4, {"metrics": {"enabled": True, "monitor": monitor}})
    (endpoint,) = objects.find("ServiceMonitor", "faces-metrics")["spec"]["endpoints"]
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == (interval, timeout)


def test_the_host_of_a_database_may_be_an_ipv6_address() -> None:
    database = {"host": "[2001:db8::1]", "name": "x", "username": "u"}
    (pod, *_) = (pod for _, pod in render(binaries.HELM_4, {"database": database}).pods())
    urls = [each["value"] for each in pod["spec"]["containers"][0]["env"] if each["name"] == "DATABASE_URL"]
    assert urls == ["postgresql://u@[2001:db8::1]:5432/x"]


def test_all_errors_are_reported_together(helm_tool: binaries.Tool) -> None:
    values = {"redis": {"host": ""}, "queues": {"process": {"jobsPerPod": 0}, "compare": {"shutdownSeconds": 60}}}
    with pytest.raises(HelmError) as caught:
        render(helm_tool, values)
    for message in ("redis.host is empty", "process.jobsPerPod is 0", "compare.terminationGracePeriodSeconds is 30"):
        assert message in str(caught.value)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_parent_chart_can_disable_it(helm_tool: binaries.Tool, tmp_path: Path, enabled: bool) -> None:
    parent = tmp_path / "party"
    shutil.copytree(CHART, parent / "charts" / CHART.name)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    needs = {"name": CHART.name, "version": version, "repository": "", "condition": f"{CHART.name}.enabled"}
    document = {"apiVersion": "v2", "name": "party", "version": "1.0.0", "dependencies": [needs]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(document))
    (parent / "values.yaml").write_text(yaml.safe_dump({CHART.name: {"enabled": enabled}}))
    assert ("kind: ScaledJob" in helm(helm_tool, "template", "faces", str(parent))) is enabled


def test_the_chart_can_be_a_subchart(helm_tool: binaries.Tool, tmp_path: Path) -> None:
    """helm passes `global` to a subchart too, which the closed schema must allow."""
    parent = tmp_path / "party"
    shutil.copytree(CHART, parent / "charts" / CHART.name)
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: party\nversion: 1.0.0\n")
    values = {"global": {"region": "north"}, CHART.name: {"redis": {"host": "other"}}}
    (parent / "values.yaml").write_text(yaml.safe_dump(values))
    assert "redis://other.party.svc:6379/0" in helm(helm_tool, "template", "faces", str(parent), "--namespace", "party")


@pytest.mark.parametrize("case", cases())
def test_helm_lint_finds_nothing(helm_tool: binaries.Tool, case: str) -> None:
    arguments = [] if case == "defaults" else ["--values", str(CHART.parents[1] / f"tests/chart/values/{case}.yaml")]
    assert "0 chart(s) failed" in helm(helm_tool, "lint", "--strict", str(CHART), *arguments)


SECURITY_CONTEXTS = {("podSecurityContext",), ("containerSecurityContext",)}


def test_the_schema_contains_exactly_the_values() -> None:
    known = chart_docs.entries(VALUES_TEXT)
    blocks = [(), *(entry.path for entry in known if entry.is_block)]
    assert len(blocks) > 15
    for path in blocks:
        keys = {entry.path[-1] for entry in known if entry.path[:-1] == path}
        allowed = set(chart_docs.properties_of(SCHEMA, path))
        # Security contexts take every field that Kubernetes has; values.yaml shows those that are set.
        assert keys <= allowed if path in SECURITY_CONTEXTS else keys == allowed, path
    for entry in known:
        assert bool(chart_docs.property_of(SCHEMA, entry.path).get("description")) or entry.is_block, entry.path


def test_every_object_of_the_schema_is_closed() -> None:
    found = dict(chart_docs.closed_objects(SCHEMA))
    assert len(found) > 20
    # `global` holds what a parent chart shares with its other charts too.
    opened = [path for path, node in found.items() if node.get("additionalProperties") is not False]
    assert opened == ["/properties/global"]


@pytest.mark.parametrize(
    "path",
    [entry.path for entry in chart_docs.entries(VALUES_TEXT) if entry.is_block and entry.path != ("global",)],
    ids=".".join,
)
def test_no_block_accepts_an_unknown_key(path: tuple[str, ...]) -> None:
    values = json.loads(json.dumps(DEFAULTS))
    block = values
    for key in path:
        block = block[key]
    validator = Draft7Validator(SCHEMA)
    assert list(validator.iter_errors(values)) == []
    block["unheardOf"] = 1
    assert [error.validator for error in validator.iter_errors(values)] == ["additionalProperties"]


def test_every_value_is_documented() -> None:
    undocumented = [entry.path for entry in chart_docs.entries(VALUES_TEXT) if not entry.comment and not entry.is_block]
    assert undocumented == []
