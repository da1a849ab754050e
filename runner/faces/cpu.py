"""The CPU: how much of it this container may use, and how onnxruntime lays out weights for it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import cv2

# The kernel's names in /proc/cpuinfo → OpenCV's numbers (opencv2/core/hal/interface.h).
_FEATURES = {"avx2": 11, "fma": 12, "avx512f": 13}


def thread_count(wanted: int = 0, root: Path = Path("/")) -> int:
    """Return the number of compute threads: `wanted` if positive, otherwise the CPUs that this process may use.

    Those are the CPUs of its affinity mask, or the container's limit if that is lower; at least 1. The limit is
    rounded up: with 1.5 CPUs, one thread would leave a third of them unused. `root` is where /proc and /sys are.
    """
    if wanted > 0:
        return wanted
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, min(available, math.ceil(quota) if quota else available))


def blocked_layout(onnxruntime_version: str, root: Path = Path("/")) -> str:
    """Return a key of the blocked layout (NCHWc) that onnxruntime uses for convolutions here, "" if unknown.

    Blocks have 16 channels with AVX-512 and 8 with AVX2 (MLAS_PLATFORM in onnxruntime/core/mlas/lib/platform.cpp);
    everything else about the layout may change with each release. The kernel and CPUID must agree: under qemu-user,
    /proc/cpuinfo describes the host.
    """
    flags: set[str] = set()
    with suppress(OSError), (root / "proc/cpuinfo").open(encoding="ascii", errors="replace") as lines:
        flags.update(next((line for line in lines if line.startswith("flags")), "").split())
    agree = all(cv2.checkHardwareSupport(number) == (flag in flags) for flag, number in _FEATURES.items())
    if not agree or not {"avx2", "fma"} <= flags:
        return ""
    block = 16 if "avx512f" in flags else 8
    return f"onnxruntime {onnxruntime_version}, x86-64, blocks of {block}"


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU limit of this process's control group in CPUs, or None if there is none.

    The tightest limit from the group up to the root of each mounted hierarchy counts, cgroup v2 (cpu.max) or v1
    (cpu.cfs_quota_us): https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    return min((limit for folder in _cgroup_folders(root) if (limit := _limit(folder)) is not None), default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's group and its ancestors, as far as they are mounted."""
    groups = _groups(root)
    for mount, top, version in _mounts(root):
        path = groups.get(version)
        # In a container the mount often begins at the container's own group, and nothing above it is visible.
        inside = path.relative_to(top) if path and path.is_relative_to(top) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        yield from (mount / group for group in (inside, *inside.parents))


def _groups(root: Path) -> dict[int, PurePosixPath]:
    """Return this process's group by cgroup version, where that has the CPU controller (cgroups(7))."""
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
    """Yield mount point, topmost visible group and cgroup version of each hierarchy that may limit CPUs.

    A line of /proc/self/mountinfo (proc(5)): id, parent, device, root, mount point, options, …, "-", type, source,
    options of the hierarchy.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount, hierarchy = before.split(), after.split()
        if len(mount) < 5 or len(hierarchy) < 3:  # noqa: PLR2004 - as above
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(hierarchy[0])
        if version is None or (version == 1 and "cpu" not in hierarchy[2].split(",")):
            continue
        yield root / mount[4].lstrip("/"), PurePosixPath(mount[3]), version


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
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None
