"""Parts of libraries that are not executed before somebody uses them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runner.deferred import PARTS, defer

PACKAGE = {
    "__init__.py": "from deferrable.inner import part, tree\nfrom deferrable.inner.part import GIVEN\n",
    "inner/__init__.py": "",
    "inner/part.py": "import time\nGIVEN = 1\ntime.sleep(0.02)\nOTHER = 2\n",
    "inner/tree/__init__.py": (
        "from deferrable.inner.tree import back\n"
        "HEAVY = 3\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__') or name.islower():\n"
        "        raise AttributeError(name)\n"
        "    return name\n"
    ),
    "inner/tree/back.py": (
        "import deferrable.inner.tree as tree\ntry:\n    tree.HEAVY\nexcept AttributeError:\n    EARLY = True\n"
    ),
    "inner/tree/leaf.py": "VALUE = 4\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose first import takes in parts of it."""
    for name, text in PACKAGE.items():
        path = tmp_path / "deferrable" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "deferrable"]:
            patch.delitem(sys.modules, name)
    defer({"deferrable.inner.part": {"GIVEN": "given"}, "deferrable.inner.tree": {}})


@pytest.fixture(autouse=True)
def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deferrable"]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_a_part_is_executed_at_its_first_use() -> None:
    import deferrable  # type: ignore[import-not-found]  # made by the fixture

    part = sys.modules["deferrable.inner.part"]
    assert deferrable.GIVEN == "given"
    assert "OTHER" not in vars(part)
    assert part.OTHER == 2
    assert part.GIVEN == 1  # its own, from now on
    assert deferrable.part is part


@pytest.mark.usefixtures("package")
def test_a_package_that_waits_has_its_modules() -> None:
    from deferrable.inner.tree.leaf import VALUE  # type: ignore[import-not-found]  # made by the fixture

    tree = sys.modules["deferrable.inner.tree"]
    assert VALUE == 4
    assert "HEAVY" not in vars(tree)
    assert tree.HEAVY == 3


@pytest.mark.usefixtures("package")
def test_threads_that_come_at_once_all_find_it_whole() -> None:
    import deferrable

    part = deferrable.part
    together = threading.Barrier(8)
    found: list[int] = []

    def take() -> None:
        together.wait()
        found.append(part.OTHER)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 8
    assert "__getattr__" not in vars(part)


@pytest.mark.usefixtures("package")
def test_a_part_may_lead_back_to_itself_and_have_a_getattr_of_its_own() -> None:
    import deferrable

    tree = sys.modules["deferrable.inner.tree"]
    assert tree.HEAVY == 3
    assert tree.MADE_UP == "MADE_UP"
    assert deferrable.tree is tree


@pytest.mark.usefixtures("package")
def test_a_name_that_is_not_there_is_told_as_always() -> None:
    import deferrable

    with pytest.raises(AttributeError, match="nothing"):
        _ = deferrable.part.nothing
    with pytest.raises(AttributeError, match="nothing"):
        _ = deferrable.part.nothing  # executed by now


def test_what_is_not_installed_or_already_there_is_left_alone() -> None:
    before = sys.modules["runner.deferred"]
    defer({"no_such_library.part": {}, "runner.no_such_part": {}, "runner.deferred": {}, "sys.part": {}})
    assert sys.modules["runner.deferred"] is before
    assert not {"no_such_library.part", "runner.no_such_part", "sys.part"} & set(sys.modules)


def test_the_real_libraries_are_whole_when_used() -> None:
    """In an interpreter of its own: here they are long imported."""
    script = """
import sys
from runner.deferred import PARTS, defer
defer()
import numpy, redis
waiting = {name for name in PARTS if "__getattr__" in vars(sys.modules[name])}
assert waiting == set(PARTS), waiting
assert "redis.asyncio.client" not in sys.modules and "numpy._typing._array_like" not in sys.modules
from numpy.typing import NDArray
from redis.asyncio import Redis
assert NDArray[float] and Redis.__module__ == "redis.asyncio.client"
assert numpy.zeros(3).sum() == 0 and redis.Redis.__module__ == "redis.client"
print(len(waiting))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(PARTS))), done.stderr
