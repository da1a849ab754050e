"""Checks whether KEDA can scale: the condition Ready of the ScaledJobs, and why it is not True.

A ScaledJob that is not ready starts no Job, although the pods of the installation work: KEDA's operator reads Redis
from another namespace, through another network policy and with other credentials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from runner.cluster.api import APP, NAME_LABEL, RELEASE_LABEL, Cluster, NoClusterError, NotFoundError, Object
from runner.cluster.objects import scaled_job_state
from runner.cluster.service_account import ServiceAccountReader
from runner.errors import CheckFailedError, ClusterError
from runner.output import printable

# KEDA reconciles a new or changed ScaledJob within seconds, and retries for longer while Redis does not respond.
READY_SECONDS, NOT_READY_SECONDS = 10.0, 30.0
_LONGEST = 400


class Reader(Protocol):
    """Read access to the Kubernetes API in one namespace. Every method raises `ClusterError`."""

    namespace: str

    def scaled_job(self, name: str) -> Object:
        """Return one ScaledJob."""

    def scaled_jobs(self, selector: Mapping[str, str]) -> list[Object]:
        """Return the ScaledJobs with these labels."""

    def warnings(self, name: str) -> list[Object]:
        """Return the Warning events of one ScaledJob."""

    def close(self) -> None:
        """Close the connections."""


def open_reader(*, context: str | None, namespace: str | None) -> Reader:
    """Return a reader that uses the pod's service account, or else the kubeconfig. Raises `ClusterError`."""
    if context is None:
        try:
            return ServiceAccountReader.open(namespace)
        except NoClusterError:
            pass
    return Cluster.connect(context=context, namespace=namespace)


def check(
    reader: Reader,
    *,
    names: Sequence[str] = (),
    release: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Return a list of the ScaledJobs, all of them ready: those in `names`, or else of the release, or of all releases.

    Waits for KEDA to reconcile those that were created or changed recently. Raises `CheckFailedError` if one is not
    ready or does not exist, and `ClusterError`.
    """
    while True:
        found = _scaled_jobs(reader, names, release)
        if not any(_is_unsettled(item) for item in found):
            break
        sleep(1.0)
    faults = [_fault(reader, item) for item in found if not _is_ready(item)]
    if faults:
        raise CheckFailedError("; ".join(faults))
    return ", ".join(_finding(item) for item in found)


def _scaled_jobs(reader: Reader, names: Sequence[str], release: str | None) -> list[Object]:
    try:
        if names:
            return [reader.scaled_job(name) for name in names]
        found = reader.scaled_jobs({NAME_LABEL: APP, **({RELEASE_LABEL: release} if release else {})})
    except NotFoundError as error:
        raise CheckFailedError(f"KEDA or the ScaledJob is missing: {error.detail}") from None
    if not found:
        of = f"of release {release} " if release else ""
        raise CheckFailedError(
            f"there is no ScaledJob {of}in namespace {reader.namespace}: check --namespace and --release"
        )
    return found


def _is_ready(scaled: Object) -> bool:
    return _ready(scaled).get("status") == "True"


def _ready(scaled: Object) -> Object:
    conditions = (scaled.get("status") or {}).get("conditions") or []
    return next((dict(item) for item in conditions if item.get("type") == "Ready"), {})


def _is_unsettled(scaled: Object) -> bool:
    """Return whether the condition may be outdated: after an upgrade, it keeps its old value until KEDA reconciles."""
    changed = max(_changes(scaled), default=None)
    if changed is None:
        return False
    age = (datetime.now(UTC) - changed).total_seconds()
    return 0 <= age < (READY_SECONDS if _is_ready(scaled) else NOT_READY_SECONDS)


def _changes(scaled: Object) -> Iterator[datetime]:
    """Yield when the ScaledJob was created, and last changed by each field manager, except in its status."""
    metadata = scaled["metadata"]
    fields = [item for item in metadata.get("managedFields") or [] if item.get("subresource") != "status"]
    for text in (metadata.get("creationTimestamp"), *(item.get("time") for item in fields)):
        if text:
            yield datetime.fromisoformat(str(text))


def _finding(scaled: Object) -> str:
    state = scaled_job_state(scaled)
    return f"{state.name} READY{', paused' if state.paused else ''}"


def _fault(reader: Reader, scaled: Object) -> str:
    name, ready = scaled["metadata"]["name"], _ready(scaled)
    details = f"kubectl --namespace {reader.namespace} describe scaledjob {name}"
    if ready.get("status", "Unknown") == "Unknown" and not ready.get("message"):
        return (
            f"{name} is not READY, because KEDA has not reconciled it: check that its operator is running and watches "
            f"namespace {reader.namespace} (see {details})"
        )
    why = ": ".join(filter(None, (ready.get("reason"), ready.get("message"), _last_warning(reader, name))))
    places = dict.fromkeys(_addresses(scaled))
    return (
        f"{name} is not READY, so KEDA starts no Job for it ({_printable(why)}): KEDA's operator must reach Redis at "
        f"{_printable(', '.join(places))} from its own namespace (see {details})"
    )


def _addresses(scaled: Object) -> Iterator[str]:
    for trigger in (scaled.get("spec") or {}).get("triggers") or []:
        metadata = trigger.get("metadata") or {}
        yield str(metadata.get("addresses") or metadata.get("address") or "the address of its trigger")


def _last_warning(reader: Reader, name: str) -> str:
    """Return the newest warning about a trigger: KEDA's condition never includes the error of Redis or DNS."""
    try:
        events = reader.warnings(name)
    except ClusterError:
        return ""
    newest = max(
        (event for event in events if event.get("message")),
        key=lambda event: (event.get("reason") == "KEDAScalerFailed", _moment(event)),
        default={},
    )
    return str(newest.get("message") or "")


def _moment(event: Object) -> str:
    series = event.get("series") or {}
    stamps = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max(str(stamp or "") for stamp in stamps)


def _printable(text: str) -> str:
    """Return text from the cluster as one line without control characters."""
    return printable(" ".join(text.split()))[:_LONGEST]
