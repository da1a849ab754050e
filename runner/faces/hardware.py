"""What the machine offers: the CPU share of this container, and the execution providers of onnxruntime."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import SettingsError

# The words of RUNNER_PROVIDERS, in the order of preference, with onnxruntime's names and the crops a call.
PROVIDERS = {
    "tensorrt": ("TensorrtExecutionProvider", 32),
    "cuda": ("CUDAExecutionProvider", 32),
    "cpu": ("CPUExecutionProvider", 4),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The provider that runs the models, how many crops it takes a call, and why it was chosen."""

    word: str
    provider: str
    batch_size: int
    why: str


def choose_provider(wanted: Sequence[str], available: Sequence[str], batch_size: int = 0) -> Choice:
    """Return the first of `wanted` that `available` (onnxruntime's names) has; "auto" wants all, best first.

    Raises `SettingsError` for a word that is no provider, and where none of them is available.
    """
    words = [word.lower() for word in wanted]
    if words in ([], ["auto"]):
        words = list(PROVIDERS)
    unknown = [word for word in words if word not in PROVIDERS]
    if unknown:
        raise SettingsError(f"RUNNER_PROVIDERS names {', '.join(unknown)}; known are auto, {', '.join(PROVIDERS)}")
    passed: list[str] = []
    for word in words:
        name, crops = PROVIDERS[word]
        if name in available:
            why = f"{', '.join(passed)} not available in this onnxruntime" if passed else "the first one wanted"
            return Choice(word, name, batch_size or crops, why)
        passed.append(word)
    raise SettingsError(
        f"RUNNER_PROVIDERS wants {', '.join(words)}, and this onnxruntime has only {', '.join(available)}: "
        "use the image with the gpu flavour, or add cpu"
    )


def thread_count(wanted: int = 0, root: Path = Path("/")) -> int:
    """Return how many threads compute: `wanted`, or as many as the container's CPU limit allows, at least 1.

    The node's cores say nothing in a container with a quota: more threads than the quota only wait for each other.
    """
    if wanted > 0:
        return wanted
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, min(available, math.ceil(quota) if quota else available))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU limit of this process's control group in CPUs, or None where there is none.

    Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us), the tightest limit up the tree
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    limits = [limit for folder in _cgroup_folders(root) if (limit := _limit(folder)) is not None]
    return min(limits) if limits else None


def _cgroup_folders(root: Path) -> list[Path]:
    mount = root / "sys/fs/cgroup"
    folders = [mount, mount / "cpu", mount / "cpu,cpuacct"]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        relative = Path(path.lstrip("/"))
        folders += [base / relative, *(base / parent for parent in relative.parents)]
    return folders


def _limit(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0 or int(period) <= 0:
        return None
    return int(quota) / int(period)
