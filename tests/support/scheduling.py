"""Which folders `make test` runs, and how it spreads them: a file stays on one process, and long ones start first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# Collected only if the command line names them: `make image-test` needs root, `make e2e` a control plane.
APART = ("tests/image", "tests/e2e")
# By how long their files take, longest first: a long file that started last would run alone at the end.
FOLDERS = ("tests/faults", "tests/fuzz", "tests/integration", "tests/chart", "tests/unit")


def apart(path: Path, arguments: Sequence[str]) -> bool:
    """Return whether this is a folder of `APART` that no argument names."""
    found = next((folder for folder in APART if path.as_posix().endswith(f"/{folder}")), None)
    return found is not None and not any(found in Path(argument).absolute().as_posix() for argument in arguments)


def place(nodeid: str) -> int:
    """Return the position of a test's folder; 0 for a folder that is not listed."""
    return next((number for number, folder in enumerate(FOLDERS) if nodeid.startswith(f"{folder}/")), 0)


class LongFirst(LoadFileScheduling):  # type: ignore[misc] # xdist has no annotations
    """Gives each process one file after the other, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # by number of tests, it would start the long campaigns last
        super().__init__(config, log)
