"""Both KEDA itself and the runner connect to Redis as the chart configures it, in each topology."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trustme
from redis import Redis

from demo.servers import EmbeddedRedis
from runner.queue import keys
from tests.e2e.backends import Backends
from tests.e2e.site import CHART, Site, wait
from tests.support.redis_topologies import Cluster, Relay, Sentinels, opened, server_context

AWKWARD = "p@ss:w/ö%41 #?&$(HOME)"

Topology = tuple[dict[str, Any], Redis]


@contextmanager
def user_and_database() -> Iterator[Topology]:
    with EmbeddedRedis() as server:
        client: Any = opened(server, db=3)
        client.execute_command("ACL", "SETUSER", "worker", "on", f">{AWKWARD}", "~*", "&*", "+@all")
        credentials = {"username": "worker", "auth": {"enabled": True, "password": AWKWARD}}
        yield {"host": "127.0.0.1", "port": server.port, "database": 3, **credentials}, client


@contextmanager
def tls_with_client_certificate() -> Iterator[Topology]:
    authority, clients = trustme.CA(), trustme.CA()
    certificate = clients.issue_cert("runner@example.org")
    with EmbeddedRedis() as server, Relay(lambda: server.port, server_context(authority, clients=clients)) as relay:
        tls = {
            "enabled": True,
            "ca": authority.cert_pem.bytes().decode(),
            "certificate": certificate.cert_chain_pems[0].bytes().decode(),
            "privateKey": certificate.private_key_pem.bytes().decode(),
        }
        yield {"host": "127.0.0.1", "port": relay.port, "tls": tls}, opened(server)


@contextmanager
def sentinels_with_a_password() -> Iterator[Topology]:
    with Sentinels(password=AWKWARD) as servers:
        sentinel = {"master": "photos", "auth": {"enabled": True, "password": AWKWARD}}
        nodes = [f"127.0.0.1:{servers.sentinel.port}"]
        yield {"mode": "sentinel", "nodes": nodes, "sentinel": sentinel}, opened(servers.master)


@contextmanager
def cluster() -> Iterator[Topology]:
    with Cluster(keys.list_key("process")) as servers:
        nodes = [f"127.0.0.1:{node.port}" for node in servers.nodes[:2]]
        yield {"mode": "cluster", "nodes": nodes}, opened(servers.master)


@pytest.mark.parametrize(
    "topology", [user_and_database, tls_with_client_certificate, sentinels_with_a_password, cluster]
)
def test_keda_scales_and_the_runner_processes_the_same_lists(
    site: Site, namespace: str, values: dict[str, Any], backends: Backends, topology: Callable[[], Any]
) -> None:
    if site.no_keda:
        pytest.skip(site.no_keda)
    if site.control_plane is None:
        pytest.skip("an existing cluster cannot reach the Redis servers that this test starts")
    with topology() as (redis, client):
        site.helm(
            *("install", "party", str(CHART), "--namespace", namespace, "--wait", "--timeout", "3m"),
            values=values | {"redis": redis, "queues": values["queues"] | {"compare": {"enabled": False}}},
        )
        # The job of a photo that has been deleted since: it is claimed, looked up and acknowledged, without an image.
        backends.connection.execute("INSERT INTO \"Photo\" (id) VALUES ('another')")
        client.rpush(keys.list_key("process"), json.dumps({"imageUrl": "http://gone/1.jpg", "id": str(uuid.uuid4())}))
        where = ("--namespace", namespace, "--selector", "app.kubernetes.io/component=process")
        wait(
            lambda: [job for job in site.get("jobs", *where) if job["status"].get("succeeded")],
            "a Job that KEDA started",
        )
        assert client.llen(keys.list_key("process")) == 0
        assert client.zcard(keys.leases("process")) == 0
        assert backends.leftovers() == {}, "the default Redis was used"
        (scaled,) = site.get("scaledjobs", *where)
        ready = {item["type"]: item["status"] for item in scaled["status"]["conditions"]}
        assert ready["Ready"] == "True"
        site.helm("uninstall", "party", "--namespace", namespace)
