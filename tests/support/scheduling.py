"""Which folders `make test` runs, in which order, and what stays together on one of its processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# Collected only if the command line names them: `make image-test` needs root, `make e2e` a control plane.
APART = ("tests/image", "tests/e2e")
# The order of the others: a long file that started last would run alone at the end.
FOLDERS = ("tests/faults", "tests/fuzz", "tests/chart", "tests/integration", "tests/unit")
# Campaigns mostly wait, for servers and for leases that expire: between two of them starts a file that computes.
WAITING = "tests/faults/"
# Files whose tests share nothing, and take minutes together: each of the tests may run on any process.
SPREAD = (
    "tests/faults/test_campaigns.py",
    "tests/integration/test_outage.py",
    "tests/integration/test_store_crashes.py",
)


def apart(path: Path, arguments: Sequence[str]) -> bool:
    """Return whether this is a folder of `APART` that no argument names."""
    found = next((folder for folder in APART if path.as_posix().endswith(f"/{folder}")), None)
    return found is not None and not any(found in Path(argument).absolute().as_posix() for argument in arguments)


def scope(nodeid: str) -> str:
    """Return what stays together on one process with this test: its file, or the test alone."""
    file = nodeid.partition("::")[0]
    return nodeid if file in SPREAD else file


def arrange(nodeids: Iterable[str]) -> dict[str, int]:
    """Return the position of each scope in the order in which they start."""
    scopes = sorted(dict.fromkeys(map(scope, nodeids)), key=_place)
    waiting = [one for one in scopes if one.startswith(WAITING)]
    computing = [one for one in scopes if not one.startswith(WAITING)]
    pairs = zip_longest(waiting, computing)
    return {one: position for position, one in enumerate(one for pair in pairs for one in pair if one is not None)}


def _place(path: str) -> int:
    """Return the position of a test's folder; 0 for a folder that is not listed."""
    return next((number for number, folder in enumerate(FOLDERS) if path.startswith(f"{folder}/")), 0)


class Arranged(LoadFileScheduling):  # type: ignore[misc] # xdist has no annotations
    """Gives each process one scope after the other, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # by number of tests, it would start the long campaigns last
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)
