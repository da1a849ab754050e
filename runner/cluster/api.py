"""The part of the Kubernetes API that `status` and `debug` need. Objects are plain dicts, with the fields of YAML.

The package `kubernetes` is optional (the extra `cluster`): without it, `Cluster.connect` raises `NoClusterError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar

from runner.errors import ClusterError

try:
    import yaml
    from kubernetes import client as kubernetes_client
    from kubernetes import config, watch
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError, ReadTimeoutError
except ModuleNotFoundError:
    _INSTALLED = False
else:
    _INSTALLED = True

Object = dict[str, Any]
T = TypeVar("T")

NAME_LABEL = "app.kubernetes.io/name"
RELEASE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
APP = "spottmee-worker"
# Set by Kubernetes (1.27 and later) on the pods of a Job.
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"

# Group and version of KEDA's ScaledJobs.
SCALED_JOBS = ("keda.sh", "v1alpha1")

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_SECONDS, _RESPONSE_SECONDS = 5.0, 30.0


class NoClusterError(ClusterError):
    """No Kubernetes cluster is available."""

    code = "no_cluster"


class NotFoundError(ClusterError):
    """The Kubernetes API does not have the requested object."""

    code = "not_found"


class Cluster:
    """One namespace of one cluster. Every method raises `ClusterError`."""

    def __init__(self, client: Any, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self._client = client
        self._batch = kubernetes_client.BatchV1Api(client)
        self._core = kubernetes_client.CoreV1Api(client)
        self._custom = kubernetes_client.CustomObjectsApi(client)

    @classmethod
    def connect(cls, *, context: str | None = None, namespace: str | None = None) -> Self:
        """Use the kubeconfig (KUBECONFIG, ~/.kube/config), or inside a pod its service account.

        Sends nothing. Raises `NoClusterError` if there is neither.
        """
        if not _INSTALLED:
            raise NoClusterError("the package kubernetes is not installed: pip install kubernetes")
        configuration = kubernetes_client.Configuration()
        # The package reads KUBECONFIG only once, when it is imported.
        file = os.environ.get("KUBECONFIG") or None
        try:
            config.load_kube_config(file, context=context, client_configuration=configuration)
            chosen = _context(config.list_kube_config_contexts(file), context)
            found, name = chosen["context"].get("namespace"), chosen["name"]
        except yaml.YAMLError:  # its message quotes the file, which contains credentials
            raise NoClusterError("the kubeconfig (KUBECONFIG, ~/.kube/config) is not valid YAML") from None
        except (config.ConfigException, OSError) as error:
            if context is not None:
                raise NoClusterError(f"context {context}: {_line(error)}") from None
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                raise NoClusterError(
                    "there is no usable kubeconfig (KUBECONFIG, ~/.kube/config), and this process is not in a pod "
                    f"({_line(error)})"
                ) from None
            found, name = _NAMESPACE_FILE.read_text(encoding="utf-8").strip(), "in-cluster"
        configuration.retries = 1
        return cls(kubernetes_client.ApiClient(configuration), namespace or found or "default", name)

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()

    def jobs(self, selector: Mapping[str, str]) -> list[Object]:
        """Return the Jobs with these labels."""
        return self._list("jobs", self._batch.list_namespaced_job, selector)

    def cron_jobs(self, selector: Mapping[str, str]) -> list[Object]:
        """Return the CronJobs with these labels."""
        return self._list("cronjobs", self._batch.list_namespaced_cron_job, selector)

    def pods(self, selector: Mapping[str, str]) -> list[Object]:
        """Return the pods with these labels."""
        return self._list("pods", self._core.list_namespaced_pod, selector)

    def scaled_jobs(self, selector: Mapping[str, str]) -> list[Object]:
        """Return the ScaledJobs with these labels; raises `NotFoundError` if KEDA is not installed."""

        def list_scaled_jobs(namespace: str, **more: Any) -> Any:
            return self._custom.list_namespaced_custom_object(*SCALED_JOBS, namespace, "scaledjobs", **more)

        return self._list("scaledjobs.keda.sh", list_scaled_jobs, selector)

    def scaled_job(self, name: str) -> Object:
        """Return one ScaledJob; raises `NotFoundError` if it does not exist or KEDA is not installed."""
        get = self._custom.get_namespaced_custom_object
        return self._object(f"get scaledjobs {name}", get, *SCALED_JOBS, self.namespace, "scaledjobs", name)

    def warnings(self, name: str) -> list[Object]:
        """Return the Warning events of one ScaledJob."""
        list_events, selector = self._core.list_namespaced_event, warnings_selector(name)
        return self._call("list events", list_events, self.namespace, field_selector=selector, read=as_list)

    def job(self, name: str) -> Object:
        """Return one Job."""
        return self._object("get jobs", self._batch.read_namespaced_job, name, self.namespace)

    def create_job(self, manifest: Object) -> Object:
        """Create the Job and return it as stored by the server."""
        return self._object("create jobs", self._batch.create_namespaced_job, self.namespace, manifest)

    def create_secret(self, manifest: Object) -> Object:
        """Create the Secret and return it as stored by the server."""
        return self._object("create secrets", self._core.create_namespaced_secret, self.namespace, manifest)

    def delete_job(self, name: str) -> None:
        """Delete the Job and, in the background, its pods; does nothing if it no longer exists."""
        self._delete("delete jobs", self._batch.delete_namespaced_job, name, propagation_policy="Background")

    def delete_secret(self, name: str) -> None:
        """Delete the Secret; does nothing if it no longer exists."""
        self._delete("delete secrets", self._core.delete_namespaced_secret, name)

    def follow_log(self, pod: str, container: str, seconds: float) -> Iterator[str]:
        """Yield the lines of the container's log until it ends; fails after `seconds` without a line."""
        with self._errors("get pods/log"):
            yield from watch.Watch().stream(
                self._core.read_namespaced_pod_log,
                name=pod,
                namespace=self.namespace,
                container=container,
                _request_timeout=(_CONNECT_SECONDS, seconds),
            )

    def _list(self, what: str, function: Callable[..., Any], selector: Mapping[str, str]) -> list[Object]:
        labels = ",".join(f"{name}={value}" for name, value in selector.items())
        return self._call(f"list {what}", function, self.namespace, label_selector=labels, read=as_list)

    def _delete(self, action: str, function: Callable[..., Any], name: str, **more: Any) -> None:
        try:
            self._call(action, function, name, self.namespace, read=lambda _: None, **more)
        except NotFoundError:
            return

    def _object(self, action: str, function: Callable[..., Any], *args: Any) -> Object:
        return self._call(action, function, *args, read=as_object)

    def _call(self, action: str, function: Callable[..., Any], *args: Any, read: Callable[[Any], T], **more: Any) -> T:
        """Call the API, and return what `read` makes of its answer."""
        with self._errors(action):
            answer = function(*args, **more, _request_timeout=(_CONNECT_SECONDS, _RESPONSE_SECONDS))
            return read(self._client.sanitize_for_serialization(answer))

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn the client's exceptions into `ClusterError`, with one line that says what to do."""
        try:
            yield
        except ApiException as error:
            raise self._refusal(action, error.status or 0, _message(error)) from None
        except config.ConfigException as error:
            raise ClusterError(f"{self.name}: {_line(error)}") from None
        except (HTTPError, OSError) as error:
            host = self._host()
            if isinstance(error, ReadTimeoutError):
                raise ClusterError(f"{host} (context {self.name}) did not respond to `{action}` in time") from None
            raise ClusterError(
                f"{host} (context {self.name}) cannot be reached: {_cause(error)}; check that the cluster is "
                "running and that the context is the right one (--context)"
            ) from None
        except (AttributeError, LookupError, TypeError, ValueError):  # from the client, or from `read`
            raise unusable(f"{self._host()} (context {self.name})", action) from None

    def _host(self) -> str:
        return re.sub(r"//[^/]*@", "//", self._client.configuration.host)  # without user and password

    def _refusal(self, action: str, status: int, message: str) -> ClusterError:
        place = f"namespace {self.namespace} of {self.name}"
        if status == HTTPStatus.UNAUTHORIZED:
            return ClusterError(f"the cluster rejects the credentials of context {self.name}: log in again")
        if status == HTTPStatus.FORBIDDEN:
            return ClusterError(
                f"`{action}` is forbidden in {place}: bind the Role in docs/how-to/debugging.md to this user "
                f"(check with: kubectl auth can-i {action} -n {self.namespace})"
            )
        if status == HTTPStatus.NOT_FOUND:
            return NotFoundError(f"`{action}` in {place}: {message}")
        return ClusterError(f"`{action}` in {place} failed with HTTP {status}: {message}")


