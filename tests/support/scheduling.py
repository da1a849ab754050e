"""How `make test` spreads the tests over processes: a file stays on one process, and long ones start first."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# By how long their files take, longest first: a long file that started last would run alone at the end.
FOLDERS = ("tests/image", "tests/faults", "tests/fuzz", "tests/e2e", "tests/integration", "tests/chart", "tests/unit")
# The files of these folders share something that a session creates once: the image.
TOGETHER = ("tests/image",)


def place(nodeid: str) -> int:
    """Return the position of a test's folder; 0 for a folder that is not listed."""
    return next((number for number, folder in enumerate(FOLDERS) if nodeid.startswith(f"{folder}/")), 0)


class LongFirst(LoadFileScheduling):  # type: ignore[misc] # xdist has no annotations
    """Gives each process one file after the other, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # by number of tests, it would start the long campaigns last
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        """Return what stays together with this test: its file, or its folder."""
        shared = (folder for folder in TOGETHER if nodeid.startswith(f"{folder}/"))
        return next(shared, super()._split_scope(nodeid))
