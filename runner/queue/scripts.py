"""The Lua scripts beside this file, ready to be called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


class Script:
    """One script, with `common.lua` before it.

    It is sent whole (EVAL, about 2 kB): a server that has restarted or failed over has no script cache, and
    EVALSHA's answer to that (NOSCRIPT) can come at any moment. The server compiles a text once, either way.
    """

    def __init__(self, client: Redis, name: str) -> None:
        self._client = client
        self._text = _source("common") + _source(name)

    def __call__(self, keys: list[str], args: Iterable[str | float] = ()) -> Any:
        """Return the script's reply; its file documents `keys`, `args` and reply."""
        return self._client.eval(self._text, len(keys), *keys, *args)


def _source(name: str) -> str:
    text = (resources.files("runner.queue") / f"{name}.lua").read_text(encoding="utf-8")
    return _COMMENT.sub("", text)
