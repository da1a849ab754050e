"""The databases in which photos of a list were found, as evidence that its jobs belong there."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import cast

from redis import Redis

from runner.errors import RedisFullError
from runner.queue import keys
from runner.queue.scripts import refusals


class KnownDatabases:
    """The identities (see `runner.store.visibility.identity`) of the databases of one list.

    Raises `RedisRefusedError` if the key is of another type.
    """

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._key = keys.databases(name)

    def add(self, identity: str) -> None:
        """Record that a photo of the list was found in that database.

        On a full Redis this is left to a later run, because photos can be processed without it.
        """
        if identity not in self.all():
            with suppress(RedisFullError):
                self._redis.zadd(self._key, {identity: time.time()})

    def all(self) -> set[str]:
        """Return every database in which a photo of the list was ever found."""
        with refusals(f"ZRANGE on {self._key}"):
            found = cast("list[bytes]", self._redis.zrange(self._key, 0, -1))
        return {raw.decode() for raw in found}
