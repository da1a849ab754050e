"""The environment that the chart gives a pod connects to real servers, and KEDA's triggers connect to the same lists.

KEDA itself does not run here: the tests read its triggers like its redis scalers (metadata, then the parameters of the
TriggerAuthentication), and count like them: with a script that checks the type, then LLEN or ZCARD.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis import Redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

from demo.servers import EmbeddedRedis
from runner import settings
from runner.queue import keys
from runner.queue.client import connect
from runner.queue.leases import LeaseQueue
from tests.support.redis_topologies import Cluster, Relay, Sentinels, acl_line, opened, server_context
from tools import binaries
from tools.render import Object, Rendered, environment, render

AWKWARD = "p@ss:w/ö%41 #?&$(HOME)\"'\\"
WITHOUT_QUOTES = AWKWARD.rstrip("\"'\\")  # because the sentinel's configuration file needs quotes around it
COUNT = "return redis.call(redis.call('TYPE', KEYS[1]).ok == 'zset' and 'ZCARD' or 'LLEN', KEYS[1])"
PAGES = binaries.ROOT / "docs"
MOUNT = "/etc/redis-tls"


def played(values: Object, tmp_path: Path) -> tuple[int, int]:
    """Push three jobs and claim two with the pod's environment; return KEDA's counts of the list and the leases."""
    objects = render(binaries.HELM_4, {"database": {"url": "postgresql://db/api"}, "checkCluster": False, **values})
    (job,) = (item for item in objects.of_kind("ScaledJob") if item["metadata"]["name"] == "faces-process")
    given = environment(job["spec"]["jobTargetRef"]["template"], objects)
    for name, text in (objects.find("Secret", "faces-inline")["stringData"]).items():
        (tmp_path / name).write_text(text)  # in place of the mounted Secret
    given["REDIS_URL"] = given["REDIS_URL"].replace(MOUNT, str(tmp_path))
    client = connect(settings.load(given | {"RUNNER_CONNECT_TIMEOUT_SECONDS": "10"}))
    try:
        client.rpush(keys.list_key("process"), b"{}", b"{}", b"{}")
        assert len(LeaseQueue(client, "process", owner="a", lease_seconds=30, max_attempts=3).claim(2)) == 2
    finally:
        client.close()
    waiting, leased = (_counted(trigger, objects, given, tmp_path) for trigger in job["spec"]["triggers"])
    return waiting, leased


def _counted(trigger: Object, objects: Rendered, given: dict[str, str], tmp_path: Path) -> int:
    metadata = trigger["metadata"]
    parameters: dict[str, Any] = {}
    if reference := trigger.get("authenticationRef"):
        for target in objects.find(reference["kind"], reference["name"])["spec"]["secretTargetRef"]:
            parameters[target["parameter"]] = objects.find("Secret", target["name"])["stringData"][target["key"]]
    parameters |= {
        name.removesuffix("FromEnv"): given[value] for name, value in metadata.items() if name.endswith("FromEnv")
    }
    options: dict[str, Any] = {name: parameters.get(name) for name in ("username", "password")}
    if metadata.get("enableTLS") == "true":
        files = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
        for parameter in set(files) & set(parameters):
            path = tmp_path / f"keda-{parameter}"
            path.write_text(parameters[parameter])
            options[files[parameter]] = str(path)
        options["ssl"] = True
    client = _keda_client(trigger["type"], metadata, parameters, options)
    count = client.eval(COUNT, 1, metadata["listName"])
    client.close()
    return int(count)


def _keda_client(kind: str, metadata: Object, parameters: Object, options: dict[str, Any]) -> Any:
    places = metadata.get("addresses") or metadata["address"]
    hosts = [(host, int(port)) for host, _, port in (place.rpartition(":") for place in places.split(","))]
    if kind == "redis-cluster":
        return RedisCluster(startup_nodes=[ClusterNode(*host) for host in hosts], **options)
    database = int(metadata["databaseIndex"])
    if kind == "redis-sentinel":
        own = {name: parameters.get(f"sentinel{name.title()}") for name in ("username", "password")}
        return Sentinel(hosts, sentinel_kwargs=own).master_for(metadata["sentinelMaster"], db=database, **options)
    assert kind == "redis"
    return Redis(*hosts[0], db=database, **options)


def _allow(server: EmbeddedRedis) -> None:
    """Create the documented user, with an awkward password, and disable the default user."""
    _, name, *rules = acl_line((PAGES / "reference" / "redis-keys.md").read_text(encoding="utf-8")).split()
    (more,) = re.findall(
        r"An ACL user needs .*?\n\n", (PAGES / "how-to" / "kubernetes.md").read_text(encoding="utf-8"), re.DOTALL
    )
    granted = re.findall(r"`(\+\w+)`", more)
    assert granted == ["+type", "+select"]
    client = opened(server)
    client.execute_command("ACL", "SETUSER", name, *rules, *granted, "resetpass", f">{AWKWARD}")
    client.execute_command("ACL", "SETUSER", "default", "off")


def test_both_connect_with_a_user_an_awkward_password_and_a_database(tmp_path: Path) -> None:
    with EmbeddedRedis() as server:
        _allow(server)
        values = {
            "host": "127.0.0.1",
            "port": server.port,
            "database": 3,
            "username": "worker",
            "auth": {"enabled": True, "password": AWKWARD},
        }
        assert played({"redis": values}, tmp_path) == (1, 2)


def test_both_connect_over_tls_with_a_private_authority_and_a_client_certificate(tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    certificate = clients.issue_cert("runner@example.org")
    with (
        EmbeddedRedis(password="plain") as server,
        Relay(lambda: server.port, server_context(authority, clients=clients)) as relay,
    ):
        values = {
            "host": "127.0.0.1",
            "port": relay.port,
            "auth": {"enabled": True, "password": "plain"},
            "tls": {
                "enabled": True,
                "ca": authority.cert_pem.bytes().decode(),
                "certificate": certificate.cert_chain_pems[0].bytes().decode(),
                "privateKey": certificate.private_key_pem.bytes().decode(),
            },
        }
        assert played({"redis": values}, tmp_path) == (1, 2)


def test_both_connect_through_sentinels_with_their_own_password(tmp_path: Path) -> None:
    with Sentinels(password=WITHOUT_QUOTES) as servers:
        values = {
            "mode": "sentinel",
            "nodes": [f"127.0.0.1:{servers.sentinel.port}"],
            "sentinel": {
                "master": "photos",
                "auth": {"enabled": True, "password": WITHOUT_QUOTES},
            },
        }
        assert played({"redis": values}, tmp_path) == (1, 2)


@pytest.mark.timeout(120)
def test_both_connect_to_a_cluster(tmp_path: Path) -> None:
    with Cluster(keys.list_key("process")) as cluster:
        nodes = [f"127.0.0.1:{node.port}" for node in cluster.nodes[:2]]
        assert played({"redis": {"mode": "cluster", "nodes": nodes}}, tmp_path) == (1, 2)
