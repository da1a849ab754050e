"""Every command that the documentation shows, and that can run here, runs: one script a page, on real servers."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from demo import api
from demo.images import ImageServer
from demo.servers import free_port
from runner.queue.leases import LeaseQueue
from runner.store import schema
from tests.support.pages import Reader, name_of, script
from tests.support.store_tools import opened
from tools.prose import PAGES, ROOT

if TYPE_CHECKING:
    from redis import Redis

RUNNABLE = [page for page in PAGES if script(page)]
# What the commands of a page must show, according to its text.
SHOWN = {
    "CONTRIBUTING.md": ("make faults",),
    "docs/explanation/fault-injection.md": ("kill-random",),
    "docs/explanation/performance.md": ("cold-start",),
    "docs/how-to/capacity.md": ("a burst of 2,000 jobs", "p95 is within --target", "1,610 jobs of pushes.csv"),
    "docs/how-to/debugging.md": ("WAITING", "photo photo: 6 faces", "comparison guest: 6 faces"),
    "docs/how-to/forget.md": ("would be removed", "BGREWRITEAOF"),
    "docs/how-to/kubernetes.md": ("image_missing",),
    "docs/how-to/model-pack.md": ("buffalo_sc",),
    "docs/how-to/moving-in.md": (
        "0 would be imported",
        "up to date; deleting a photo removes",
        "nothing was pushed",
        "WAITING",
    ),
    "docs/how-to/reprocess.md": ("nothing was pushed",),
    "docs/how-to/upgrading.md": ("at version",),
    "docs/tutorial/laptop.md": ('"faces": 6', '["photo-1"]', "163 of different people", "image_missing", '"photos": 1'),
}
_LEGACY = """
CREATE TABLE face_embeddings (id serial PRIMARY KEY, name varchar(255) UNIQUE NOT NULL, embedding text NOT NULL)
"""


@pytest.fixture(scope="session")
def photo() -> bytes:
    """The photo that the tutorial takes from InsightFace."""
    import insightface

    return (Path(insightface.__file__).parent / "data" / "images" / "t1.jpg").read_bytes()


@pytest.fixture
def checkout(tmp_path: Path, photo: bytes) -> Path:
    """A folder with what a checkout has, by links, and the files that a reader is assumed to have."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    comparison = {"jobId": "guest", "storedIds": ["photo"], "selfie": base64.b64encode(photo).decode()}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    return tmp_path


@pytest.fixture
def dead_id(redis: Redis) -> str:
    """The id of a dead letter, whose URL is refused: a server that cannot be reached would be waited for."""
    redis.rpush("face_embeddings:process", json.dumps({"id": "photo", "imageUrl": "http://10.0.0.1/photo.jpg"}))
    leases = LeaseQueue(redis, "process", owner="documentation", lease_seconds=30, max_attempts=3)
    (lease,) = leases.claim(1)
    assert leases.dead_letter(lease, "image_missing", "the image server says that the image is not there")
    return lease.id


@pytest.fixture
def reader(checkout: Path, photo: bytes, redis_url: str, dead_id: str, empty_database_url: str) -> Iterator[Reader]:
    """A reader with both servers, a photo to fetch and a dead letter, but no cluster."""
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(checkout),
        "KUBECONFIG": str(checkout / "no-cluster"),
        "LANG": "C.UTF-8",
        "REDIS_URL": redis_url,
        "DATABASE_URL": empty_database_url,
        "RUNNER_ALLOWED_PRIVATE_HOSTS": "127.0.0.1",
        "RUNNER_ALLOWED_PORTS": "1024-65535",
    }
    with ImageServer({"party.jpg": photo}) as server:
        placeholders = {"DEAD_ID": dead_id, "PHOTO_ID": "photo", "IMAGE_URL": server.url("party.jpg")}
        yield Reader(checkout, environment, {**placeholders, "8000": str(free_port())})


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_commands_of_a_page_run(page: Path, reader: Reader, empty_database_url: str) -> None:
    commands = script(page)
    # `make` would install into the environment that the tests run in, from a folder that is gone afterwards.
    assert re.findall(r"\bmake (?!help\b)", commands) == [], "mark this block with <!-- not run: REASON -->"
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        api.create_table(connection)
        connection.execute("INSERT INTO \"Photo\" (id) VALUES ('photo')")
        connection.execute(_LEGACY)
    if "migrate" not in commands:
        with opened(empty_database_url) as session:
            schema.migrate(session)
    output = reader.follow(commands)
    assert "Traceback" not in output
    for shown in SHOWN[name_of(page)]:
        assert shown in output, output


def test_a_command_that_fails_fails_its_page(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="nope"):
        reader.follow("spottmee-worker dead requeue nope\ntrue")
