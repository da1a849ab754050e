"""No core dumps: the memory of this process holds selfies, photos and passwords."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

PR_SET_DUMPABLE = 4  # prctl(2)


def disable_core_dumps() -> None:
    """Let the kernel write no core dump of this process, neither to a file nor to a program.

    The limit keeps files from being written, here and in child processes. It does not hold where the node pipes core
    dumps to a program (core(5)); a process that is not dumpable has none in either case. In exchange only root may
    read its /proc/PID/environ, mem and root, or trace it.
    """
    with suppress(ValueError, OSError):  # a container may forbid it, and then decides on core dumps itself
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # the kernel looks at the soft limit alone
    with suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
