"""Make an installed environment what the image holds: less, compiled, readable by everyone, the same every time.

`python3 docker/finish.py FOLDER`, where FOLDER is the environment at its final place. Run by the Dockerfile alone.
"""

from __future__ import annotations

import compileall
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

# Folders of site-packages that no run imports; `tests/image` runs the whole service without them.
UNUSED = (
    "numpy/**/tests",
    "numpy/f2py",
    "onnxruntime/backend",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
)
UNUSED_FILES = ("**/*.pyi", "**/*.a")
PROGRAMS = ("python*", "spottmee-worker")


def main(folder: Path) -> None:
    """Prune, compile, and give every file one owner's mode and one date."""
    (packages,) = folder.glob("lib/python3*/site-packages")
    for path in _matches(packages, UNUSED):
        shutil.rmtree(path)
    for path in _matches(packages, UNUSED_FILES):
        path.unlink()
    wanted = set(_matches(folder / "bin", PROGRAMS))
    for path in set((folder / "bin").iterdir()) - wanted:
        path.unlink()
    # Unchecked: a start reads each .pyc and never looks at its source; the file system is read-only anyway.
    if not compileall.compile_dir(packages, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH):
        raise SystemExit("some modules could not be compiled")
    date = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((path.stat().st_mode | 0o444) & 0o755)
        os.utime(path, (date, date), follow_symlinks=False)


def _matches(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        found = list(folder.glob(pattern))
        if not found:
            raise SystemExit(f"nothing matches {pattern}: has the package changed?")
        yield from found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
