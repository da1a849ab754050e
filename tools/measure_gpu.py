"""Measures the engine on a GPU: answers against the CPU's, photos per second, time to first photo, memory.

    .venv/bin/python -m tools.measure_gpu --photos FOLDER [--batch-sizes 8,32,64] [--threads 1,2,4] [--out FILE]

Every row is a process of its own, because memory and start-up are measured too. The first row is the CPU, with which
the others are compared: equally many faces in each photo, and a cosine similarity of at least 0.9999 per face. The
table is Markdown, for docs/how-to/gpu.md. Exit code 0: all rows agree; 5: a row differs; 75: the device cannot be
used, and only the CPU was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runner.errors import CheckFailedError, DeviceError, RunnerError, SettingsError
from runner.faces import driver
from runner.faces.arrays import Float32Array, Image
from runner.faces.engine import Engine
from runner.images.decode import decode
from runner.settings import default_model_dir

SAME_COSINE = 0.9999
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_HEADER = [
    "provider",
    "threads",
    "batch",
    "first photo, s",
    "photos/s",
    "faces",
    "lowest cosine",
    "host, MiB",
    "device, MiB",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `first_seconds` counts from the start of the process; memory in MiB, None: unknown."""

    provider: str
    threads: int
    batch_size: int
    first_seconds: float
    photos_per_second: float
    faces: int
    host_mib: int
    device_mib: int | None
    cosine: float | None = None

    def cells(self) -> list[str]:
        """Return the row as the table shows it."""
        cosine = "reference" if self.cosine is None else f"{self.cosine:.6f}"
        device = "" if self.device_mib is None else str(self.device_mib)
        return [
            *(self.provider, str(self.threads), str(self.batch_size), f"{self.first_seconds:.2f}"),
            *(f"{self.photos_per_second:.1f}", str(self.faces), cosine, str(self.host_mib), device),
        ]


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of a folder. Raises `CheckFailedError` if it has none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not found:
        raise CheckFailedError(f"{folder} has no photo ({', '.join(ENDINGS)})")
    return found


