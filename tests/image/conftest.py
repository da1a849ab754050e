"""Fixtures of the image's tests: the engine, the image built once a session, and the service around it."""

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
    """The image, built by `make image` over the stand-in base."""
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
    """Containers of the image beside a real Redis and a real, migrated PostgreSQL."""
    with service(redis, redis_url, database_url) as beside:
        yield Cluster(engine, beside)
    engine.remove_containers()


@pytest.fixture
def empty_cluster(
    engine: Engine, image: str, redis: Redis, redis_url: str, empty_database_url: str
) -> Iterator[Cluster]:
    """The same beside a PostgreSQL in which nothing has been made yet."""
    with service(redis, redis_url, empty_database_url) as beside:
        yield Cluster(engine, beside)
    engine.remove_containers()