def as_object(answer: Any) -> Object:
    """Return an answer that is an object of Kubernetes, or raise one of the errors of a wrong shape.

    These are `LookupError`, `TypeError` and `ValueError`.
    """
    if not isinstance(answer, dict) or not isinstance(answer["metadata"]["name"], str):
        raise TypeError
    return answer


def as_list(answer: Any) -> list[Object]:
    """Return the objects of an answer that is a list of them; raises as `as_object` does."""
    return [as_object(one) for one in answer["items"] or []]


def unusable(server: str, action: str) -> ClusterError:
    """Return the error for an answer that does not have the shape of Kubernetes' objects."""
    return ClusterError(
        f"{server} answered `{action}` as no Kubernetes API does: check that this is the address of the API server, "
        "and that no proxy answers in its place"
    )


def warnings_selector(name: str) -> str:
    """Return the field selector of the Warning events of one ScaledJob."""
    return f"involvedObject.kind=ScaledJob,involvedObject.name={name},type=Warning"


def _context(known: tuple[list[Object], Object], wanted: str | None) -> Object:
    contexts, active = known
    if wanted is None:
        return dict(active)
    return next(dict(context) for context in contexts if context["name"] == wanted)


def _message(error: Any) -> str:
    """Return the message of the API's Status object."""
    try:
        return str(json.loads(error.body)["message"])[:500]
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _cause(error: BaseException) -> str:
    """Return the innermost reason: urllib3 wraps it in objects whose text is a memory address."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _cause(reason)
    return str(error).rpartition(": ")[2][:200] or type(error).__name__
