"""The Dockerfile, compose.yaml and the workflows pass their linters, and agree with the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from runner import settings
from runner.cli import COMMANDS
from runner.settings import Settings
from tools.image_base import ROOT

pytestmark = pytest.mark.timeout(900)  # `go run` builds its programs first

# Run with `go run MODULE@VERSION`, because PyPI has neither program.
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
COMPOSE = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"  # the parser of `docker compose config`
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
_COLUMNS = """
SELECT column_name, udt_name, is_nullable FROM information_schema.columns
WHERE table_name = 'Photo' ORDER BY ordinal_position
"""


def _check(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _go(module: str) -> list[str]:
    if shutil.which("go") is None:
        pytest.skip(f"{module} needs Go, which is not installed: apt-get install golang-go")
    return ["go", "run", module]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert json.loads(_check([_tool("hadolint"), "--format=json", "--failure-threshold=style", "Dockerfile"])) == []
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text(), "the Dockerfile has an exception"


def test_the_workflows_are_valid() -> None:
    workflows = [str(path.relative_to(ROOT)) for path in WORKFLOWS]
    assert workflows
    _check([*_go(ACTIONLINT), "-shellcheck=", "-pyflakes=", *workflows])


def test_the_workflows_leak_no_credentials_or_permissions() -> None:
    """zizmor finds credentials left in the work tree, excessive permissions, and expressions inside scripts."""
    _check([_tool("zizmor"), "--offline", "--quiet", "--pedantic", ".github/workflows"])


def test_every_action_is_pinned_by_commit() -> None:
    uses = [use for path in WORKFLOWS for use in re.findall(r"uses: (\S+)", path.read_text())]
    assert uses
    assert [use for use in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", use)] == []


def test_workflows_call_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        target
        for path in WORKFLOWS
        for targets_of_call in re.findall(r"\bmake ((?:[a-z0-9-]+ ?)+)", path.read_text())
        for target in targets_of_call.split()
    }
    assert {"lint", "test", "image", "image-test"} <= called <= targets


def test_make_image_uses_docker_only_if_its_engine_responds() -> None:
    """A docker command without an engine, as on a machine that uses a remote one, cannot build."""
    docker = shutil.which("docker")
    answers = (
        docker is not None and subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0
    )
    command = next(line for line in _check(["make", "--dry-run", "image"]).splitlines() if "--tag" in line)
    assert command.split()[:2] == (["docker", "build"] if answers else ["buildah", "build"])


def test_make_image_rejects_an_unknown_flavour() -> None:
    done = subprocess.run(["make", "image", "FLAVOUR=tpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "FLAVOUR is tpu: it must be cpu or gpu" in done.stderr


def test_compose_accepts_the_file() -> None:
    """Checked with the library that `docker compose config` uses."""
    services = json.loads(_check([*_go(COMPOSE), "-format=json", "compose.yaml"]))["services"]
    assert set(services) == {"redis", "postgres", "migrate", "runner"}
    for name in ("migrate", "runner"):
        assert (services[name]["image"], services[name]["read_only"]) == ("spottmee-worker", True)
    assert services["runner"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_compose_uses_settings_and_commands_that_exist() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    known = {item.metadata["env"] for item in fields(Settings)}
    for name in ("migrate", "runner"):
        assert set(services[name]["environment"]) <= known
        environment = {key: str(value) for key, value in services[name]["environment"].items()}
        command, *flags = services[name]["command"]
        assert command in COMMANDS
        if flags:
            named = {item.metadata["flag"]: item.name for item in fields(Settings) if item.metadata["flag"]}
            pairs = zip(flags[::2], flags[1::2], strict=True)
            settings.load(_interpolated(environment), {named[flag]: value for flag, value in pairs})


def test_compose_creates_the_same_table_as_the_api(database_url: str, empty_database_url: str) -> None:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(document["configs"]["photo.sql"]["content"])
        ours = connection.execute(_COLUMNS).fetchall()
    with psycopg.connect(database_url) as connection:
        assert connection.execute(_COLUMNS).fetchall() == ours
        assert len(ours) == 8


def _interpolated(environment: dict[str, str]) -> dict[str, str]:
    return {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in environment.items()}
