"""What a run takes its jobs from: a leased list of Redis, or one job that was given to it."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from runner.errors import SettingsError
from runner.queue.leases import Counts, Lease


class LeaseSource(Protocol):
    """The side of `LeaseQueue` that a run uses; see there for each method."""

    name: str
    lease_seconds: float

    def claim(self, limit: int, *, in_hand: int | None = None) -> list[Lease]:
        """Lease up to `limit` jobs."""
        ...

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Keep the leases; return those that are no longer ours."""
        ...

    def acknowledge_many(self, leases: Sequence[Lease]) -> set[str]:
        """End the leases of jobs that are done; return the ids of those that were no longer ours."""
        ...

    def retry(self, lease: Lease, delay_seconds: float, reason: str) -> bool:
        """Let the job fall due again later."""
        ...

    def release(self, lease: Lease, delay_seconds: float = 0) -> bool:
        """Give the job back without this attempt."""
        ...

    def bury(self, lease: Lease, reason: str, detail: str) -> bool:
        """End a job that cannot be done."""
        ...

    def take_over(self) -> int:
        """Let the leases of earlier processes of the same owner fall due at once."""
        ...

    def counts(self) -> Counts:
        """Return how the source stands."""
        ...


class SingleJob:
    """One payload that is in no list, for `run --job`.

    It goes the way of every other job, its retries included, and its result is written as usual. But nobody else
    can take it over, and its failure leaves no dead letter: what is being debugged is in its list, or dead, already.
    """

    def __init__(self, name: str, payload: bytes, *, lease_seconds: float) -> None:
        self.name = name
        self.lease_seconds = lease_seconds
        self._id = f"given-{uuid.uuid4().hex}"
        self._payload = payload
        self._attempts = 0
        self._due: float | None = time.monotonic()  # None while it is in hand, and once it is settled

    def claim(self, limit: int, *, in_hand: int | None = None) -> list[Lease]:  # noqa: ARG002 - it is the only one
        """Lease the job when it is due."""
        if limit <= 0 or self._due is None or self._due > time.monotonic():
            return []
        self._due = None
        self._attempts += 1
        return [Lease(self._id, self.name, self._payload, self._attempts)]

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:  # noqa: ARG002 - nobody can take it
        """Return that nothing was lost."""
        return []

    def acknowledge_many(self, leases: Sequence[Lease]) -> set[str]:  # noqa: ARG002 - as renew
        """Return that nothing was lost."""
        return set()

    def retry(self, lease: Lease, delay_seconds: float, reason: str) -> bool:  # noqa: ARG002 - there is one lease, and no dead letter
        """Offer the job again in `delay_seconds`."""
        self._due = time.monotonic() + delay_seconds
        return True

    def release(self, lease: Lease, delay_seconds: float = 0) -> bool:  # noqa: ARG002 - there is one lease
        """Let go of the job: the run is about to end."""
        return True

    def bury(self, lease: Lease, reason: str, detail: str) -> bool:  # noqa: ARG002 - there is no dead letter
        """Let go of the job: the summary and the log say why."""
        return True

    def take_over(self) -> int:
        """Return that there is nothing to take over."""
        return 0

    def counts(self) -> Counts:
        """Return whether the job is still to come."""
        if self._due is None:
            return Counts(0, 0, 0, 0, None)
        seconds = max(0.0, self._due - time.monotonic())
        return Counts(0, 1, int(seconds == 0), 0, seconds)


def read_payload(where: str) -> bytes:
    """Return the payload in a file, in the files of a folder one after the other by name, or on standard input (-).

    A folder, because a Secret of Kubernetes holds at most 1 MiB and selfies have no such limit. Raises
    `SettingsError`.
    """
    if where == "-":
        payload = sys.stdin.buffer.read()
    else:
        path = Path(where)
        try:
            # Kubernetes keeps the versions of a volume in hidden folders beside the links to them.
            parts = sorted(part for part in path.iterdir() if part.name[0] != ".") if path.is_dir() else [path]
            payload = b"".join(part.read_bytes() for part in parts)
        except OSError as error:
            raise SettingsError(f"the job cannot be read from {where}: {error.strerror}") from None
    if not payload.strip():
        place = "on standard input" if where == "-" else f"in {where}"
        raise SettingsError(f"there is no job {place}: one JSON object is needed")
    return payload
