"""A third kind of job, defined only in this file, goes the whole way from its queue to a dead letter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo.images import ImageServer
from runner import settings
from runner.errors import InvalidJobError
from runner.queue.dead_letters import DeadLetters
from runner.worker import app
from runner.worker.kinds import KINDS, Kind, Services
from runner.worker.task import Task
from tests.support.run_tools import Service

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CountJob:
    """Count the faces of one image."""

    url: str


class CountHandler:
    """Writes the number of faces to `counted:URL`."""

    def __init__(self, services: Services) -> None:
        self._fetcher = services.fetcher
        self._results = services.results

    def resume(self, task: Task[CountJob]) -> None:
        pass

    def begin(self, tasks: Sequence[Task[CountJob]]) -> None:
        pass

    def read(self, task: Task[CountJob]) -> bytes:
        assert task.job is not None
        return self._fetcher.fetch(task.job.url)

    def conclude(self, tasks: Sequence[Task[CountJob]]) -> None:
        for task in tasks:
            if task.job is not None:
                self._results._redis.set(f"counted:{task.job.url}", len(task.faces or ()))

    def confirmed(self, tasks: Sequence[Task[CountJob]]) -> list[Task[CountJob]]:
        return list(tasks)

    def stop_watching(self, tasks: Sequence[Task[CountJob]]) -> None:
        pass


def decode(payload: bytes) -> CountJob:
    document: Any = json.loads(payload)
    if "countUrl" not in document:
        raise InvalidJobError("countUrl is missing")
    return CountJob(document["countUrl"])


COUNT = Kind(
    queue="count",
    noun="count",
    plural="counts",
    id_field="countUrl",
    marks=frozenset({"countUrl"}),
    decode=decode,
    handler=CountHandler,
)


def test_a_third_kind_of_job_needs_no_change_of_another_module(
    service: Service, images: ImageServer, album: Any
) -> None:
    photo = album.photos[0]
    url = images.url(photo.name)
    service.redis.rpush("face_embeddings:count", json.dumps({"countUrl": url}), json.dumps({"other": 1}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_third_kind"],
        env=dict(service.environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (summary["claimed"], summary["succeeded"], summary["counts"], summary["dead_lettered"]) == (2, 1, 1, 1)
    assert int(service.redis.get(f"counted:{url}") or 0) > 0
    assert [letter.code for letter in DeadLetters(service.redis, "count").all()] == ["invalid_job"]
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["count", "count"]


if __name__ == "__main__":
    sys.exit(app.run(replace(settings.load(), queues=("count",)), {**KINDS, "count": COUNT}))
