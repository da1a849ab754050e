"""`python -m runner` and `spottmee-worker`: the start of every command, before anything that may fail is imported."""

import gc
import os
import signal
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - started from a folder, nothing else has checked it
    sys.stderr.write(f"spottmee-worker needs Python 3.11 or newer, and this is {sys.version.split()[0]}\n")
    sys.exit(2)


def _interrupted(_number: int, _frame: object) -> None:
    os._exit(130)


# Ctrl-C while modules are imported would end in a traceback, or in an error of a library that was half imported.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)

gc.disable()  # what is imported stays: traversing it 40 times takes 4 ms; `main` enables it again

from runner.cli import main  # noqa: E402 - after what has to come first

if __name__ == "__main__":
    sys.exit(main())
