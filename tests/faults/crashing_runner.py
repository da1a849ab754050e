"""The real runner, with one fault put between two of its steps. Run as a script, with the runner's own arguments.

Production code has no hook for this: real functions are wrapped here, and then `runner.cli.main` runs. What is to
happen comes in the environment:

FAULT_POINT    where: a key of `POINTS`
FAULT_ACTION   what: a key of `ACTIONS`
FAULT_SHARE    which share of the jobs that pass the point meets the fault; only at their first attempt
FAULT_NOTES    a file that gets a line for every fault that happened
FAULT_DATABASE the API's database, for `delete`
FAULT_SUBJECTS a file of ids, one a line: these alone meet the fault; with FAULT_FIRST at their first attempt only
FAULT_MEMORY   bytes: the process puts itself into a memory cgroup of this size, so that the kernel's OOM killer
               ends it as it ends a container; FAULT_ADDRESS_SPACE limits it by RLIMIT_AS instead, so that malloc fails

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
_KEPT: list[bytes] = []  # so that no two of them have the same id
_DELETE = (
    "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True)"
    ".execute('DELETE FROM \"Photo\" WHERE id = ANY(%s)', (sys.argv[2:],))"
)


def meets(subjects: Iterable[str]) -> list[str]:
    """Return those of the photos (or comparisons) whose turn it is to meet the fault."""
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
    threading.Event().wait()  # the signal may take a moment to arrive


def _deletion(subjects: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _DELETE, os.environ["FAULT_DATABASE"], *subjects]
    return subprocess.Popen(command, start_new_session=True)


def delete(subjects: list[str]) -> None:
    """Delete the rows; where this process itself holds them locked, as soon as it lets go."""
    deletion = _deletion(subjects)
    if os.environ["FAULT_POINT"] != "between_databases":
        deletion.wait()


def delete_and_kill(subjects: list[str]) -> None:
    _deletion(subjects)
    kill(subjects)


def hang(_: list[str]) -> None:
    """Do not come back from native code, which leaves the interpreter to the other threads and hears no signal."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(mutex, None)
    for _again in range(2):
        libc.pthread_mutex_lock(mutex)


def freeze(_: list[str]) -> None:
    """Do not come back from native code, which keeps the interpreter for itself."""
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


def strike(subjects: Iterable[str]) -> None:
    """Let the fault happen, if one of the subjects meets it."""
    met = meets(subjects)
    if met:
        note(f"{os.environ['FAULT_POINT']} {os.environ['FAULT_ACTION']} {','.join(met)}")
        ACTIONS[os.environ["FAULT_ACTION"]](met)


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
    """Keep which attempt each job is at, under the id that the other points know it by."""
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
    """Return name → what puts the fault there."""
    from runner.images.fetch import Fetcher
    from runner.queue.leases import LeaseQueue
    from runner.store.photos import PhotoTable
    from runner.store.results import ResultStore
    from runner.store.stores import Stores

    def fetched(data: bytes, _: Any, url: str) -> None:
        _BY_BYTES[id(data)] = _BY_URL[url]
        _KEPT.append(data)

    def in_decode() -> None:
        from runner.images import decode as module

        _wrap(Fetcher, "fetch", None, fetched)
        _wrap(module, "decode", lambda data, **_: strike([_BY_BYTES[id(data)]]), None)

    return {
        "after_claim": lambda: _wrap(LeaseQueue, "claim", None, lambda leases, *_, **__: strike(_subjects(leases))),
        "after_begin": lambda: _wrap(Stores, "begin", None, lambda _, __, ids: strike(ids)),
        "after_fetch": lambda: _wrap(Fetcher, "fetch", None, lambda _, __, url: strike([_BY_URL[url]])),
        "in_decode": in_decode,
        "before_store": lambda: _wrap(Stores, "store", lambda _, outcomes, __: strike(outcomes), None),
        "between_databases": lambda: _wrap(PhotoTable, "finish", lambda _, statuses: strike(statuses), None),
        "after_store": lambda: _wrap(Stores, "store", None, lambda _, __, outcomes, ___: strike(outcomes)),
        "after_answer": lambda: _wrap(ResultStore, "answer", None, lambda _, __, job_id, *___: strike([job_id])),
        "before_bury": lambda: _wrap(LeaseQueue, "bury", lambda _, lease, *__: strike(_subjects([lease])), None),
        "after_acknowledge": lambda: _wrap(
            LeaseQueue, "acknowledge_many", None, lambda _, __, leases: strike(_subjects(leases))
        ),
    }


def _limit_memory(size: int) -> None:
    """Enter a memory cgroup of `size` bytes of its own, of version 1 or 2."""
    version1 = Path("/sys/fs/cgroup/memory")
    parent, limit = (version1, "memory.limit_in_bytes") if version1.exists() else (version1.parent, "memory.max")
    group = parent / f"spottmee-faults-{os.getpid()}"
    group.mkdir()
    (group / limit).write_text(str(size), "utf-8")
    (group / "cgroup.procs").write_text(str(os.getpid()), "utf-8")


def main() -> int:
    """Put the fault in its place and run the command line."""
    if size := os.environ.get("FAULT_MEMORY"):
        _limit_memory(int(size))
    if size := os.environ.get("FAULT_ADDRESS_SPACE"):
        resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    if os.environ.get("FAULT_POINT"):
        from runner.queue.leases import LeaseQueue

        _wrap(LeaseQueue, "claim", None, _remember)
        _points()[os.environ["FAULT_POINT"]]()
    if seconds := os.environ.get("FAULT_HUNG_SECONDS"):
        from runner.worker import app, shutdown

        app.HUNG_SECONDS, shutdown.FROZEN_SECONDS, shutdown.GUARD_SECONDS = float(seconds), 4.0, 0.5
    from runner.cli import main as command_line

    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
