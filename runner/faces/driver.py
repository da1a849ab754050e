"""What CUDA needs from its environment: the node's driver, and variables that a container has to set."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

DRIVER = "libcuda.so.1"
# Where nodes without the NVIDIA container runtime, which puts the driver on the loader's own paths, mount it.
DRIVER_FOLDERS = (
    "/usr/local/nvidia/lib64",  # GKE
    "/usr/local/nvidia/lib",
    "/run/nvidia/driver/usr/lib64",  # the driver container of NVIDIA's GPU operator
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
)


def prepare() -> str | None:
    """Set CUDA's variables unless they are set, load the driver, and return its path, or None if there is none.

    The kernels of a module are loaded when they are first used: a run uses a few of thousands. The cache of compiled
    kernels needs a writable folder, and half of what the chart's `/tmp` holds: more would evict the pod.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    # Not tempfile, whose import would add 5 ms to every start. The folder is the container's own.
    os.environ.setdefault("CUDA_CACHE_PATH", str(Path(os.environ.get("TMPDIR", "/tmp")) / "cuda-cache"))  # noqa: S108 - see above
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(128 * 1024 * 1024))
    return load_driver()


def load_driver(folders: Iterable[str | Path] = DRIVER_FOLDERS) -> str | None:
    """Load the driver into the process, where onnxruntime then finds it by its name, and return its path.

    The loader's own paths come first, then `folders`. Returns None where there is none, or none that can be loaded.
    """
    for path in (DRIVER, *(str(Path(folder) / DRIVER) for folder in folders)):
        try:
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return path
    return None
