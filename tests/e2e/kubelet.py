"""A minimal kubelet: takes the pods that the scheduler binds to its node and runs their containers as local processes.

`python -m tests.e2e.kubelet --node NAME --image NAME=PROGRAM …`. It supports: environment variables from literals,
ConfigMaps, Secrets and the downward API; Secret, ConfigMap, projected and emptyDir volumes, including service account
tokens (also as a kubeconfig, because nothing can be mounted at their usual path); phases, container states, exit codes
and termination messages; SIGTERM, grace period and SIGKILL; logs for the API server; node lease and status. It does
not support: images (each name maps to a program on this machine), isolation (mount paths are rewritten in arguments
and variables instead of being mounted), limits, probes, init containers, exec.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubernetes import client as api
from kubernetes import config
from kubernetes.client.exceptions import ApiException

from demo.servers import die_with_parent

Object = dict[str, Any]

POLL_SECONDS = 0.2
LEASE_SECONDS = 3.0
_CLONE_NEWUTS = 0x04000000  # linux/sched.h
_MESSAGE_BYTES = 4096  # the maximum length of a container's termination message
_TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class PullError(Exception):
    """The image has no program on this machine."""


class Node:
    """One node: registers, renews its lease, and runs its pods until `stop`."""

    def __init__(self, name: str, programs: Mapping[str, list[str]], certificate: Path, key: Path) -> None:
        self.name = name
        self.programs = programs
        self.core = api.CoreV1Api()
        self._leases = api.CoordinationV1Api()
        self.folder = Path(tempfile.mkdtemp(prefix=f"spottmee-server-{os.getpid()}-{name}-"))
        self.pods: dict[str, Pod] = {}
        self._server = _log_server(self, certificate, key)

    def serve(self) -> None:
        """Run until the process is terminated."""
        self._register()
        renewed = 0.0
        while True:
            if time.monotonic() - renewed > LEASE_SECONDS:
                self._renew()
                renewed = time.monotonic()
            with suppress(ApiException):
                self._synchronise()
            time.sleep(POLL_SECONDS)

    def _synchronise(self) -> None:
        answer = self.core.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={self.name}")
        for pod in plain(answer)["items"]:
            uid = pod["metadata"]["uid"]
            known = self.pods.get(uid)
            if known is None and pod["status"].get("phase") in {None, "Pending"}:
                known = self.pods[uid] = Pod(self, pod)
                known.start()
            if pod["metadata"].get("deletionTimestamp"):
                if known is None:  # from before this node was restarted
                    known = self.pods[uid] = Pod(self, pod)
                known.terminate(float(pod["metadata"].get("deletionGracePeriodSeconds") or 0))

    def _register(self) -> None:
        node: Any = {
            "metadata": {
                "name": self.name,
                "labels": {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"},
            },
        }
        with suppress(ApiException):
            self.core.create_node(node)

    def _renew(self) -> None:
        now = moment()
        size = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "10Gi"}
        status = {
            "capacity": size,
            "allocatable": size,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_port}},
            "nodeInfo": {"kubeletVersion": "v1.37.2"},
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now},
                *(
                    {"type": kind, "status": "False", "reason": "Enough", "lastHeartbeatTime": now}
                    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure")
                ),
            ],
        }
        with suppress(ApiException):
            self.core.patch_node_status(self.name, {"status": status})
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 10, "renewTime": moment(fraction=True)}
        lease: Any = {"metadata": {"name": self.name, "namespace": "kube-node-lease"}, "spec": spec}
        try:
            self._leases.patch_namespaced_lease(self.name, "kube-node-lease", lease)
        except ApiException:
            with suppress(ApiException):
                self._leases.create_namespaced_lease("kube-node-lease", lease)

    def stop(self) -> None:
        """Kill every process of the node."""
        for pod in self.pods.values():
            pod.kill()
        self._server.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


class Pod(threading.Thread):
    """One pod with one container, from its volumes to its final status."""

    def __init__(self, node: Node, pod: Object) -> None:
        super().__init__(daemon=True, name=pod["metadata"]["name"])
        self.node = node
        self.pod = pod
        self.folder = node.folder / pod["metadata"]["uid"]
        self.log = self.folder / "log"
        self.message = self.folder / "termination-log"
        self.ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._terminating = False
        self._lock = threading.Lock()

    @property
    def container(self) -> Object:
        container: Object = self.pod["spec"]["containers"][0]
        return container

    def run(self) -> None:
        self.folder.mkdir()
        self.log.touch()
        self.message.touch()
        try:
            command, environment = self._prepared()
            if command is None:
                return self._finish("Failed", None)
            started = moment()
            with self._lock:
                if self._terminating:
                    return self._finish("Failed", None)
                self._process = self._spawn(command, environment)
            self._report("Running", {"running": {"startedAt": started}})
            code = self._process.wait()
            self._finish("Succeeded" if code == 0 else "Failed", self._terminated(code, started))
        finally:
            self.ended.set()

    def terminate(self, grace_seconds: float) -> None:
        """Start the deletion of the pod, once, without waiting for it."""
        with self._lock:
            if self._terminating:
                return
            self._terminating = True
            process = self._process

        def end() -> None:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(grace_seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
            if self.ident is None:  # its process ended with the node, which was restarted
                self._finish("Failed", None)
            else:
                self.ended.wait()
            with suppress(ApiException):
                self.node.core.delete_namespaced_pod(*self._key(), grace_period_seconds=0)

        threading.Thread(target=end, daemon=True).start()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _prepared(self) -> tuple[list[str] | None, dict[str, str]]:
        """Wait for everything that the pod refers to; return its command and environment, None if it is deleted."""
        reported = ""
        while not self._terminating:
            try:
                return self._command(), self._environment()
            except (PullError, ApiException) as error:
                pull = isinstance(error, PullError)
                reason = "ImagePullBackOff" if pull else "ContainerCreating"
                message = str(error) if pull else str(getattr(error, "reason", ""))
                if message != reported:
                    self._report("Pending", {"waiting": {"reason": reason, "message": message}})
                    reported = message
                time.sleep(0.5)
        return None, {}

    def _command(self) -> list[str]:
        mounts = self._mounts()
        image = str(self.container["image"])
        name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
        program = self.container.get("command") or self.node.programs.get(name)
        if program is None:
            raise PullError(f"the image {image} has no program on this machine")
        return [_rewritten(part, mounts) for part in [*program, *(self.container.get("args") or [])]]

    def _environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in self.container.get("envFrom") or []:
            found |= self._source(source)
        for item in self.container.get("env") or []:
            value = self._value(item, found)
            if value is not None:
                found[item["name"]] = value
        mounts = self._mounts()
        values = {name: _rewritten(value, mounts) for name, value in found.items()}
        own = {"PATH": os.environ["PATH"], "HOSTNAME": self.name, "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        if folder := mounts.get(_TOKEN_FOLDER):
            own["KUBECONFIG"] = str(_write_kubeconfig(Path(folder)))
        return {**own, **values}

    def _value(self, item: Object, found: Mapping[str, str]) -> str | None:
        origin = item.get("valueFrom")
        if origin is None:
            return _VARIABLE.sub(lambda match: found.get(match[1], match[0]), item.get("value", ""))
        if "fieldRef" in origin:
            return self._field(origin["fieldRef"]["fieldPath"])
        kind = "secretKeyRef" if "secretKeyRef" in origin else "configMapKeyRef"
        reference = origin[kind]
        data = self._data("secret" if kind == "secretKeyRef" else "configMap", reference)
        if reference["key"] not in data:
            if reference.get("optional"):
                return None
            raise ApiException(status=404, reason=f"{kind} {reference['name']} has no key {reference['key']}")
        return data[reference["key"]].decode()

    def _source(self, source: Object) -> dict[str, str]:
        kind = "secret" if "secretRef" in source else "configMap"
        data = self._data(kind, source[f"{kind}Ref"])
        return {name: value.decode() for name, value in data.items()}

    def _field(self, path: str) -> str:
        match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
        if match:
            return str((self.pod["metadata"].get(match[1]) or {}).get(match[2], ""))
        value: Any = self.pod
        for part in path.split("."):
            value = value[part]
        return str(value)

    def _data(self, kind: str, reference: Object) -> dict[str, bytes]:
        name, namespace = reference.get("name") or reference["secretName"], self.pod["metadata"]["namespace"]
        read = self.node.core.read_namespaced_secret if kind == "secret" else self.node.core.read_namespaced_config_map
        try:
            thing = plain(read(name, namespace))
        except ApiException as error:
            if error.status == 404 and reference.get("optional"):
                return {}
            raise
        data = thing.get("data") or {}
        if kind == "secret":
            return {key: base64.b64decode(value) for key, value in data.items()}
        return {key: value.encode() for key, value in data.items()}

    def _mounts(self) -> dict[str, str]:
        """Write the volumes and return mount path → folder."""
        folders = {}
        for volume in self.pod["spec"].get("volumes") or []:
            folder = folders[volume["name"]] = self.folder / "volumes" / volume["name"]
            folder.mkdir(parents=True, exist_ok=True)
            for source in volume.get("projected", {}).get("sources", [volume]):
                for key, value in self._files(source):
                    (folder / key).write_bytes(value)
        mounts = {
            mount["mountPath"]: str(folders[mount["name"]] / mount.get("subPath", ""))
            for mount in self.container.get("volumeMounts") or []
            if mount["name"] in folders
        }
        path = self.container.get("terminationMessagePath") or "/dev/termination-log"
        return {**mounts, path: str(self.message)}

    def _files(self, source: Object) -> Iterator[tuple[str, bytes]]:
        for kind in ("secret", "configMap"):
            if kind in source:
                data = self._data(kind, source[kind])
                chosen = source[kind].get("items")
                names = {item["key"]: item["path"] for item in chosen} if chosen else {key: key for key in data}
                yield from ((path, data[key]) for key, path in names.items())
        if "serviceAccountToken" in source:
            yield source["serviceAccountToken"]["path"], self._token()

    def _token(self) -> bytes:
        account, namespace = self.pod["spec"]["serviceAccountName"], self.pod["metadata"]["namespace"]
        request: Any = {"spec": {"expirationSeconds": 3600}}
        answer = self.node.core.create_namespaced_service_account_token(account, namespace, request)
        return str(plain(answer)["status"]["token"]).encode()

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        end_with_node, name = die_with_parent(), self.name

        def setup() -> None:
            _set_hostname(name)
            end_with_node()

        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=setup,  # noqa: PLW1509 - the only way to set PDEATHSIG and a host name
            )

    def _terminated(self, code: int, started: str) -> Object:
        code = code if code >= 0 else 128 - code
        message = self.message.read_bytes()[:_MESSAGE_BYTES].decode(errors="replace")
        if not message and code and self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            message = self.log.read_bytes()[-2048:].decode(errors="replace")
        reason = "Completed" if code == 0 else "Error"
        return {"exitCode": code, "reason": reason, "message": message, "startedAt": started, "finishedAt": moment()}

    def _finish(self, phase: str, terminated: Object | None) -> None:
        state = terminated or {"exitCode": 137, "reason": "ContainerStatusUnknown"}
        self._report(phase, {"terminated": state})

    def _report(self, phase: str, state: Object) -> None:
        running = "running" in state
        status = {
            "phase": phase,
            "hostIP": "127.0.0.1",
            "startTime": moment(),
            "conditions": [
                {"type": kind, "status": "True" if running else "False"} for kind in ("Ready", "ContainersReady")
            ],
            "containerStatuses": [
                {
                    "name": self.container["name"],
                    "image": self.container["image"],
                    "imageID": "",
                    "containerID": f"process://{self._process.pid}" if self._process else "",
                    "ready": running,
                    "started": running,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        with suppress(ApiException):
            self.node.core.patch_namespaced_pod_status(*self._key(), {"status": status})

    def _key(self) -> tuple[str, str]:
        return self.name, self.pod["metadata"]["namespace"]


def _rewritten(text: str, mounts: Mapping[str, str]) -> str:
    """Replace each mount path by its folder on this machine, except /tmp, which exists here too."""
    for path, folder in mounts.items():
        if path != "/tmp":
            text = re.sub(rf"(?<![\w/]){re.escape(path)}(?![\w-])", folder.replace("\\", r"\\"), text)
    return text


def _write_kubeconfig(folder: Path) -> Path:
    """Write a kubeconfig to `folder` that uses the token there."""
    server = api.Configuration.get_default_copy().host
    cluster = {"server": server, "certificate-authority": str(folder / "ca.crt")}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "pod",
        "clusters": [{"name": "pod", "cluster": cluster}],
        "users": [{"name": "pod", "user": {"tokenFile": str(folder / "token")}}],
        "contexts": [{"name": "pod", "context": {"cluster": "pod", "user": "pod"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def _set_hostname(name: str) -> None:
    """Give the process a host name of its own, like a pod's: the worker identifies itself by it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUTS) == 0:
        encoded = name.encode()[:64]
        libc.sethostname(encoded, len(encoded))


