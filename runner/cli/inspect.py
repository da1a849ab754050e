"""`spottmee-worker inspect`: the run in this container, seen from a second process (`kubectl exec`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner import output
from runner import settings as settings_module
from runner.cli import COMMANDS
from runner.cli.flags import add_setting_flags, setting_flags
from runner.cli.output import columns, duration
from runner.cluster.queues import connection, leases_of
from runner.errors import CheckFailedError
from runner.queue.leases import Leased, owner_name
from runner.settings import Settings

_MIB = 2**20
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class RunView:
    """A run: its process, its limits, and the leases that Redis has for its owner. Times in seconds, sizes in MiB.

    `claiming_seconds_left` is the time until the run stops claiming jobs, then 0: it still finishes its leases.
    """

    pid: int
    owner: str
    queues: tuple[str, ...]
    uptime_seconds: float
    claiming_seconds_left: float
    max_jobs: int
    memory_mib: int
    memory_peak_mib: int
    memory_limit_mib: int | None
    threads: int
    leases: tuple[Leased, ...]

    def document(self) -> dict[str, object]:
        """Return what is printed with --json."""
        return {**asdict(self), "leases": [lease._asdict() for lease in self.leases]}

    def lines(self) -> Iterator[str]:
        """Yield the view as plain text."""
        limit = f" of {self.memory_limit_mib} MiB" if self.memory_limit_mib else ""
        left = duration(self.claiming_seconds_left)
        ending = f"claims jobs for another {left}" if self.claiming_seconds_left else "has stopped claiming jobs"
        yield f"run of {self.owner}: process {self.pid}, up {duration(self.uptime_seconds)}, {ending}"
        yield f"queues {', '.join(self.queues)}, at most {self.max_jobs} jobs"
        yield f"memory {self.memory_mib} MiB{limit}, {self.memory_peak_mib} MiB at peak; {self.threads} threads"
        yield f"{len(self.leases)} leases"
        if self.leases:
            rows = [
                (item.queue, item.id, str(item.attempts), duration(item.age_seconds), f"{item.expires_in_seconds:.0f}s")
                for item in self.leases
            ]
            yield from columns([("QUEUE", "LEASE", "ATTEMPT", "AGE", "EXPIRES IN"), *rows])


def add_parser(subparsers: Any) -> None:
    """Add `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help=COMMANDS["inspect"].help,
        description="Show the run in this container: its leases, its remaining time, its memory. Changes nothing. "
        "kubectl exec POD -- spottmee-worker inspect",
    )
    parser.add_argument("--pid", type=int, help="process id of the run (default: the first run in this container)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    view = view_run(args.pid)
    if args.json:
        output.document(view.document(), indent=2)
    else:
        output.lines(view.lines())
    return 0


def view_run(pid: int | None) -> RunView:
    """Return a view of the run with process id `pid`, or of the first one in this container.

    Raises `CheckFailedError` if there is no such run, and the errors of Redis.
    """
    pid, arguments = _find(pid)
    settings = settings_of(arguments, _environment(pid))
    owner = owner_name(settings.owner).rpartition("/")[0]
    with connection(settings) as redis:
        leases = leases_of(redis, settings, owner)
    up = _seconds_up(pid)
    status = _status(pid)
    return RunView(
        pid=pid,
        owner=owner,
        queues=settings.queues,
        uptime_seconds=round(up, 1),
        claiming_seconds_left=round(max(0.0, settings.max_seconds - up), 1),
        max_jobs=settings.max_jobs,
        memory_mib=status["VmRSS"] * 1024 // _MIB,
        memory_peak_mib=status["VmHWM"] * 1024 // _MIB,
        memory_limit_mib=_memory_limit(),
        threads=status["Threads"],
        leases=tuple(leases),
    )


def settings_of(arguments: list[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings of a run that was started with these arguments (after `run`) and this environment."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    add_setting_flags(parser)
    parsed, _ = parser.parse_known_args(arguments)
    return settings_module.load(environment, setting_flags(parsed))


def run_arguments(command: list[str]) -> list[str] | None:
    """Return the arguments after `run` in the command line of a process, or None if it is not a run."""
    for index, argument in enumerate(command):
        ours = Path(argument).name == "spottmee-worker" or (argument == "runner" and command[index - 1] == "-m")
        if ours and command[index + 1 : index + 2] == ["run"]:
            return command[index + 2 :]
    return None


def _find(pid: int | None) -> tuple[int, list[str]]:
    pids = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    for candidate in pids if pid is None else [pid]:
        try:
            command = Path(f"/proc/{candidate}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        arguments = run_arguments(command)
        if arguments is not None:
            return candidate, [argument for argument in arguments if argument]
    where = "in this container" if pid is None else f"with process id {pid}"
    raise CheckFailedError(f"there is no `spottmee-worker run` {where}: use kubectl exec in the pod of a running Job")


def _environment(pid: int) -> dict[str, str]:
    """Return the environment of the process, or of this one, which `kubectl exec` makes the same, if it is unreadable.

    A run is not dumpable (`core_dumps.py`), so only root may read its environment.
    """
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
    except PermissionError:
        return dict(os.environ)
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def _seconds_up(pid: int) -> float:
    # proc_pid_stat(5): field 22 is the start after boot, in clock ticks; field 2 may contain spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0]) - started


def _status(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(found.get(name, "0").split()[0]) for name in ("VmRSS", "VmHWM", "Threads")}


def _memory_limit() -> int | None:
    try:
        text = _MEMORY_LIMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) // _MIB if text.isdigit() else None
