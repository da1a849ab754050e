"""Fixtures of the image's tests: the container engine, the image, built once per session, and the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.support.containers import Cluster
from tests.support.run_tools import service
from tools.image_base import IMAGE, ROOT, Engine, missing


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    if lacking := missing():
        pytest.skip(lacking)
    engine = Engine(ROOT / ".cache" / "containers")
    engine.make_base()
    yield engine
    engine.release()


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The image, built by `make image` on the stand-in base."""
    done = engine.build()
    assert done.returncode == 0, done.stderr[-3000:]
    return IMAGE


@pytest.fixture(scope="session")
def filesystem(engine: Engine, image: str) -> Iterator[Path]:
    """The image's root file system, unpacked."""
    yield Path(engine.podman("image", "mount", image))
    engine.podman("image", "unmount", image)


@pytest.fixture
def cluster(engine: Engine, image: str, redis: Redis, redis_url: str, database_url: str) -> Iterator[Cluster]:
    """Containers of the image with a real Redis and a real, migrated PostgreSQL."""
    with service(redis, redis_url, database_url) as servers:
        yield Cluster(engine, servers)
    engine.remove_containers()


@pytest.fixture
def empty_cluster(
    engine: Engine, image: str, redis: Redis, redis_url: str, empty_database_url: str
) -> Iterator[Cluster]:
    """The same with an empty PostgreSQL database."""
    with service(redis, redis_url, empty_database_url) as servers:
        yield Cluster(engine, servers)
    engine.remove_containers()
