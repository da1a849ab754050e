"""READY of the ScaledJobs, read from recorded answers of a real API server (tests/e2e runs `helm test` against one)."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from runner.cluster.api import NoClusterError
from runner.cluster.readiness import check, open_reader
from runner.cluster.service_account import ServiceAccountReader
from runner.errors import CheckFailedError, ClusterError
from tests.support.recorded_api import RecordedApi, kubeconfig
from tests.support.redis_topologies import Relay, server_context

if TYPE_CHECKING:
    from pathlib import Path

    from runner.cluster.readiness import Reader
    from tests.support.run_tools import Service

NAMES = ("party-compare", "party-process")


@contextmanager
def _readers(scene: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Reader]]:
    """Yield both readers of one recording: a pod's, and that of people with a kubeconfig."""
    with RecordedApi(scene) as api, kubeconfig(api.port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        readers: list[Reader] = [ServiceAccountReader("127.0.0.1", api.port, "recorded", "token", None)]
        readers.append(open_reader(context=None, namespace="recorded"))
        yield readers
        assert api.unknown == []


def _results(scene: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return what both readers report about named ScaledJobs and about those of a release."""
    message = set()
    with _readers(scene, monkeypatch) as readers:
        for reader in readers:
            for names in (NAMES, ()):
                try:
                    message.add(check(reader, names=names, release=None if names else "party"))
                except CheckFailedError as error:
                    message.add(error.detail)
    return message


def test_scaled_jobs_that_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _results("scaled-jobs-ready", monkeypatch) == {"party-compare READY, party-process READY"}


def test_a_scaled_job_that_is_not_ready_is_reported_with_kedas_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _results("scaled-job-not-ready", monkeypatch)
    assert found
    for message in found:
        # Its condition alternates between two reasons, neither of which has the resolver's answer.
        assert re.match(
            r"party-process is not READY, so KEDA starts no Job for it \((ScaledJobCheckFailed|TriggerError): ", message
        )
        assert "lookup redis" in message
        assert "no such host" in message
        assert "KEDA's operator must reach Redis at redis:6379" in message
        assert "kubectl --namespace recorded describe scaledjob party-process" in message
        assert "party-compare" not in message


def test_a_missing_operator_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = _results("scaled-jobs-unseen", monkeypatch)
    for name in NAMES:
        assert f"{name} is not READY, because KEDA has not reconciled it: check that its operator is running" in message


def test_a_missing_scaled_job_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        _readers("without-keda", monkeypatch),
        pytest.raises(CheckFailedError, match="KEDA or the ScaledJob is missing"),
    ):
        check(open_reader(context=None, namespace="default"))


def test_a_condition_from_before_a_change_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """READY stays in the status until KEDA has looked at the changed ScaledJob; a pause of the check lets it look."""
    with RecordedApi("scaled-jobs-ready") as api, RecordedApi("scaled-job-not-ready") as later:
        before = ServiceAccountReader("127.0.0.1", api.port, "recorded", "token", None)
        after = ServiceAccountReader("127.0.0.1", later.port, "recorded", "token", None)
        readers = iter([before])

        class Changing:
            namespace = "recorded"

            def scaled_job(self, name: str) -> dict[str, Any]:
                reader = next(readers, None)
                found = (reader or after).scaled_job(name)
                if reader:
                    found["metadata"]["managedFields"] = [{"manager": "helm", "time": _now()}]
                return found

            scaled_jobs, warnings, close = after.scaled_jobs, after.warnings, after.close

        waited: list[float] = []
        with pytest.raises(CheckFailedError, match="party-process is not READY"):
            check(Changing(), names=["party-process"], sleep=waited.append)
        assert len(waited) == 1


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_doctor_checks_the_cluster_if_one_is_selected(service: Service) -> None:
    with RecordedApi("scaled-jobs-ready") as api, kubeconfig(api.port) as config:
        fine = service.command("doctor", "--json", "-n", "recorded", "--release", "party", KUBECONFIG=str(config))
    assert fine.code == 0, fine.errors
    checks = {item["name"]: item for item in json.loads(fine.output)}
    assert checks["ScaledJobs"] == {
        "name": "ScaledJobs",
        "ok": True,
        "message": "party-compare READY, party-process READY",
    }
    with RecordedApi("scaled-job-not-ready") as api, kubeconfig(api.port) as config:
        ended = service.command("doctor", "-n", "recorded", "--scaled-job", "party-process", KUBECONFIG=str(config))
    assert ended.code == 5
    (line,) = (line for line in ended.output.splitlines() if line.startswith("FAIL"))
    assert "ScaledJobs" in line
    assert "no such host" in line
    with RecordedApi("scaled-jobs-ready") as api, kubeconfig(api.port) as config:
        here = {"KUBECONFIG": str(config), "REDIS_URL": "", "DATABASE_URL": ""}
        outside = service.command("doctor", "-n", "recorded", "--release", "party", **here)
    assert outside.code == 0, outside.errors
    assert "REDIS_URL and DATABASE_URL are not set" in outside.output
    assert "party-compare READY" in outside.output
    silent = service.command("doctor", "--json")
    assert "ScaledJobs" not in {item["name"] for item in json.loads(silent.output)}


class TestServiceAccount:
    """What a pod has: a mounted token, and the address of the API server in its environment."""

    def test_the_service_account_reader_uses_tls_with_the_mounted_authority(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        with RecordedApi("scaled-jobs-ready") as api, Relay(lambda: api.port, server_context(authority)) as relay:
            self._mount(tmp_path, monkeypatch, authority.cert_pem.bytes(), relay.port)
            reader = ServiceAccountReader.open(folder=tmp_path)
            assert reader.namespace == "recorded"
            assert check(reader, names=NAMES) == "party-compare READY, party-process READY"
            (tmp_path / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
            with pytest.raises(ClusterError, match=r"cannot be reached from this pod \(SSLCertVerificationError\)"):
                check(ServiceAccountReader.open(folder=tmp_path), names=NAMES)

    def test_without_a_token_or_outside_a_pod_there_is_no_service_account_reader(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self._mount(tmp_path, monkeypatch, trustme.CA().cert_pem.bytes(), 1)
        (tmp_path / "token").unlink()
        with pytest.raises(NoClusterError, match="this pod has no service account token mounted"):
            ServiceAccountReader.open(folder=tmp_path)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
        with pytest.raises(NoClusterError, match="this process is not in a pod"):
            ServiceAccountReader.open(folder=tmp_path)

    def test_a_missing_right_and_an_unreachable_server_are_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with (
            _readers("forbidden", monkeypatch) as (reader, _),
            pytest.raises(ClusterError, match=r"`list scaledjobs\.keda\.sh` is forbidden in namespace recorded"),
        ):
            reader.scaled_jobs({"app.kubernetes.io/name": "spottmee-worker"})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with pytest.raises(ClusterError, match=r"127\.0\.0\.1:\d+ cannot be reached .* no NetworkPolicy forbids"):
            ServiceAccountReader("127.0.0.1", port, "recorded", "token", None).scaled_job("party-process")

    @staticmethod
    def _mount(folder: Path, monkeypatch: pytest.MonkeyPatch, authority: bytes, port: int) -> None:
        (folder / "token").write_text("token\n")
        (folder / "namespace").write_text("recorded")
        (folder / "ca.crt").write_bytes(authority)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
