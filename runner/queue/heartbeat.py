"""The heartbeat: a thread that renews every lease this run holds, well before it expires."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
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


class Heartbeat:
    """Renews in a thread of its own for the time of a `with` block.

    Whether a lease is still ours is judged by the local monotonic clock from before the last renewal that
    succeeded: where Redis cannot be reached, leases count as lost before another runner can take them.
    """

    def __init__(self, queues: Sequence[LeaseQueue], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, tuple[str, float]] = {}  # lease id → its list, and how long it is surely ours
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def hold(self, leases: Iterable[Lease], *, claimed_at: float | None = None) -> None:
        """Renew these leases from now on; `claimed_at` is a moment before their claim."""
        since = self._clock() if claimed_at is None else claimed_at
        with self._lock:
            for lease in leases:
                self._until[lease.id] = (lease.queue, since + self._safe_seconds(lease.queue))

    def drop(self, lease: Lease) -> None:
        """Renew it no longer."""
        with self._lock:
            self._until.pop(lease.id, None)

    def still_owned(self, lease: Lease) -> bool:
        """Return whether no other runner can have the lease yet."""
        with self._lock:
            _, until = self._until.get(lease.id, ("", 0.0))
        return self._clock() < until

    def beat(self) -> None:
        """Renew once."""
        for name, queue in self._queues.items():
            with self._lock:
                held = [lease_id for lease_id, (where, _) in self._until.items() if where == name]
            if not held:
                continue
            before = self._clock()
            lost = queue.renew(held)
            with self._lock:
                for lease_id in held:
                    if lease_id in lost:
                        self._until.pop(lease_id, None)
                    elif lease_id in self._until:
                        self._until[lease_id] = (name, before + self._safe_seconds(name))
            if lost:
                logger().warning("leases lost", extra={"queue": name, "leases": sorted(lost)})

    def _safe_seconds(self, name: str) -> float:
        return self._queues[name].lease_seconds * (1 - SAFETY_SHARE)

    def _run(self) -> None:
        pause = min(queue.lease_seconds for queue in self._queues.values()) / RENEWALS_A_LEASE
        while not self._stopped.wait(pause):
            try:
                self.beat()
            except RunnerError as error:  # the main thread meets it too, and decides
                logger().warning("heartbeat failed", extra={"reason": error.word, "detail": str(error)})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
