"""What the machine offers: the CPU share of this container, and the execution providers of onnxruntime."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runner.errors import SettingsError

CPU = "CPUExecutionProvider"
FIRST = "the first one wanted"
# The words of RUNNER_PROVIDERS, in the order of preference, with onnxruntime's names and the crops a call.
PROVIDERS = {
    "tensorrt": ("TensorrtExecutionProvider", 32),
    "cuda": ("CUDAExecutionProvider", 32),
    "cpu": (CPU, 2),
}


# The kernel's names, and OpenCV's numbers of what it asks the processor for (opencv2/core/hal/interface.h).
_FEATURES = {"avx2": 11, "fma": 12, "avx512f": 13}


class ProviderError(Exception):
    """An execution provider does not run the models here; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider that may run the models: what it is called, how many crops it takes a call, and why it is the one.

    `providers` are onnxruntime's names: the one chosen, then those that run what it cannot.
    """

    word: str
    providers: tuple[str, ...]
    batch_size: int
    why: str


def choose_providers(wanted: Sequence[str], available: Sequence[str], batch_size: int = 0) -> list[Choice]:
    """Return those of `wanted` that `available` (onnxruntime's names) has, in order; "auto" wants all, best first.

    A later one is for the case that those before it cannot be started. Raises `SettingsError` for a word that is no
    provider, and where none of them is available.
    """
    words = [word.lower() for word in wanted]
    if words in ([], ["auto"]):
        words = list(PROVIDERS)
    unknown = [word for word in words if word not in PROVIDERS]
    if unknown:
        raise SettingsError(f"RUNNER_PROVIDERS names {', '.join(unknown)}; known are auto, {', '.join(PROVIDERS)}")
    choices = []
    passed: list[str] = []
    for word in words:
        name, crops = PROVIDERS[word]
        if name in available:
            helpers = [other for other, _ in PROVIDERS.values() if other in available]
            chain = tuple(helpers[helpers.index(name) :])
            why = f"{' and '.join(passed)} not in this onnxruntime" if passed else FIRST
            choices.append(Choice(word, chain, batch_size or crops, why))
        else:
            passed.append(word)
    if not choices:
        raise SettingsError(
            f"RUNNER_PROVIDERS wants {', '.join(words)}, and this onnxruntime has only {', '.join(available)}: "
            "use the image with the gpu flavour, or add cpu"
        )
    return choices


def thread_count(wanted: int = 0, root: Path = Path("/")) -> int:
    """Return how many threads compute: `wanted`, or as many as the container's CPU limit allows, at least 1.

    The node's cores say nothing in a container with a quota: more threads than the quota only wait for each other.
    A part of a CPU counts as one more thread: with a limit of 1.5, one thread would leave a third of it unused.
    """
    if wanted > 0:
        return wanted
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, min(available, math.ceil(quota) if quota else available))


def blocked_layout(onnxruntime_version: str, root: Path = Path("/")) -> str:
    """Return what decides how onnxruntime lays out weights for convolutions here, or "" where that is not known.

    Blocks of 16 channels with AVX-512, of 8 with AVX2 (MLAS_PLATFORM in onnxruntime/core/mlas/lib/platform.cpp), in a
    layout that is each release's own matter. The kernel and the processor itself must say the same of these: under
    qemu-user the kernel tells of a processor that the program never sees.
    """
    flags: set[str] = set()
    with suppress(OSError), (root / "proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:
        flags.update(next((line for line in lines if line.startswith("flags")), "").split())
    if any(_supported(number) != (flag in flags) for flag, number in _FEATURES.items()) or not {"avx2", "fma"} <= flags:
        return ""
    block = 16 if "avx512f" in flags else 8
    return f"onnxruntime {onnxruntime_version}, x86-64, blocks of {block}"


def _supported(feature: int) -> bool:
    import cv2

    return bool(cv2.checkHardwareSupport(feature))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU limit of this process's control group in CPUs, or None where there is none.

    Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us) under every mount of them that holds the CPU controller, the
    tightest limit up the tree (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    limits = [limit for folder in _cgroup_folders(root) if (limit := _limit(folder)) is not None]
    return min(limits) if limits else None


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's group and of the groups that it is in, as far as they are mounted."""
    groups = _groups(root)
    for mount, top, version in _mounts(root):
        path = groups.get(version)
        # In a container the mount often begins at the container's own group, and then is all that can be seen.
        inside = path.relative_to(top) if path and path.is_relative_to(top) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        folder = mount / inside
        yield folder
        yield from (mount / parent for parent in inside.parents)


def _groups(root: Path) -> dict[int, PurePosixPath]:
    """Return this process's group by version of the hierarchy that holds the CPU controller (proc(5), cgroups(7))."""
    found = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not (number.isdigit() and colon):
            continue
        if not controllers:
            found[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            found[1] = PurePosixPath(path)
    return found


def _mounts(root: Path) -> Iterator[tuple[Path, PurePosixPath, int]]:
    """Yield where a hierarchy is mounted, which of its groups is at the top there, and its version.

    A line of /proc/self/mountinfo (proc(5)): id, parent, device, root, mount point, options, …, "-", type, source,
    options of the hierarchy.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, about = before.split(), after.split()
        if len(fields) < 5 or len(about) < 3:  # noqa: PLR2004 - as above
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(about[0])
        if version is None or (version == 1 and "cpu" not in about[2].split(",")):
            continue
        yield root / fields[4].lstrip("/"), PurePosixPath(fields[3]), version


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text(errors="replace").splitlines()
    return []


def _limit(folder: Path) -> float | None:
    texts = (_lines(folder / "cpu.max") or [""])[0].split()
    if not texts:
        texts = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    try:
        quota, period = (int(text) for text in texts)
    except ValueError:  # "max", or not there
        return None
    return quota / period if quota > 0 and period > 0 else None
