"""The Lua scripts of `lua/`, as callables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RedisRefusedError
from runner.queue.failures import reason

if TYPE_CHECKING:  # `settings` imports this module: redis must not come with it
    from redis import Redis

# Not `importlib.resources`, which takes 3 ms of each start.
_FOLDER = Path(__file__).with_name("lua")
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


class Script:
    """One script, prefixed with `common.lua`.

    It is sent whole (EVAL, 4 to 8 kB): after a restart or a failover the server's script cache is empty, and EVALSHA
    would fail with NOSCRIPT at any time. The server compiles a text once, either way.
    """

    def __init__(self, client: Redis, name: str) -> None:
        self._client = client
        self._name = name
        self._text = _text(name)

    def __call__(self, keys: list[str], args: Iterable[str | float | bytes] = ()) -> Any:
        """Return the script's reply; its file documents `keys`, `args` and reply.

        Raises `RedisRefusedError` if the server answers with a permanent error.
        """
        with refusals(f"{self._name} on {keys[0]}"):
            return self._client.eval(self._text, len(keys), *keys, *args)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Raise `RedisRefusedError`, which says what to do, if Redis permanently refuses a command in the block."""
    from redis.exceptions import ResponseError  # the connection has imported it by now

    try:
        yield
    except ResponseError as error:
        cause = reason(error)
        advice = "; something else has written that key: rename or delete it" if "WRONGTYPE" in cause else ""
        raise RedisRefusedError(f"{what}: {cause}{advice} (docs/reference/redis-keys.md, Keys)") from None


@cache
def _text(name: str) -> str:
    return _source("common") + _source(name)


def _source(name: str) -> str:
    return _COMMENT.sub("", (_FOLDER / f"{name}.lua").read_text(encoding="utf-8"))
