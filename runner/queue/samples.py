"""The current state of a queue and its history of the last hours, for metrics and the status page. Not used by runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from runner.queue import keys, totals
from runner.queue.leases import DEAD_LETTER_SECONDS
from runner.queue.scripts import Script, refusals

HISTORY_SECONDS = 6 * 3600
# An entry a minute: 360 in all.
HISTORY_STEP_SECONDS = 60
_MOST_LEASES = 1000
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """A queue at one moment. `deferred` are the leases without an owner, among the first thousand to expire.

    `oldest_seconds` is how long the head of the list has waited since it was first seen there, 0 without one. `dead`
    has the dead letters by error code, and `totals` the counters (see `totals.py`). `orphans` are the photos that have
    lost their job, None if no sweep has counted them within a day.
    """

    name: str
    waiting: int
    leased: int
    due: int
    deferred: int
    parked: int
    oldest_seconds: float
    dead: Counter[str]
    totals: Counter[str]
    orphans: int | None


@dataclass(frozen=True, slots=True)
class Moment:
    """An entry of the history: `time` in seconds of the Unix epoch; `ended` and `failed` are totals of jobs."""

    time: float
    waiting: int
    leased: int
    parked: int
    oldest_seconds: float
    ended: int
    failed: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run that has ended at `time` (seconds of the Unix epoch), with its summary."""

    time: float
    document: dict[str, Any] = field(repr=False)


class Sampler:
    """Samples one queue, and records its history in Redis, shared by all samplers. Raises what redis raises."""

    def __init__(self, client: Redis, name: str) -> None:
        self.name = name
        self._client = client
        self._look = Script(client, "sample")
        self._count_dead = Script(client, "dead_codes")
        self._dead: tuple[object, Counter[str]] = (None, Counter())

    def sample(self) -> Sample:
        """Return the state of the queue; an entry of the history is added once a minute."""
        name = self.name
        state, values = self._look(
            [
                keys.list_key(name), keys.leases(name), keys.claimed(name), keys.dead_index(name), keys.parked(name),
                keys.totals(name), keys.arrivals(name), keys.history(name), keys.orphans(name),
            ],
            [
                DEAD_LETTER_SECONDS * 1000, HISTORY_STEP_SECONDS * 1000, HISTORY_SECONDS * 1000, _MOST_LEASES,
                " ".join(totals.all_fields()),
            ],
        )  # fmt: skip
        waiting, leased, due, deferred, parked, dead, first, last, age, orphans = state
        return Sample(
            name,
            int(waiting),
            int(leased),
            int(due),
            int(deferred),
            int(parked),
            int(age) / 1000,
            self._dead_codes((int(dead), first, last)),
            totals.decoded(values.split(b" ")),
            int(orphans) if orphans.isdigit() else None,
        )

    def history(self) -> list[Moment]:
        """Return the entries of the history, oldest first."""
        found = []
        with refusals(f"reading {keys.history(self.name)}"):
            client: Any = self._client
            entries = client.zrange(keys.history(self.name), 0, -1)
        for entry in entries:
            time, waiting, leased, parked, oldest, ended, failed = map(int, entry.split())
            found.append(Moment(time / 1000, waiting, leased, parked, oldest / 1000, ended, failed))
        return found

    def runs(self) -> list[RunSummary]:
        """Return the summaries of the last runs, newest first."""
        with refusals(f"reading {keys.runs(self.name)}"):
            client: Any = self._client
            entries = client.zrange(keys.runs(self.name), 0, -1, withscores=True)
        return [RunSummary(moment / 1000, document) for document, moment in _documents(entries)][::-1]

    def _dead_codes(self, mark: tuple[int, bytes, bytes]) -> Counter[str]:
        """Return the dead letters by code. They are counted again when their number, the first or the last changes."""
        if self._dead[0] != mark:
            found, skipped, page = Counter[str](), 0, _PAGE
            while page == _PAGE and mark[0]:
                page, *pairs = self._count_dead(
                    [keys.dead(self.name), keys.dead_index(self.name)], [DEAD_LETTER_SECONDS * 1000, skipped, _PAGE]
                )
                skipped += page
                for code, number in zip(pairs[::2], pairs[1::2], strict=True):
                    found[_known(code.decode(errors="replace"))] += int(number)
            self._dead = mark, found
        return self._dead[1]


def _known(code: str) -> str:
    return code if code in totals.job_codes() else totals.OTHER


def _documents(entries: list[tuple[bytes, float]]) -> Iterator[tuple[dict[str, Any], float]]:
    for text, moment in entries:
        try:
            document = json.loads(text)
        except ValueError:  # another program has written it
            continue
        if isinstance(document, dict):
            yield document, moment
