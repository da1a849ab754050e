"""Disables core dumps: the memory of this process contains selfies, photos and passwords."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

PR_SET_DUMPABLE = 4  # prctl(2)


def disable_core_dumps() -> None:
    """Keep the kernel from dumping the memory of this process to a file or to a program.

    The resource limit prevents files, here and in child processes, but not a dump that the node pipes to a program
    (core(5)); making the process non-dumpable prevents both. As a side effect, only root may trace the process, or read
    its /proc/PID/environ, mem and root.
    """
    with suppress(ValueError, OSError):  # a container may forbid it: then its own limit applies
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # the kernel uses only the soft limit
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
