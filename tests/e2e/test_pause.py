"""Pausing a list with the commands of the chart's notes: no Job starts until the list is resumed."""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid
from typing import Any

import pytest

from tests.e2e.backends import Backends
from tests.e2e.site import CHART, Site, wait

POLLS = 5  # KEDA polls once a second here


def test_a_paused_list_starts_no_job_until_it_is_resumed(
    site: Site, namespace: str, values: dict[str, Any], backends: Backends
) -> None:
    if site.no_keda:
        pytest.skip(site.no_keda)
    where = ("--namespace", namespace, "--wait", "--timeout", "3m")
    printed = site.helm("install", "party", str(CHART), *where, values=values)
    commands = {
        action: shlex.split(command)
        for action, command in re.findall(r"^(Pause|Resume) +kubectl (.+)$", printed, re.MULTILINE)
    }
    site.kubectl(*commands["Pause"])
    wait(
        lambda: all(_condition(item, "Paused") for item in site.get("scaledjobs", "--namespace", namespace)),
        "KEDA to pause",
    )
    # The job of a photo that has been deleted since: it is claimed, looked up and acknowledged, without an image.
    backends.connection.execute("INSERT INTO \"Photo\" (id) VALUES ('another')")
    job = json.dumps({"imageUrl": "http://gone/1.jpg", "id": str(uuid.uuid4())})
    backends.redis.rpush("face_embeddings:process", job)
    time.sleep(POLLS)
    process = ("--namespace", namespace, "--selector", "app.kubernetes.io/component=process")
    assert site.get("jobs", *process) == []
    assert backends.leftovers() == {"process waiting": 1}
    site.kubectl(*commands["Resume"])
    wait(lambda: site.get("jobs", *process) and not backends.leftovers(), "the paused job to be processed")
    site.helm("uninstall", "party", "--namespace", namespace)


def _condition(scaled: dict[str, Any], kind: str) -> bool:
    return any(item["type"] == kind and item["status"] == "True" for item in scaled["status"].get("conditions") or [])
