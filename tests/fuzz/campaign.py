"""Runs many inputs through one target, in child processes. The last input of a child that crashes or stalls is kept.

Target, seed and number determine an input, so it can be reproduced anywhere.
"""

from __future__ import annotations

import faulthandler
import mmap
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.targets import Target, find

STALLED_SECONDS = 30.0  # for one input, on a machine that others use too
START_SECONDS = 120.0  # until the first input, for imports, and after the last
MOST_KIB = 1_000_000  # of memory, far above what the largest image that is allowed here needs
MOST_FAILURES = 10
_HEAD = struct.Struct("<QQ")  # number of the current input, and its length
_SPACE = 4_000_000
_STARTING, _ENDING = 2**64 - 1, 2**64 - 2  # in place of a number


@dataclass
class Outcome:
    """Counts of outcomes, and the failures."""

    inputs: int = 0
    words: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def make_input(target: Target, seed: int, number: int) -> bytes:
    """Return input `number` of a campaign."""
    return target.generate(Random(f"{target.name}-{seed}-{number}"))


def run(name: str, *, seed: int, inputs: int, keep: Path) -> Outcome:
    """Run a campaign. Inputs that fail are written to `keep`, and the campaign continues after them."""
    outcome = Outcome()
    began, start = time.monotonic(), 0
    while start < inputs and len(outcome.failures) < MOST_FAILURES:
        with tempfile.TemporaryDirectory(prefix="spottmee-fuzz-") as folder:
            start = _one_child(name, seed, (start, inputs), folder=Path(folder), outcome=outcome, keep=keep)
    outcome.seconds = time.monotonic() - began
    return outcome


def _one_child(name: str, seed: int, span: tuple[int, int], *, folder: Path, outcome: Outcome, keep: Path) -> int:
    """Run one child until it is done or ends early, and return the number of the next input."""
    window = folder / "input"
    window.write_bytes(_HEAD.pack(_STARTING, 0).ljust(_SPACE, b"\0"))
    command = [sys.executable, "-m", "tests.fuzz.campaign", name, str(seed), *map(str, span), str(folder)]
    with (folder / "output").open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        with window.open("r+b") as file, mmap.mmap(file.fileno(), _SPACE) as view:
            stalled = _watch(child, view)
            at, length = _HEAD.unpack_from(view)
            at = {_STARTING: span[0], _ENDING: span[1] - 1}.get(at, at)
            last = view[_HEAD.size : _HEAD.size + length]
    for word in (folder / "words").read_text().splitlines() if (folder / "words").exists() else ():
        outcome.words[word.partition(" ")[2]] += int(word.partition(" ")[0])
    if child.returncode == 0:
        outcome.inputs += span[1] - span[0]
        return span[1]
    outcome.inputs += max(at + 1 - span[0], 0)
    why = "stalled" if stalled else f"ended with {child.returncode}"
    keep.mkdir(parents=True, exist_ok=True)
    found = keep / f"{name.rpartition(':')[2]}-{seed}-{at}"
    found.write_bytes(last)
    last_output = (folder / "output").read_text(errors="replace")[-3000:]
    outcome.failures.append(f"{name} input {at} of seed {seed} {why}; it is in {found}\n{last_output}")
    return int(at) + 1


def _watch(child: subprocess.Popen[bytes], view: mmap.mmap) -> bool:
    """Wait for the child; kill it and return True when one input takes too long."""
    seen, since = -1, time.monotonic()
    while True:
        try:
            child.wait(0.2)
        except subprocess.TimeoutExpired:
            (number, _) = _HEAD.unpack_from(view)
            if number != seen:
                seen, since = number, time.monotonic()
            elif time.monotonic() - since > (START_SECONDS if number >= _ENDING else STALLED_SECONDS):
                child.kill()
                child.wait()
                return True
        else:
            return False


def _child(name: str, seed: int, start: int, end: int, folder: Path) -> None:
    """Check the inputs; each is in the window before anything is done with it."""
    faulthandler.enable(sys.stdout)
    target = find(name)
    words: Counter[str] = Counter()
    with (folder / "input").open("r+b") as file, mmap.mmap(file.fileno(), _SPACE) as view:
        try:
            for number in range(start, end):
                view[: _HEAD.size] = _HEAD.pack(number, 0)
                data = make_input(target, seed, number)[: _SPACE - _HEAD.size]
                view[: _HEAD.size + len(data)] = _HEAD.pack(number, len(data)) + data
                words[target.check(data)] += 1
                peak = _peak_kib()
                assert peak < MOST_KIB, f"{peak} KiB of memory"
            view[: _HEAD.size] = _HEAD.pack(_ENDING, 0)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            raise
        finally:
            (folder / "words").write_text("".join(f"{count} {word}\n" for word, count in words.items()))


def _peak_kib() -> int:
    """Return the most memory that this program has had resident, in KiB.

    `getrusage` would count the parent as well: its figure survives `execve`, and a test process can be large.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
