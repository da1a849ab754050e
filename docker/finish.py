"""Make what was installed what a layer of the image holds: pruned, compiled, readable by everyone, reproducible.

Run by the Dockerfile alone: `python3 docker/finish.py packages|code|model FOLDER`, once for each layer.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

# Folders of site-packages that no run imports; `tests/image` runs the whole service without them.
UNUSED = (
    "numpy/**/tests",
    "numpy/_core/include",
    "numpy/f2py",
    "numpy/random/_examples",
    "onnxruntime/backend",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
)
UNUSED_BEFORE_312 = ("numpy/distutils",)  # numpy has it for older Pythons alone
UNUSED_FILES = ("**/*.pyi", "**/*.a")
PROGRAMS = ("python*",)
# What no pod runs is compiled when somebody uses it: it would be a fifth of what every release pulls.
SELDOM_USED = re.compile(
    r"/runner/(bake|cluster|evaluation|simulation)/"
    r"|/runner/cli/(completion|debug\w*|evaluate|exec\w*|forget|live_status|models|progress_bar|simulate)\.py$"
)


def finish_packages(folder: Path, cuda: Path) -> None:
    """Prune and compile the environment at `folder`; move CUDA's libraries to the same place below `cuda`."""
    packages = _site_packages(folder)
    unused = UNUSED if sys.version_info >= (3, 12) else UNUSED + UNUSED_BEFORE_312
    for path in _matches(packages, unused):
        shutil.rmtree(path)
    for path in _matches(packages, UNUSED_FILES):
        path.unlink()
    wanted = set(_matches(folder / "bin", PROGRAMS))
    for path in set((folder / "bin").iterdir()) - wanted:
        path.unlink()
    _compile(packages)
    libraries = packages / "nvidia"
    cuda.mkdir()
    if libraries.exists():
        target = cuda / libraries.relative_to("/")
        target.parent.mkdir(parents=True)
        shutil.move(libraries, target)
    _settle(cuda)
    _settle(folder)


def finish_code(folder: Path, root: Path) -> None:
    """Compile what was installed at `folder`, whose final place has no `root` in front."""
    _compile(_site_packages(folder), root)
    _settle(root)


def _site_packages(folder: Path) -> Path:
    (packages,) = folder.glob("lib/python3*/site-packages")
    return packages


def _compile(packages: Path, root: Path | None = None) -> None:
    # Unchecked: a start reads each .pyc and never looks at its source; the file system is read-only anyway.
    mode = PycInvalidationMode.UNCHECKED_HASH
    prepended = root and "/"
    if not compileall.compile_dir(
        packages, rx=SELDOM_USED, quiet=1, invalidation_mode=mode, stripdir=root, prependdir=prepended
    ):
        raise SystemExit("some modules could not be compiled")


def _settle(folder: Path) -> None:
    """Make the folder readable by everyone, with one date on every file."""
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


def main() -> None:
    """Do what the Dockerfile asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("packages", "code", "model"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuda", type=Path, help="packages: where CUDA's libraries go")
    parser.add_argument("--root", type=Path, help="code: the root that the folder is below")
    arguments = parser.parse_args()
    if arguments.what == "packages":
        finish_packages(arguments.folder, arguments.cuda)
    elif arguments.what == "code":
        finish_code(arguments.folder, arguments.root)
    else:
        _settle(arguments.folder)


if __name__ == "__main__":
    main()
