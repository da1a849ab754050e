"""A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, and KEDA.

Nodes are processes of `kubelet.py`. Everything ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.servers import die_with_parent, free_port
from tests.e2e.build import CONTROL_PLANE, KEDA

READY_SECONDS = 120.0
TOKEN = "e2e-administrator"

# The controllers that Jobs, their pods and a chart need; the others would only use CPU time.
CONTROLLERS = (
    "job-controller", "cronjob-controller", "garbage-collector-controller", "namespace-controller",
    "serviceaccount-controller", "serviceaccount-token-controller", "root-ca-certificate-publisher-controller",
    "ttl-after-finished-controller", "pod-garbage-collector-controller", "node-lifecycle-controller",
    "taint-eviction-controller", "disruption-controller",
)  # fmt: skip


class Daemon:
    """One process that runs until it is stopped; its output goes to a log file."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - the only way to set PDEATHSIG
            )

    def check(self) -> None:
        """Raise `RuntimeError` if the process has ended."""
        if self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.name} exited with code {self.process.returncode}:\n{tail}")

    def stop(self) -> None:
        """Stop the process if it is running; kill it if it does not stop in time."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the process at once."""
        self.process.kill()
        self.process.wait()


class ControlPlane:
    """Runs for the duration of a `with` block; `kubeconfig` has administrator rights, and KEDA uses it too."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"spottmee-server-{os.getpid()}-e2e-"))
        self.kubeconfig = self.folder / "kubeconfig"
        self.certificate = self.folder / "certificates" / "apiserver.crt"
        self.key = self.folder / "certificates" / "apiserver.key"
        self.url = ""
        self.daemons: dict[str, Daemon] = {}
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Daemon:
        """Start another process, which stops with the control plane."""
        daemon = self.daemons[name] = Daemon(name, command, self.folder, environment)
        self._stack.callback(daemon.stop)
        return daemon

    def start_keda(self) -> Daemon:
        """Start KEDA's operator and wait until it is ready; its CRDs must exist."""
        certificates = self.folder / "keda"  # for its metrics service, which nothing uses here
        certificates.mkdir()
        for source, name in ((self.certificate, "ca.crt"), (self.certificate, "tls.crt"), (self.key, "tls.key")):
            shutil.copyfile(source, certificates / name)
        probe = f"127.0.0.1:{free_port()}"
        flags = [
            "--metrics-bind-address=0", f"--health-probe-bind-address={probe}",
            f"--metrics-service-bind-address=127.0.0.1:{free_port()}", f"--cert-dir={certificates}",
            "--enable-webhook-patching=false", "--enable-apiservice-patching=false",
        ]  # fmt: skip
        environment = {
            "KUBECONFIG": str(self.kubeconfig),
            "WATCH_NAMESPACE": "",
            "POD_NAMESPACE": "default",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": "default",
        }
        daemon = self.start("keda", [str(KEDA), *flags], environment)
        self._wait(lambda: _is_ok(urllib.request.Request(f"http://{probe}/readyz")))
        return daemon

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        etcd, peer, port = (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", free_port())
        self.url = f"https://127.0.0.1:{port}"
        key = self.folder / "accounts.key"
        key.write_bytes(subprocess.check_output([CONTROL_PLANE, "key"]))
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f'{TOKEN},administrator,1,"system:masters"\n')
        self.start("etcd", _etcd(self.folder, etcd, peer))
        self.start("apiserver", _apiserver(self.folder, etcd, port, key, tokens))
        self._wait(self._answers)
        self._write_kubeconfig()
        own = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
        self.start(
            "controller-manager",
            [
                str(CONTROL_PLANE), "kube-controller-manager", *own,
                f"--controllers={','.join(CONTROLLERS)}",
                f"--service-account-private-key-file={key}",
                f"--root-ca-file={self.certificate}",
                # Detect a lost node within seconds.
                "--node-monitor-period=1s", "--node-monitor-grace-period=12s",
            ],
        )  # fmt: skip
        self.start("scheduler", [str(CONTROL_PLANE), "kube-scheduler", *own])

    def _write_kubeconfig(self) -> None:
        user, cluster = {"token": TOKEN}, {"server": self.url, "certificate-authority": str(self.certificate)}
        context = {"cluster": "e2e", "user": "administrator", "namespace": "default"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": "administrator", "user": user}],
            "contexts": [{"name": "e2e", "context": context}],
        }
        self.kubeconfig.write_text(json.dumps(document))  # JSON is YAML

    def _answers(self) -> bool:
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
        return _is_ok(request, self.certificate)

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            for daemon in self.daemons.values():
                daemon.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the control plane was not ready after {READY_SECONDS:g} s")
            time.sleep(0.1)


def _is_ok(request: urllib.request.Request, certificate: Path | None = None) -> bool:
    try:
        context = ssl.create_default_context(cafile=certificate) if certificate else None
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:  # not listening yet, or the certificate is only partly written
        return False


def _etcd(folder: Path, client: str, peer: str) -> list[str]:
    return [
        str(CONTROL_PLANE), "etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
    ]  # fmt: skip


def _apiserver(folder: Path, etcd: str, port: int, key: Path, tokens: Path) -> list[str]:
    return [
        str(CONTROL_PLANE), "kube-apiserver",
        f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={port}",
        f"--cert-dir={folder}/certificates", "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
        f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
        "--kubelet-preferred-address-types=InternalIP",
        "--default-not-ready-toleration-seconds=3", "--default-unreachable-toleration-seconds=3",
    ]  # fmt: skip
