"""The real runner, with a fault injected between two of its steps. Run as a script, with the runner's own arguments.

Production code has no hooks for this: this script wraps the real functions, and then calls `runner.cli.main`. The
fault is defined by environment variables:

FAULT_POINT    where to inject the fault: a key of `_points()`
FAULT_ACTION   the fault: a key of `ACTIONS`
FAULT_SHARE    the share of the jobs at this point that are affected, at their first attempt only
FAULT_NOTES    a file to which each injected fault appends a line
FAULT_DATABASE the API's database, for `delete`
FAULT_SUBJECTS a file of ids, one per line: only these are affected; with FAULT_FIRST, at their first attempt only
FAULT_MEMORY   bytes: the process enters a memory cgroup of this size, so that the kernel's OOM killer ends it like a
               container; FAULT_ADDRESS_SPACE sets RLIMIT_AS instead, so that malloc fails
FAULT_INVISIBLE_SECONDS  delay of jobs whose photos cannot be seen
FAULT_HUNG_SECONDS  shorter limits for a hung or frozen run
FAULT_RELEASE_SECONDS  how long the watchdog may take to release leases; longer for a busy machine

Modules of the runner are imported inside functions here: the memory limits must apply to their imports too, and a
process without a fault must import them in the runner's own order.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_RANDOM = random.Random(os.getpid())
_ATTEMPTS: dict[str, int] = {}  # photo id or job id → the attempt that this process has claimed
_BY_URL: dict[str, str] = {}
_BY_BYTES: dict[int, str] = {}
_KEPT: list[bytes] = []  # keeps the objects alive, so that no two of them have the same id
_DELETE = (
    "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True)"
    ".execute('DELETE FROM \"Photo\" WHERE id = ANY(%s)', (sys.argv[2:],))"
)


def affected(subjects: Iterable[str]) -> list[str]:
    """Return those of the photos (or comparisons) that the fault affects now."""
    chosen = os.environ.get("FAULT_SUBJECTS")
    if chosen:
        marked, first = set(Path(chosen).read_text("utf-8").split()), bool(os.environ.get("FAULT_FIRST"))
        return [s for s in subjects if s in marked and (not first or _ATTEMPTS.get(s) == 1)]
    share = float(os.environ.get("FAULT_SHARE", "1"))
    return [s for s in subjects if _ATTEMPTS.get(s) == 1 and _RANDOM.random() < share]


def note(text: str) -> None:
    with Path(os.environ["FAULT_NOTES"]).open("a", encoding="utf-8") as notes:
        notes.write(f"{text}\n")


def kill(_: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # until the signal arrives


def _deletion(subjects: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _DELETE, os.environ["FAULT_DATABASE"], *subjects]
    return subprocess.Popen(command, start_new_session=True)


def delete(subjects: list[str]) -> None:
    """Delete the rows; if this process holds locks on them, they are deleted once it releases the locks."""
    deletion = _deletion(subjects)
    if os.environ["FAULT_POINT"] != "between_databases":
        deletion.wait()


def delete_and_kill(subjects: list[str]) -> None:
    _deletion(subjects)
    kill(subjects)


def hang(_: list[str]) -> None:
    """Never return from native code that has released the GIL: other threads run, but no signal handler does."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(mutex, None)
    for _again in range(2):
        libc.pthread_mutex_lock(mutex)


