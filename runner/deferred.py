"""Parts of libraries that they import of their own and a run never touches: not executed until somebody does.

Nothing is taken away: the first use of a name in such a part executes it, as its import would have.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

# Part → names that its importers take at once, with what does for them. Milliseconds saved at every start: 5 for
# numpy's docstrings, 5 for the types of its annotations, 7 for the other half of redis-py.
PARTS: dict[str, dict[str, Any]] = {
    "numpy._core._add_newdocs": {},
    "numpy._core._add_newdocs_scalars": {},
    "numpy._typing": {"NDArray": list},
    "redis.asyncio": {},
}


def defer(parts: dict[str, dict[str, Any]] = PARTS) -> None:
    """Put each part into `sys.modules` unexecuted, unless it is there or its library has no such part."""
    for name, given in parts.items():
        spec = None if name in sys.modules else _find(name)
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            vars(module).update(given, __getattr__=_executing(module, spec.loader.exec_module))
            sys.modules[name] = module


def _find(name: str) -> ModuleSpec | None:
    """Return where a part is, without importing what it is a part of."""
    library, *folders = name.split(".")[:-1]
    spec = find_spec(library)
    if spec is None or spec.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, [str(Path(root, *folders)) for root in spec.submodule_search_locations])


def _executing(module: ModuleType, execute: Callable[[ModuleType], None]) -> Callable[[str], Any]:
    """Return the `__getattr__` (PEP 562) of a module that has not been executed; other threads wait for the first."""
    lock = threading.RLock()
    executing = False

    def attribute(name: str) -> Any:
        nonlocal executing
        if name.startswith("__"):  # what the import system itself asks for
            raise AttributeError(name)
        with lock:
            if executing:  # by this very thread, whose imports lead back here
                return object.__getattribute__(module, name)
            if vars(module).get("__getattr__") is attribute:
                executing = True
                execute(module)
                executing = False
            if vars(module).get("__getattr__") is attribute:  # unless the module has one of its own
                del vars(module)["__getattr__"]
        return getattr(module, name)

    return attribute
