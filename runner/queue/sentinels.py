"""Sentinels that report why they refuse: redis-py only says that no master was found."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis import exceptions as redis_errors
from redis.sentinel import MasterNotFoundError, Sentinel

from runner.queue.retrying import is_refusal


class SentinelClient(Redis):
    """A client of one sentinel that stores the refusal of its latest command."""

    refusal: Exception | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Return the reply to the command."""
        self.refusal = None
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # of redis-py
        except redis_errors.RedisError as error:
            self.refusal = error if is_refusal(error) else None
            raise


class Sentinels(Sentinel):
    """Finds the master."""

    def __init__(self, clients: list[SentinelClient]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]  # of redis-py
        self.sentinels = [*clients]
        self._asked = clients

    def discover_master(self, service_name: str) -> Any:
        """Return the address of the master. Raises the refusal of a sentinel if none has found one."""
        try:
            return super().discover_master(service_name)  # type: ignore[no-untyped-call]  # of redis-py
        except MasterNotFoundError:
            for sentinel in self._asked:
                if sentinel.refusal is not None:
                    raise sentinel.refusal from None
            raise
