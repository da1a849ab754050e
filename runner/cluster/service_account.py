"""Read access to the Kubernetes API with the service account of this pod.

The image does not contain the package `kubernetes` (docs/how-to/image.md), and `helm test` runs `doctor` in the image:
its few GET requests do not justify a client of that size. Everything else uses `runner.cluster.api`.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

from runner.cluster.api import (
    SCALED_JOBS,
    NoClusterError,
    NotFoundError,
    Object,
    as_list,
    as_object,
    unusable,
    warnings_selector,
)
from runner.errors import ClusterError

_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS = 10.0
_KEDA = f"/apis/{SCALED_JOBS[0]}/{SCALED_JOBS[1]}"
T = TypeVar("T")


class ServiceAccountReader:
    """Reads ScaledJobs and their events in one namespace. Every method raises `ClusterError`."""

    def __init__(self, host: str, port: int, namespace: str, token: str, context: ssl.SSLContext | None) -> None:
        """Keep the address of the API server; without `context`, requests use plain HTTP."""
        self.namespace = namespace
        self.name = "in-cluster"
        self._host = host
        self._port = port
        self._token = token
        self._context = context

    @classmethod
    def open(cls, namespace: str | None = None, folder: Path = _FOLDER) -> Self:
        """Use the mounted token; sends nothing. Raises `NoClusterError` outside a pod, or without a token."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise NoClusterError("this process is not in a pod (KUBERNETES_SERVICE_HOST is not set)")
        try:
            token = (folder / "token").read_text(encoding="utf-8").strip()
            own = (folder / "namespace").read_text(encoding="utf-8").strip()
            context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        except OSError:
            raise NoClusterError("this pod has no service account token mounted") from None
        return cls(host, int(port), namespace or own, token, context)

    def close(self) -> None:
        """Do nothing: every request opens its own connection."""

    def scaled_job(self, name: str) -> Object:
        """Return one ScaledJob; raises `NotFoundError` if it does not exist or KEDA is not installed."""
        return self._get(_KEDA, f"scaledjobs/{name}", f"get scaledjobs {name}", {}, as_object)

    def scaled_jobs(self, selector: Mapping[str, str]) -> list[Object]:
        """Return the ScaledJobs with these labels; raises `NotFoundError` if KEDA is not installed."""
        labels = ",".join(f"{name}={value}" for name, value in selector.items())
        return self._get(_KEDA, "scaledjobs", "list scaledjobs.keda.sh", {"labelSelector": labels}, as_list)

    def warnings(self, name: str) -> list[Object]:
        """Return the Warning events of one ScaledJob."""
        return self._get("/api/v1", "events", "list events", {"fieldSelector": warnings_selector(name)}, as_list)

    def _get(self, group: str, what: str, action: str, query: Mapping[str, str], read: Callable[[Any], T]) -> T:
        encoded = urlencode(query, safe="/")
        path = f"{group}/namespaces/{self.namespace}/{what}{'?' if encoded else ''}{encoded}"
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=_SECONDS, context=self._context)
            if self._context
            else http.client.HTTPConnection(self._host, self._port, timeout=_SECONDS)
        )
        try:
            connection.request(
                "GET", path, headers={"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
            )
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(
                f"the Kubernetes API at {self._host}:{self._port} cannot be reached from this pod "
                f"({type(error).__name__}): check that no NetworkPolicy forbids it (networkPolicy.apiServerPorts)"
            ) from None
        finally:
            connection.close()
        self._check(status, action)
        try:
            return read(json.loads(body))
        except (LookupError, TypeError, ValueError):
            raise unusable(f"{self._host}:{self._port}", action) from None

    def _check(self, status: int, action: str) -> None:
        if status == http.HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"`{action}` in namespace {self.namespace}")
        if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            raise ClusterError(
                f"`{action}` is forbidden in namespace {self.namespace} for the service account of this pod: "
                "bind a Role that allows it, as the chart does for helm test"
            )
        if status != http.HTTPStatus.OK:
            raise ClusterError(f"`{action}` in namespace {self.namespace} failed with HTTP {status}")
