"""The dead-letter queue: jobs that failed permanently, kept for an operator to inspect, requeue or purge.

Safe while runners are active: each change is one Lua script.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from redis import Redis

from runner.queue import keys
from runner.queue.leases import DEAD_LETTER_SECONDS
from runner.queue.scripts import Script, refusals

_PAGE = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead-lettered job, without its payload. `claimed_at` and `dead_lettered_at` are seconds of the Unix epoch.

    `claimed_at` is when the job left the list, `runner` the owner that dead-lettered it, `bytes` the size of its
    payload, and `code` an error code of `runner/errors.py`.
    """

    id: str
    queue: str
    code: str
    message: str
    attempts: int
    runner: str
    bytes: int
    claimed_at: float
    dead_lettered_at: float


class Requeued(Enum):
    """The result of `DeadLetters.requeue`."""

    DONE = "requeued"
    ABSENT = "not_found"  # there is no such dead letter
    EXPIRED = "expired"  # its payload has expired


class DeadLetters:
    """The dead letters of one list. Raises `RedisRefusedError` for what Redis refuses permanently."""

    def __init__(self, client: Redis, name: str, *, owner: str = "") -> None:
        self.name = name
        self._client = client
        self._keys = [keys.dead(name), keys.dead_index(name)]
        self._last = keys.last(name, f"letters/{owner or secrets.token_hex(8)}")

    def all(self, *, newer_than: float | None = None, older_than: float = 0.0) -> Iterator[DeadLetter]:
        """Yield the dead letters, oldest first; `newer_than` and `older_than` are ages in seconds."""
        kept = DEAD_LETTER_SECONDS if newer_than is None else min(newer_than, DEAD_LETTER_SECONDS)
        script, size, low, seen = Script(self._client, "dead_letters"), _PAGE, "0", set[str]()
        while True:
            rows = script(self._keys, [low, round(kept * 1000), round(older_than * 1000), size])
            fresh = [
                dead_letter for dead_letter in (self._dead_letter(*row) for row in rows) if dead_letter.id not in seen
            ]
            seen.update(dead_letter.id for dead_letter in fresh)
            yield from fresh
            if len(rows) < size:
                return
            low = rows[-1][2].decode()  # by time, not by index: some may be purged in the meantime
            size = size if fresh else 2 * size  # more than a page from one millisecond

    def get(self, dead_letter_id: str) -> DeadLetter | None:
        """Return one dead letter, or None if there is none with this id."""
        with refusals(f"reading {keys.dead_index(self.name)} and {keys.dead(self.name)}"):
            moment = self._client.zscore(keys.dead_index(self.name), dead_letter_id)
            text = self._client.hget(keys.dead(self.name), dead_letter_id)
        if moment is None or not isinstance(text, bytes):
            return None
        return self._dead_letter(dead_letter_id.encode(), text, moment)

    def payload(self, dead_letter_id: str) -> bytes | None:
        """Return the payload as the API pushed it, byte for byte, or None if it has expired."""
        key = keys.dead_payload(self.name, dead_letter_id)
        with refusals(f"reading {key}"):
            found = self._client.get(key)
        return found if isinstance(found, bytes) else None

    def payload_seconds(self, dead_letter_id: str) -> float | None:
        """Return for how many more seconds the payload is kept, or None if it has expired."""
        milliseconds = int(self._client.pttl(keys.dead_payload(self.name, dead_letter_id)))
        return milliseconds / 1000 if milliseconds > 0 else None

    def requeue(self, dead_letter_id: str) -> Requeued:
        """Append the job to its list as a new job, and delete the dead letter."""
        done = Script(self._client, "requeue")(
            [
                keys.list_key(self.name),
                *self._keys,
                keys.dead_payload(self.name, dead_letter_id),
                self._last,
                keys.totals(self.name),
            ],
            [secrets.token_hex(8), dead_letter_id],
        )
        return {1: Requeued.DONE, 0: Requeued.ABSENT, -1: Requeued.EXPIRED}[int(done)]

    def purge(self, dead_letter_id: str) -> bool:
        """Delete the dead letter and its payload; False if there is none with this id."""
        done = Script(self._client, "purge")(
            [*self._keys, keys.dead_payload(self.name, dead_letter_id), self._last],
            [secrets.token_hex(8), dead_letter_id],
        )
        return bool(done)

    def _dead_letter(self, raw_id: bytes, text: bytes, buried: bytes | float) -> DeadLetter:
        since, _, dead_letter = text.partition(b" ")
        document = json.loads(dead_letter)
        error = document.get("error", {})
        return DeadLetter(
            id=raw_id.decode(),
            queue=self.name,
            code=error.get("code", "unknown"),
            message=error.get("message", ""),
            attempts=int(document.get("attempts", 0)),
            runner=document.get("runner", ""),
            bytes=int(document.get("bytes", 0)),
            claimed_at=float(since) / 1000,
            dead_lettered_at=float(buried) / 1000,
        )
