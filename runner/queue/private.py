"""A queue with one given job, known only to this process: for `run --job`."""

from __future__ import annotations

import secrets
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis

from runner.errors import RunnerError, SettingsError
from runner.output import may_be_payload, repeated
from runner.queue import keys
from runner.queue.leases import Lease, LeaseQueue
from runner.queue.scripts import Script

# How long the keys outlive the last claim of a run that was killed.
LIFETIME_SECONDS = 3600


class PrivateQueue(LeaseQueue):
    """A list of its own for `payload`, a job of the queue `name`, for the duration of a `with` block.

    The job is leased, retried and settled like any other. No other run claims it, and KEDA does not count it. All keys
    are removed at the end, including a dead letter: the original of a debugged job is also in its real queue.
    """

    def __init__(
        self, client: Redis, name: str, payload: bytes, *, owner: str, lease_seconds: float, max_attempts: int
    ) -> None:
        list_name = f"{name}:job:{secrets.token_hex(8)}"
        super().__init__(
            client,
            name,
            list_name=list_name,
            owner=owner,
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            payload_seconds=LIFETIME_SECONDS,
            keys_seconds=LIFETIME_SECONDS,
        )
        self._payload = payload
        self._created = [
            keys.list_key(list_name), keys.leases(list_name), keys.claimed(list_name), keys.last(list_name, owner),
            keys.dead(list_name), keys.dead_index(list_name), keys.totals(list_name), keys.runs(list_name),
        ]  # fmt: skip

    def claim(self, limit: int, *, in_flight: int | None = None) -> list[Lease]:
        """Claim the job if it is waiting or due."""
        leases = super().claim(limit, in_flight=in_flight)
        self._created += [keys.dead_payload(self.list_name, lease.id) for lease in leases]
        return leases

    def __enter__(self) -> Self:
        Script(self._client, "give")(self._created[:1], [self._payload, LIFETIME_SECONDS])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RunnerError):  # what cannot be removed expires
            for key in self._created:
                self._client.delete(key)


def read_payload(where: str) -> bytes:
    """Return the payload from a file, from the files of a directory joined in order of name, or from stdin (-).

    A directory, because a Kubernetes Secret holds at most 1 MiB, and selfies have no such limit. Raises
    `SettingsError`.
    """
    if where == "-":
        payload = b"" if sys.stdin is None else sys.stdin.buffer.read()
    else:
        path = Path(where)
        try:
            # Kubernetes keeps the versions of a volume in hidden directories next to the links to them.
            parts = sorted(part for part in path.iterdir() if part.name[0] != ".") if path.is_dir() else [path]
            payload = b"".join(part.read_bytes() for part in parts)
        except OSError as error:
            if may_be_payload(where):
                raise SettingsError(
                    f"RUNNER_JOB (--job) must be a file, a folder or -, not the job itself {repeated(where)}: save the "
                    "job in a file, or pass - and the job on standard input"
                ) from None
            raise SettingsError(
                f"the job cannot be read from {repeated(where)} (RUNNER_JOB, --job): {error.strerror}"
            ) from None
    if not payload.strip():
        place = "on standard input" if where == "-" else f"in {repeated(where)}"
        raise SettingsError(f"there is no job {place}: provide one JSON object")
    return payload
