"""The heartbeat: a thread that renews the leases of this run well before they expire."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from runner.errors import RunnerError
from runner.logs import logger
from runner.queue.leases import Lease, LeaseQueue

# Chances to renew a lease before it expires.
RENEWALS_A_LEASE = 3
# A lease counts as lost this share of it early: storing takes time, and clocks differ in speed.
SAFETY_SHARE = 0.1
# Before storing, a lease that Redis confirmed this recently is not checked again, so a batch sends one request.
FRESH_SECONDS = 0.05
# How long storing waits for Redis to confirm a lease. Without an answer the local clock decides, and Redis is not
# queried again for a while, because the caller holds locks in PostgreSQL.
ASK_SECONDS = 0.5
ASK_AGAIN_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class _Renewal:
    lease: Lease
    confirmed: float  # local time just before Redis last confirmed the lease
    until: float  # local time until which no other runner can claim the job


class Heartbeat:
    """Renews leases in a separate thread, for the duration of a `with` block.

    Redis decides whether this run still owns a lease. If Redis is unreachable, the local monotonic clock does, counting
    from just before the last successful renewal: a lease counts as lost before another runner can claim the job.
    """

    def __init__(self, queues: Sequence[LeaseQueue], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._clock = clock
        self._leases: dict[tuple[str, str], _Renewal] = {}
        self._changed = threading.Condition()
        self._wanted = self._beating = False
        self._stopped = False
        self._beats = 0
        self._ask_from = 0.0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def add(self, leases: Iterable[Lease], *, claimed_at: float | None = None) -> None:
        """Renew these leases from now on; `claimed_at` is a local time before their claim."""
        with self._changed:
            for lease in leases:
                since = lease.claimed_at if claimed_at is None else claimed_at
                self._leases[_key(lease)] = _Renewal(lease, since, since + self._safe_seconds(lease.queue))

    def remove(self, lease: Lease) -> None:
        """Stop renewing the lease."""
        with self._changed:
            self._leases.pop(_key(lease), None)

    def still_owned(self, lease: Lease) -> bool:
        """Return whether this run still owns the lease; queries Redis unless it did so just before.

        Takes at most about `ASK_SECONDS`, and raises nothing while the heartbeat's thread runs.
        """
        if not self._is_fresh(lease):
            self._ask()
        with self._changed:
            known = self._leases.get(_key(lease))
            return known is not None and self._clock() < known.until

    def has_lost(self, lease: Lease) -> bool:
        """Return whether the lease is known to be lost, without querying Redis."""
        with self._changed:
            known = self._leases.get(_key(lease))
            return known is None or self._clock() >= known.until

    def owned_until(self, lease: Lease) -> float:
        """Return the local time until which no other runner can claim the job, without querying Redis."""
        with self._changed:
            known = self._leases.get(_key(lease))
            return -math.inf if known is None else known.until

    def beat(self) -> None:
        """Renew every lease once. Raises `RunnerError` if Redis cannot be used."""
        for name, queue in self._queues.items():
            with self._changed:
                renewals = [entry for entry in self._leases.values() if entry.lease.queue == name]
            if not renewals:
                continue
            before = self._clock()
            lost = queue.renew([entry.lease for entry in renewals])
            with self._changed:
                for entry in renewals:
                    entry.confirmed, entry.until = before, before + self._safe_seconds(name)
                for lease in lost:
                    self._leases.pop(_key(lease), None)
            if lost:
                logger().warning("leases lost", extra={"queue": name, "leases": sorted(lease.id for lease in lost)})

    def _is_fresh(self, lease: Lease) -> bool:
        with self._changed:
            known = self._leases.get(_key(lease))
            return known is None or self._clock() - known.confirmed <= FRESH_SECONDS

    def _ask(self) -> None:
        """Trigger a renewal of every lease, and wait for it for at most `ASK_SECONDS`."""
        if not self._thread.is_alive():
            self.beat()
            return
        if self._clock() < self._ask_from:
            return
        with self._changed:
            # A renewal in progress may have been sent before now: wait for the next one.
            wanted = self._beats + (2 if self._beating else 1)
            self._wanted = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._beats >= wanted, ASK_SECONDS):
                self._ask_from = self._clock() + ASK_AGAIN_SECONDS

    def _safe_seconds(self, name: str) -> float:
        return self._queues[name].lease_seconds * (1 - SAFETY_SHARE)

    def _run(self) -> None:
        pause = min(queue.lease_seconds for queue in self._queues.values()) / RENEWALS_A_LEASE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._stopped, pause)
                if self._stopped:
                    return
                self._wanted, self._beating = False, True
            try:
                self.beat()
            except RunnerError as error:  # the main thread gets it too, and handles it
                logger().warning("heartbeat failed", extra={"error": error.document()})
            with self._changed:
                self._beating = False
                self._beats += 1
                self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _key(lease: Lease) -> tuple[str, str]:
    return lease.id, lease.holder