def _log_server(node: Node, certificate: Path, key: Path) -> ThreadingHTTPServer:
    """Serve the logs like a kubelet: GET /containerLogs/NAMESPACE/POD/CONTAINER."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            _, _, namespace, name, *_ = path.split("/")
            found = [pod for pod in node.pods.values() if pod._key() == (name, namespace)]
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            if found:
                follow(found[-1], self.wfile.write, lasting="follow=true" in query)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def follow(pod: Pod, write: Callable[[bytes], object], *, lasting: bool) -> None:
    """Write the log of a pod; if `lasting`, follow it until the pod ends."""
    with pod.log.open("rb") as log, suppress(OSError):
        while True:
            ended = pod.ended.is_set()
            if data := log.read():
                write(data)
            elif ended or not lasting:
                return
            else:
                time.sleep(0.05)


def plain(answer: Any) -> Object:
    """Return a response of the client as plain data, with the field names of YAML."""
    found: Object = api.ApiClient().sanitize_for_serialization(answer)
    return found


def moment(*, fraction: bool = False) -> str:
    now = datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if fraction else "%Y-%m-%dT%H:%M:%SZ")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--node", required=True)
    parser.add_argument("--image", action="append", default=[], metavar="NAME=PROGRAM")
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    args = parser.parse_args()
    config.load_kube_config()
    programs = {name: [program] for name, _, program in (item.partition("=") for item in args.image)}
    node = Node(args.node, programs, args.certificate, args.key)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        node.serve()
    finally:
        node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
