"""Failing image servers: their jobs wait without a run, and one of them at a time tries the server again.

The state of a server is in Redis and shared by all runs. A waiting job is parked (see `runner.queue.parking`): it has
no lease, so KEDA does not count it. One job per failing server, the probe, keeps a lease that is due when the server
is tried again, so KEDA keeps one Job for it.
"""

from __future__ import annotations

import random
import secrets
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.queue import keys, totals
from runner.queue.leases import Lease
from runner.queue.parking import Parking
from runner.queue.scripts import Script, refusals
from runner.queue.totals import SERVER_FAILING, Tally

if TYPE_CHECKING:  # `settings` imports this module, and not every command needs redis-py (130 ms)
    from redis import Redis

# The longest time that a job can wait for its image server (its setting allows no more).
LONGEST_SECONDS = 86_400
# Retry-After is bounded by the longest delay of a lease.
LONGEST_PAUSE_SECONDS = 3600.0


class Verdict(Enum):
    """The decision about a job whose image server fails."""

    LOST = 0  # its lease belongs to another claim
    PARKED = 1  # until the server answers
    PUT_OFF = 2  # by a delay; the job keeps a lease
    ASK = 3  # it has to try the server now


class Failure(NamedTuple):
    """A failed request to an image server.

    `is_first` is false if the job has failed there before; `pause_seconds` is the server's Retry-After, 0 if it sent
    none; `delay_seconds` is this job's own delay.
    """

    is_first: bool
    pause_seconds: float
    delay_seconds: float


class Hosts:
    """The failing image servers of a list, as seen by one owner. Raises what redis raises.

    The pause between two requests to a failing server grows from `base_seconds` to `cap_seconds`, with jitter.
    """

    def __init__(
        self, client: Redis, name: str = "process", *, owner: str = "", base_seconds: float = 0, cap_seconds: float = 0
    ) -> None:
        self._client = client
        self._name = name
        self._last = keys.last(name, owner)
        self._pauses = [round(base_seconds * 1000), round(cap_seconds * 1000)]
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._parking = Parking(client, name, longest_seconds=LONGEST_SECONDS)

    def failing(self) -> set[str]:
        """Return the hosts of the failing image servers."""
        client: Any = self._client
        with refusals(f"reading {keys.hosts(self._name)}"):
            return {raw.decode() for raw in client.zrange(keys.hosts(self._name), 0, -1)}

    def wait(
        self, lease: Lease, host: str, *, failure: Failure | None, timeout_seconds: float, state: bytes, tally: Tally
    ) -> tuple[Verdict, float]:
        """Decide about a job, and apply the decision; return the verdict, and the delay if the job is deferred.

        `failure` is None if the job has not tried its server, and the next claim returns `state`. The attempt does not
        count for the job; the totals count it together with `tally`. `timeout_seconds` counts from when the job
        left the list.
        """
        found = Script(self._client, "wait_for_host")(
            [
                keys.leases(self._name), keys.claimed(self._name), self._last, keys.parked(self._name),
                keys.hosts(self._name), keys.host(self._name, host), keys.host_parked(self._name, host),
                keys.totals(self._name),
            ],
            [
                secrets.token_hex(8), lease.id, lease.holder, host, SERVER_FAILING, state, int(failure is not None),
                int(failure is not None and failure.is_first),
                round(min(failure.pause_seconds, LONGEST_PAUSE_SECONDS) * 1000) if failure else 0,
                round(failure.delay_seconds * 1000) if failure else 0,
                *self._pauses, self._random.uniform(0.5, 1.0), round(timeout_seconds * 1000),
                totals.encode({totals.release_field(SERVER_FAILING): 1, **tally}),
            ],
        )  # fmt: skip
        verdict, *milliseconds = (int(number) for number in found)
        return Verdict(verdict), (milliseconds or [0])[0] / 1000

    def answers(self, host: str) -> int:
        """Record that an image server answers; return how many parked jobs have become due."""
        return int(Script(self._client, "host_answers")(self._keys(host), [host]))

    def replace_probe(self, host: str, ending: str = "") -> bool:
        """Make a parked job the probe of its host, and return whether that was done.

        It replaces the probe `ending`, a lease id whose job ends without a request to the server, or a probe without a
        lease, which a failover or `forget` has removed.
        """
        return bool(Script(self._client, "replace_probe")(self._keys(host), [host, ending]))

    def check(self) -> None:
        """Replace the probes that have no lease, and wake the jobs that have waited for too long."""
        for host in self.failing():
            self.replace_probe(host)
        self._parking.wake_overdue()

    def _keys(self, host: str) -> list[str]:
        return [
            keys.leases(self._name), keys.parked(self._name), keys.hosts(self._name), keys.host(self._name, host),
            keys.host_parked(self._name, host),
        ]  # fmt: skip
