"""The command lines of buildah and podman."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.image_base import Engine

# As long as the path of a checkout on a runner of GitHub's, and longer.
FOLDERS = ["/home/runner/work/spottmee-worker/spottmee-worker/.cache/containers", f"/{'long/' * 40}", "/short"]


def _runroot(folder: str) -> str:
    command = Engine(Path(folder)).command("podman", "images")
    return next(argument for argument in command if argument.startswith("--runroot=")).removeprefix("--runroot=")


@pytest.mark.parametrize("folder", FOLDERS)
def test_podman_accepts_the_run_root_of_a_storage_however_long_its_path_is(folder: str) -> None:
    assert len(_runroot(folder)) <= 50
    assert _runroot(folder) == _runroot(folder)


def test_each_storage_has_a_run_root_of_its_own() -> None:
    assert len({_runroot(folder) for folder in FOLDERS}) == len(FOLDERS)