def freeze(_: list[str]) -> None:
    """Never return from native code that holds the GIL: no other thread runs."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(1000)


ACTIONS: dict[str, Callable[[list[str]], None]] = {
    "kill": kill,
    "delete": delete,
    "delete_and_kill": delete_and_kill,
    "hang": hang,
    "freeze": freeze,
}


def inject(subjects: Iterable[str]) -> None:
    """Inject the fault, if it affects one of the subjects."""
    chosen = affected(subjects)
    if chosen:
        note(f"{os.environ['FAULT_POINT']} {os.environ['FAULT_ACTION']} {','.join(chosen)}")
        ACTIONS[os.environ["FAULT_ACTION"]](chosen)


def _wrap(owner: Any, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **more: Any) -> Any:
        if before is not None:
            before(*args, **more)
        result = real(*args, **more)
        if after is not None:
            after(result, *args, **more)
        return result

    setattr(owner, name, wrapped)


def _remember(leases: Any, *_: Any, **__: Any) -> None:
    """Record the attempt of each job by photo id or comparison id, which the other points use."""
    from runner.worker.messages import decode_compare, decode_process

    for lease in leases:
        if lease.queue == "process":
            job = decode_process(lease.payload)
            _ATTEMPTS[job.photo_id] = lease.attempts
            _BY_URL[job.image_url] = job.photo_id
        else:
            _ATTEMPTS[decode_compare(lease.payload).job_id] = lease.attempts


def _subjects(leases: Any) -> list[str]:
    from runner.worker.messages import decode_compare, decode_process

    return [
        decode_process(lease.payload).photo_id if lease.queue == "process" else decode_compare(lease.payload).job_id
        for lease in leases
    ]


def _points() -> dict[str, Callable[[], None]]:
    """Return point → function that injects the fault there."""
    from runner.images.fetch import Fetcher
    from runner.queue.leases import LeaseQueue
    from runner.store.photos import PhotoTable
    from runner.store.repository import Repository
    from runner.store.results import ResultStore

    def fetched(data: bytes, _: Any, url: str) -> None:
        _BY_BYTES[id(data)] = _BY_URL[url]
        _KEPT.append(data)

    def in_decode() -> None:
        from runner.images import decode as module

        _wrap(Fetcher, "fetch", None, fetched)
        _wrap(module, "decode", lambda data, **_: inject([_BY_BYTES[id(data)]]), None)

    return {
        "after_claim": lambda: _wrap(LeaseQueue, "claim", None, lambda leases, *_, **__: inject(_subjects(leases))),
        "after_begin": lambda: _wrap(Repository, "begin", None, lambda _, __, ids, *___: inject(ids)),
        "after_fetch": lambda: _wrap(Fetcher, "fetch", None, lambda _, __, url: inject([_BY_URL[url]])),
        "in_decode": in_decode,
        "before_store": lambda: _wrap(Repository, "store", lambda _, outcomes, __: inject(outcomes), None),
        "between_databases": lambda: _wrap(PhotoTable, "finish", lambda _, statuses: inject(statuses), None),
        "after_store": lambda: _wrap(Repository, "store", None, lambda _, __, outcomes, ___: inject(outcomes)),
        "after_answer": lambda: _wrap(ResultStore, "answer", None, lambda _, __, job_id, *___: inject([job_id])),
        "before_dead_letter": lambda: _wrap(
            LeaseQueue, "dead_letter", lambda _, lease, *__, **___: inject(_subjects([lease])), None
        ),
        "after_acknowledge": lambda: _wrap(
            LeaseQueue, "acknowledge_many", None, lambda _, __, leases, *___: inject(_subjects(leases))
        ),
    }


def _limit_memory(size: int) -> None:
    """Create and enter a memory cgroup of `size` bytes, of version 1 or 2."""
    version1 = Path("/sys/fs/cgroup/memory")
    parent, limit = (version1, "memory.limit_in_bytes") if version1.exists() else (version1.parent, "memory.max")
    group = parent / f"spottmee-faults-{os.getpid()}"
    group.mkdir()
    (group / limit).write_text(str(size), "utf-8")
    (group / "cgroup.procs").write_text(str(os.getpid()), "utf-8")


def main() -> int:
    """Install the fault and run the command line."""
    if size := os.environ.get("FAULT_MEMORY"):
        _limit_memory(int(size))
    if size := os.environ.get("FAULT_ADDRESS_SPACE"):
        resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    if os.environ.get("FAULT_POINT"):
        from runner.queue.leases import LeaseQueue

        _wrap(LeaseQueue, "claim", None, _remember)
        _points()[os.environ["FAULT_POINT"]]()
    if seconds := os.environ.get("FAULT_INVISIBLE_SECONDS"):
        from runner.worker import settlement

        settlement.INVISIBLE_SECONDS = float(seconds)
    if seconds := os.environ.get("FAULT_HUNG_SECONDS"):
        from runner.worker import app, shutdown

        app.HUNG_SECONDS, shutdown.FROZEN_SECONDS, shutdown.WATCHDOG_SECONDS = float(seconds), 4.0, 0.5
    if seconds := os.environ.get("FAULT_RELEASE_SECONDS"):
        from runner.worker import app

        app.RELEASE_SECONDS = float(seconds)
    from runner.cli import main as command_line

    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
