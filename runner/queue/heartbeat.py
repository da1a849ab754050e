"""The heartbeat: a thread that renews every lease this run holds, well before it expires."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runner.errors import RunnerError
from runner.logs import logger

if TYPE_CHECKING:
    from runner.queue.leases import Lease, LeaseQueue

# Three chances to renew before a lease is gone.
RENEWALS_A_LEASE = 3
# Work on a lease is given up this share of it early: storing takes time too, and clocks differ in speed.
SAFETY_SHARE = 0.1
# A lease that Redis has confirmed this long ago is not asked for again before storing: a batch asks once.
FRESH_SECONDS = 0.05
# How long an answer is waited for before storing. Without one the local clock decides, and Redis is not asked
# again for a while: the caller holds locks in PostgreSQL.
ASK_SECONDS = 0.5
ASK_AGAIN_SECONDS = 5.0


@dataclass(slots=True)
class _Held:
    lease: Lease
    confirmed: float  # a local moment from before Redis last said that the lease is ours
    until: float  # so long nobody else can have it, by the local clock


class Heartbeat:
    """Renews in a thread of its own for the time of a `with` block.

    Whether a lease is still ours, Redis says. Where it cannot be asked, the local monotonic clock decides, from
    before the last renewal that succeeded: leases count as lost before another runner can take them.
    """

    def __init__(self, queues: Sequence[LeaseQueue], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._clock = clock
        self._held: dict[tuple[str, str], _Held] = {}
        self._changed = threading.Condition()
        self._wanted = self._beating = False
        self._stopped = False
        self._beats = 0
        self._ask_from = 0.0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def hold(self, leases: Iterable[Lease], *, claimed_at: float | None = None) -> None:
        """Renew these leases from now on; `claimed_at` is a local moment before their claim."""
        with self._changed:
            for lease in leases:
                since = lease.claimed_at if claimed_at is None else claimed_at
                self._held[_key(lease)] = _Held(lease, since, since + self._safe_seconds(lease.queue))

    def drop(self, lease: Lease) -> None:
        """Renew it no longer."""
        with self._changed:
            self._held.pop(_key(lease), None)

    def still_owned(self, lease: Lease) -> bool:
        """Return whether no other runner can have the lease yet; asks Redis unless that was just done.

        Never takes longer than about `ASK_SECONDS`, and raises nothing while the heartbeat's thread runs.
        """
        if not self._is_fresh(lease):
            self._ask()
        with self._changed:
            held = self._held.get(_key(lease))
            return held is not None and self._clock() < held.until

    def has_lost(self, lease: Lease) -> bool:
        """Return whether the lease is known to be lost, without asking anyone."""
        with self._changed:
            held = self._held.get(_key(lease))
            return held is None or self._clock() >= held.until

    def beat(self) -> None:
        """Renew every lease once. Raises `RunnerError` where Redis stays away."""
        for name, queue in self._queues.items():
            with self._changed:
                held = [entry for entry in self._held.values() if entry.lease.queue == name]
            if not held:
                continue
            before = self._clock()
            lost = queue.renew([entry.lease for entry in held])
            with self._changed:
                for entry in held:
                    entry.confirmed, entry.until = before, before + self._safe_seconds(name)
                for lease in lost:
                    self._held.pop(_key(lease), None)
            if lost:
                logger().warning("leases lost", extra={"queue": name, "leases": sorted(lease.id for lease in lost)})

    def _is_fresh(self, lease: Lease) -> bool:
        with self._changed:
            held = self._held.get(_key(lease))
            return held is None or self._clock() - held.confirmed <= FRESH_SECONDS

    def _ask(self) -> None:
        """Let every lease be renewed now, and wait for it, but not for long."""
        if not self._thread.is_alive():
            self.beat()
            return
        if self._clock() < self._ask_from:
            return
        with self._changed:
            # A beat that is under way may have been sent before now: the next one counts.
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
            except RunnerError as error:  # the main thread meets it too, and decides
                logger().warning("heartbeat failed", extra={"reason": error.word, "detail": str(error)})
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