def device_memory() -> int | None:
    """Return the used memory of the device in MiB, by all processes; None where nvidia-smi is missing or fails."""
    program = shutil.which("nvidia-smi") or "/usr/local/nvidia/bin/nvidia-smi"
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return int(done.stdout.split()[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _same(image: Image) -> Image:
    return image


def measure(args: argparse.Namespace) -> int:
    """Measure one row in this process, and print it as JSON; the embeddings go to a file."""
    images = [decode(path.read_bytes(), max_pixels=210_000_000, max_bytes=1 << 30) for path in photos_in(args.photos)]
    used_before = device_memory()
    with Engine.open(
        args.model_dir, threads=args.row_threads, providers=(args.row,), batch_size=args.row_batch
    ) as engine:
        engine.submit(partial(_same, images[0])).result()
        first_seconds = time.monotonic() - args.since
        answers = [future.result() for future in [engine.submit(partial(_same, image)) for image in images]]
        started = time.monotonic()
        futures = [engine.submit(partial(_same, image)) for _ in range(args.repeat) for image in images]
        for future in futures:
            future.result()
        seconds = time.monotonic() - started
        used = device_memory()
    embeddings = {str(number): np.array([face.embedding for face in faces]) for number, faces in enumerate(answers)}
    np.savez(args.answers, **embeddings)  # type: ignore[arg-type]  # its stub takes only positional arrays
    row = Row(
        provider=engine.choice.name,
        threads=engine.threads,
        batch_size=engine.choice.batch_size,
        first_seconds=first_seconds,
        photos_per_second=len(futures) / seconds,
        faces=sum(map(len, answers)),
        host_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        device_mib=None if used is None or used_before is None or args.row == "cpu" else used - used_before,
    )
    print(json.dumps(asdict(row)))
    return 0


def lowest_cosine(reference: Sequence[Float32Array], found: Sequence[Float32Array]) -> float:
    """Return the lowest cosine similarity of a face and its counterpart; 0 if a photo's number of faces differs.

    Rows of each array are embeddings of norm 1. Faces are matched by similarity: their order follows scores, which may
    differ in the last digit.
    """
    lowest = 1.0
    for expected, actual in zip(reference, found, strict=True):
        if len(expected) != len(actual):
            return 0.0
        if len(expected):
            lowest = min(lowest, float((expected @ actual.T).max(axis=1).min()))
    return lowest


class Measurement:
    """Runs one process for each row, and compares its answers with those of the first."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._reference: list[Float32Array] | None = None

    def row(self, provider: str, threads: int, batch_size: int) -> Row:
        """Measure one row. Raises `DeviceError` where the process says that the device cannot be used."""
        answers = self._folder / "answers.npz"
        command = [
            *(sys.executable, "-m", "tools.measure_gpu", "--photos", self._args.photos, "--repeat", self._args.repeat),
            *("--model-dir", self._args.model_dir, "--answers", answers, "--since", time.monotonic()),
            *("--row", provider, "--row-threads", threads, "--row-batch", batch_size),
        ]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode in (
            DeviceError.exit_code,
            SettingsError.exit_code,
        ):  # no device, or an onnxruntime without CUDA
            raise DeviceError("the message above says why")
        if done.returncode:
            raise CheckFailedError(f"{provider}, {threads} threads, batch {batch_size}: exit code {done.returncode}")
        document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        with np.load(answers) as file:
            found = [file[str(number)] for number in range(len(file.files))]
        if self._reference is None:
            self._reference = found
            return Row(**document)
        return Row(**document | {"cosine": lowest_cosine(self._reference, found)})


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_HEADER, ["---"] * len(_HEADER), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def surroundings() -> str:
    """Return what the rows depend on, in one line."""
    cpus = len(os.sched_getaffinity(0))
    found = driver.load_driver() or "no driver"
    providers = ", ".join(onnxruntime.get_available_providers())
    return f"{platform.machine()}, {cpus} CPUs, driver: {found}, onnxruntime {onnxruntime.__version__} ({providers})"


def compare(args: argparse.Namespace) -> int:
    """Measure the CPU and every combination on the GPU, and print the table."""
    photos_in(args.photos)
    rows: list[Row] = []
    failure: RunnerError | None = None
    print(surroundings(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(args, Path(folder))
        combinations = [("cpu", 0, 0), *(("cuda", *pair) for pair in product(args.threads, args.batch_sizes))]
        for combination in combinations:
            try:
                rows.append(measurement.row(*combination))
            except DeviceError as error:
                failure = error
                break
    shown = table(rows)
    print(shown)
    if args.out:
        args.out.write_text(f"{surroundings()}\n\n{shown}\n", encoding="utf-8")
    if failure is not None:
        print(f"the GPU was not measured: {failure}", file=sys.stderr)
        return failure.exit_code
    wrong = [row for row in rows if row.cosine is not None and row.cosine < SAME_COSINE]
    for row in wrong:
        print(f"answers differ from the CPU's: {' '.join(row.cells())}", file=sys.stderr)
    return CheckFailedError.exit_code if wrong else 0


def _numbers(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Measure, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--model-dir", type=Path, default=default_model_dir())
    parser.add_argument("--batch-sizes", type=_numbers, default=[8, 32, 64])
    parser.add_argument("--threads", type=_numbers, default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=5, help="number of passes over the photos for photos/s")
    parser.add_argument("--out", type=Path, help="file for the table")
    for name, kind in (("row", str), ("row-threads", int), ("row-batch", int), ("since", float), ("answers", Path)):
        parser.add_argument(
            f"--{name}", type=kind, help=argparse.SUPPRESS
        )  # set by the parent process, which starts one child per row
    args = parser.parse_args(argv)
    try:
        return measure(args) if args.row else compare(args)
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
