"""The kinds of job, `PHOTO` and `COMPARISON`: everything that differs between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.queue.leases import Lease
from runner.queue.parking import Parking
from runner.queue.privacy import SELFIE_SECONDS
from runner.store.results import ResultStore, ResultWatch
from runner.worker.album import AlbumGate
from runner.worker.comparison import ComparisonHandler
from runner.worker.messages import decode_compare, decode_process
from runner.worker.outage import OutageGate
from runner.worker.photo import PhotoHandler
from runner.worker.task import Handler
from runner.worker.visibility import VisibilityGuard

if TYPE_CHECKING:  # `settings` imports this module: ssl, redis and psycopg must not come with it
    from runner.images.fetch import Fetcher
    from runner.queue.databases import KnownDatabases
    from runner.settings import Settings
    from runner.store.repository import Repository

# A payload without a selfie is kept as long as its dead letter.
PAYLOAD_SECONDS = 30 * 86_400


class Services(NamedTuple):
    """What handlers need. `owns` says whether this run still owns a lease; `repository` connects on first use.

    `owned_until` says until when (`time.monotonic`) no other run can claim the job, without asking Redis.
    `known_databases` is None if the job comes from no queue. Without `album` a comparison is answered from what is
    stored, without `parking` no comparison is woken, and without `outages` no photo waits for its image server.
    """

    settings: Settings
    results: ResultStore
    repository: Callable[[], Repository]
    fetcher: Fetcher
    owns: Callable[[Lease], bool]
    owned_until: Callable[[Lease], float]
    known_databases: KnownDatabases | None = None
    album: AlbumGate | None = None
    parking: Parking | None = None
    outages: OutageGate | None = None


class Kind(NamedTuple):
    """One kind of job.

    `queue` names its list, `noun` and `plural` its jobs in logs and summaries, and `id_field` the payload's field that
    identifies one. A payload with any of `marks` among its fields is of this kind. `decode` returns the job that a
    payload holds, or raises `InvalidJobError`; it needs no server. The payload of a dead letter is kept for
    `payload_seconds`, and never shown if it is `private`. `stores_faces` says whether the faces found are stored.
    """

    queue: str
    noun: str
    plural: str
    id_field: str
    marks: frozenset[str]
    decode: Callable[[bytes], Any]
    handler: Callable[[Services], Handler[Any]]
    payload_seconds: float = PAYLOAD_SECONDS
    private: bool = False
    stores_faces: bool = False


PHOTO = Kind(
    queue="process",
    noun="photo",
    plural="photos",
    id_field="id",
    marks=frozenset({"id", "imageUrl"}),
    decode=decode_process,
    handler=lambda services: PhotoHandler(
        services.repository,
        services.fetcher,
        services.owns,
        services.owned_until,
        VisibilityGuard(services.repository, services.known_databases),
        parking=services.parking,
        outages=services.outages,
    ),
    stores_faces=True,
)


def _comparison_handler(services: Services) -> ComparisonHandler:
    watch = ResultWatch(services.results, seconds=services.settings.result_watch_seconds)
    return ComparisonHandler(
        services.results,
        watch,
        services.repository,
        services.owns,
        services.album,
        selfie_faces=services.settings.selfie_faces,
    )


COMPARISON = Kind(
    queue="compare",
    noun="comparison",
    plural="comparisons",
    id_field="jobId",
    marks=frozenset({"jobId", "selfie"}),
    decode=decode_compare,
    handler=_comparison_handler,
    payload_seconds=SELFIE_SECONDS,
    private=True,
)

# By queue, in the default order of priority.
KINDS: Mapping[str, Kind] = {kind.queue: kind for kind in (COMPARISON, PHOTO)}


def kind_of(payload: bytes, kinds: Mapping[str, Kind] = KINDS) -> Kind:
    """Return the kind of job that a payload's fields indicate, by default `PHOTO`."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return PHOTO
    names = document.keys() if isinstance(document, dict) else ()
    return next((kind for kind in kinds.values() if kind.marks.intersection(names)), PHOTO)
