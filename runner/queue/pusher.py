"""Appends jobs to a list as the API does, from one process at a time, and only while few jobs are waiting."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from redis import Redis

from runner.errors import CheckFailedError
from runner.queue import keys
from runner.queue.scripts import Script

_LOST = -1


class Pusher:
    """Appends to one list under a lock, which expires `seconds` after the last call.

    A process that was suspended for longer than that has lost the lock, and appends nothing more.
    """

    def __init__(self, client: Redis, name: str, *, seconds: float) -> None:
        token = secrets.token_hex(8)
        self._client = client
        self._script = Script(client, "push")
        self._lock = keys.reprocess(name)
        self._keys = [keys.list_key(name), self._lock, keys.last(name, f"reprocess/{token}")]
        self._token = token
        self._milliseconds = round(seconds * 1000)

    def acquire(self) -> bool:
        """Take the lock; False if another process has it."""
        return self._call(take=True) != _LOST

    def remaining(self) -> float:
        """Return the seconds until the lock expires, 0 if it is free."""
        return max(0, int(self._client.pttl(self._lock))) / 1000

    def keep(self) -> None:
        """Renew the lock. Raises `CheckFailedError` if it is lost."""
        self.push([], 0)

    def push(self, payloads: Sequence[bytes], max_waiting: int) -> int:
        """Append `payloads` until `max_waiting` jobs wait in the list, and return how many were appended.

        Raises `CheckFailedError` if the lock is lost: nothing was appended.
        """
        done = self._call(max_waiting, payloads)
        if done == _LOST:
            raise CheckFailedError(
                "this process was suspended for longer than RUNNER_LEASE_SECONDS, and another one may have pushed the "
                "same photos: start reprocess again to continue with the rest"
            )
        return done

    def release(self) -> None:
        """Release the lock, if this process has it."""
        self._call(milliseconds=0)

    def _call(
        self,
        max_waiting: int = 0,
        payloads: Sequence[bytes] = (),
        *,
        take: bool = False,
        milliseconds: int | None = None,
    ) -> int:
        kept = self._milliseconds if milliseconds is None else milliseconds
        return int(
            self._script(self._keys, [secrets.token_hex(8), self._token, kept, int(take), max_waiting, *payloads])
        )
