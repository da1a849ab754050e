"""Fixtures of the end-to-end tests: the site once per session, and a namespace, servers and values for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from redis import Redis

from demo.album import Album
from demo.api import Api
from demo.images import ImageServer
from demo.servers import EmbeddedRedis
from tests.e2e.backends import Backends
from tests.e2e.site import CHART, Site, opened, unavailable, wait

SMALL = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    if "E2E_KUBECONFIG" in os.environ:
        _check_redis_is_empty(os.environ["E2E_REDIS_URL"])
    with opened() as found:
        yield found


def _check_redis_is_empty(url: str) -> None:
    """Stop unless the given Redis is empty: each test deletes everything in it."""
    with Redis.from_url(url) as redis:
        count = redis.dbsize()
    if count:
        pytest.exit(f"E2E_REDIS_URL has {count} keys, and the tests delete all of them: give an empty database", 2)


@pytest.fixture
def namespace(site: Site) -> Iterator[str]:
    """A namespace for this test only."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    site.kubectl("create", "namespace", name)
    levels = [f"pod-security.kubernetes.io/{what}=restricted" for what in ("enforce", "warn")]
    site.kubectl("label", "namespace", name, *levels)
    wait(
        lambda: (
            site.kubectl("--namespace", name, "get", "serviceaccount", "default", check=False).count("default") == 1
        ),
        "the default service account",
    )
    yield name
    site.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def backends(site: Site, request: pytest.FixtureRequest) -> Iterator[Backends]:
    if site.control_plane is not None:
        server: EmbeddedRedis = request.getfixturevalue("redis_server")
        redis_url, database_url = server.url, request.getfixturevalue("database_url")
    else:
        redis_url, database_url = os.environ["E2E_REDIS_URL"], os.environ["E2E_DATABASE_URL"]
    with Redis.from_url(redis_url) as redis, psycopg.connect(database_url, autocommit=True) as connection:
        redis.flushdb()
        connection.execute('DELETE FROM "Photo"')
        yield Backends(redis, redis_url, database_url, connection, Api(redis, connection))
        redis.flushdb()


@pytest.fixture
def values(site: Site, backends: Backends) -> dict[str, Any]:
    """Chart values for small pods that start quickly."""
    redis = urlsplit(backends.redis_url)
    repository, _, tag = site.image.rpartition(":")
    each = {
        "jobsPerPod": 4,
        "idleSeconds": 0,
        "failureDelaySeconds": 2,
        "pollingInterval": 1,
        "maxReplicas": 3,
        "resources": SMALL,
        "successfulJobsHistoryLimit": 50,
    }
    return {
        "image": {"repository": repository, "tag": tag},
        "redis": {"host": redis.hostname, "port": redis.port or 6379, "database": int(redis.path.strip("/") or 0)},
        "database": {"url": backends.database_url},
        # On the tests' own control plane, pods and KEDA are local processes, which reach Redis on loopback.
        "checkCluster": site.control_plane is None,
        "settings": {"RUNNER_ALLOW_PRIVATE_ADDRESSES": True, "RUNNER_LEASE_SECONDS": 5, "RUNNER_THREADS": 1},
        "queues": {"process": {**each}, "compare": {**each}},
        "migration": {"resources": SMALL},
        "sweep": {"schedule": "0 0 1 1 *"},  # its Job is not one that a test expects
        "helmTest": {"scaledJobs": site.no_keda is None},
    }


@pytest.fixture(scope="session")
def images(site: Site, album: Album) -> Iterator[ImageServer]:
    with ImageServer({photo.name: photo.data for photo in album.photos}, host=site.host) as server:
        yield server


@pytest.fixture
def release(site: Site, namespace: str, values: dict[str, Any]) -> Iterator[str]:
    """The name of an installed release of the chart."""
    name = "party"
    site.helm("install", name, str(CHART), "--namespace", namespace, "--wait", "--timeout", "3m", values=values)
    yield name
    site.helm("uninstall", name, "--namespace", namespace, "--wait", "--timeout", "2m", check=False)
