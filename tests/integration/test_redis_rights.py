"""Rights in Redis: the documented ones suffice; without one doctor names it, the command fails, and no job is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import forget
from runner.queue import rights
from tests.support.redis_rights import COMPARISON, PHOTO, Limited, Scene
from tests.support.run_tools import Ended, Service

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "redis-keys.md"
DOCUMENTED = dict(re.findall(r"^(\w+(?: \w+)?) +(~.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
YES, URL = "--yes", "http://h/{id}"
# What each command is called with: together these use every right of the command.
CALLS: dict[str, list[tuple[str, ...]]] = {
    "run": [("run",)],
    "sweep": [("sweep", "--force")],
    "reprocess": [
        ("reprocess", "--url", "http://h/{id}"),
        ("reprocess", "--url", "http://h/{id}", "--code", "fetch_failed"),
    ],
    "forget": [
        ("forget", "--photo", PHOTO, YES),
        ("forget", "--photo", "photo-leased", YES),
        ("forget", "--comparison", COMPARISON, "--dry-run"),
        ("forget", "--comparison", COMPARISON, YES),
    ],
    "dead list": [("dead", "list", "--json")],
    "dead show": [("dead", "show", "ID")],
    "dead requeue": [("dead", "requeue", "--all")],
    "dead purge": [("dead", "purge", "--all", YES)],
    "status": [("status",)],
    "metrics": [("metrics", "--once")],
}
# Rights that are needed only rarely, without which these calls succeed: test_queue_refusals removes each of them, and
# doctor names them.
RARE = {
    "run": {"+sadd", "+srem", "+lindex", "+lrange", "+del", "+rpush"},
    "sweep": {"+del"},
    "reprocess": {"+pttl"},
    "dead show": {"+eval"},  # with which doctor tries the others
    "metrics": {"+hstrlen"},  # the page, which --once does not draw
}
# Without it an idle run polls, and says so in its log.
OPTIONAL = {"+blmove"}
REMOVED = {"forget": 3, "dead purge": 1}  # jobs that a command removes from Redis at most, on request


@pytest.fixture
def scene(service: Service) -> Scene:
    return Scene(service)


@pytest.fixture
def limited(service: Service) -> Iterator[Limited]:
    found = Limited(service)
    yield found
    found.remove()


def _call(limited: Limited, scene: Scene, command: str) -> list[Ended]:
    """Return the results of the command's calls, up to the first that fails."""
    ended = []
    for call in CALLS[command]:
        arguments = tuple(scene.dead_id if word == "ID" else word for word in call)
        in_fork = arguments[0] in ("run", "metrics")
        ended.append(limited.forked(*arguments) if in_fork else limited.command(*arguments))
        if ended[-1].code:
            break
    return ended


def test_the_page_lists_the_rights_that_doctor_tries() -> None:
    assert {name: set(words.split()) for name, words in DOCUMENTED.items()} == {
        name: set(words.split()) for name, words in rights.RIGHTS.items()
    }


@pytest.mark.parametrize("command", CALLS)
def test_a_command_needs_each_documented_right_and_no_other(
    command: str, scene: Scene, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "SETTLE_SECONDS", 0)  # there is no run to wait for
    documented = set(DOCUMENTED[command].split())
    limited.grant(documented)
    assert limited.lacking(command) == set()
    for ended in _call(limited, scene, command):
        assert ended.code == 0, ended.errors
        assert "grant" not in ended.output + ended.errors.replace("grant +publish", "")
    for right in sorted(documented - RARE.get(command, set())):
        scene.restore()
        limited.grant(documented - {right})
        assert limited.lacking(command) == {right}
        # Only a run that stays for a while without work is certain to wait for a push.
        idle = right in OPTIONAL and command == "run"
        *_, ended = [limited.forked("run", "--idle-seconds", "1")] if idle else _call(limited, scene, command)
        printed = ended.errors + ended.output
        assert right in " ".join(re.findall(r"grant ([^(]+)\(", printed)).split(), (right, printed)
        assert "Traceback" not in printed
        assert ended.code == (0 if right in OPTIONAL else 2), (right, printed)
        if right not in OPTIONAL:
            assert len(scene.lost()) <= REMOVED.get(command, 0), right
