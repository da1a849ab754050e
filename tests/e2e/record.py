"""Records the responses of a real API server to `debug` and `status`, for the tests that run without one.

`python -m tests.e2e.record` starts the control plane, installs the chart, runs each scene through a proxy, and writes
tests/support/recordings/SCENE.json. `tests/support/recorded_api.py` plays them back.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from demo import api
from demo.servers import EmbeddedPostgres, EmbeddedRedis
from runner.cluster.readiness import check, open_reader
from runner.cluster.service_account import ServiceAccountReader
from runner.errors import CheckFailedError
from runner.store import schema
from runner.store.database import connect
from tests.e2e.build import CRDS, KEDA_VERSION, KUBERNETES_VERSION
from tests.e2e.controlplane import TOKEN, ControlPlane
from tests.e2e.site import CHART, Site, opened, wait
from tests.support.recorded_api import FOLDER, Exchange, kubeconfig

NAMESPACE = "recorded"
ENVIRONMENT = {"REDIS_URL": "", "DATABASE_URL": ""}


class Recorder:
    """A proxy in front of an API server that records `exchanges`."""

    def __init__(self, url: str, certificate: Path, token: str) -> None:
        self.exchanges: list[Exchange] = []
        context = ssl.create_default_context(cafile=certificate)
        exchanges = self.exchanges

        class Handler(BaseHTTPRequestHandler):
            def _forward(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else None
                request = urllib.request.Request(f"{url}{self.path}", data=body, method=self.command)
                request.add_header("Authorization", f"Bearer {token}")
                request.add_header("Content-Type", "application/json")
                request.add_header("Accept", self.headers.get("Accept", "*/*"))
                try:
                    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
                        status, data = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, data = error.code, error.read()
                exchanges.append(Exchange(self.command, self.path, status, _tidy(data.decode())))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _forward  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def write(self, scene: str) -> None:
        """Write the exchanges recorded since the last call."""
        document = {
            "from": f"Kubernetes {KUBERNETES_VERSION}, KEDA {KEDA_VERSION}; python -m tests.e2e.record",
            "exchanges": [exchange.document() for exchange in _without_repetitions(self.exchanges)],
        }
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{scene}.json"
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(self.exchanges)} exchanges, {path.stat().st_size} bytes")
        self.exchanges.clear()


def _without_repetitions(exchanges: list[Exchange]) -> Iterator[Exchange]:
    """Omit repeated responses to a poll: playback repeats the last one anyway."""
    last: dict[tuple[str, str], str] = {}
    for exchange in exchanges:
        if last.get(exchange.key) != exchange.answer:
            yield exchange
        last[exchange.key] = exchange.answer


def _tidy(text: str) -> str:
    """Remove managedFields, which are a third of every object."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items() if key != "managedFields"}
        return [walk(item) for item in value] if isinstance(value, list) else value

    try:
        return json.dumps(walk(json.loads(text)))
    except ValueError:
        return text


@contextmanager
def _installed() -> Iterator[tuple[Site, str]]:
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        postgres = stack.enter_context(EmbeddedPostgres())
        with connect(postgres.url, seconds=5, application_name="record") as connection:
            api.create_table(connection)
            schema.migrate(connection)
            connection.execute("INSERT INTO \"Photo\" (id) VALUES ('there')")
        site = stack.enter_context(opened())
        site.kubectl("create", "namespace", NAMESPACE)
        values = {
            "image": {"repository": "spottmee-worker", "tag": "e2e"},
            "redis": {"host": "127.0.0.1", "port": redis.port},
            "database": {"url": postgres.url},
            "checkCluster": False,
        }
        site.helm("install", "party", str(CHART), "--namespace", NAMESPACE, "--wait", values=values)
        yield site, redis.url


def main() -> int:
    """Record every scene."""
    with _installed() as (site, _), ExitStack() as stack:
        plane = site.control_plane
        assert plane is not None

        recorder = Recorder(plane.url, plane.certificate, TOKEN)
        worker = _proxied(site, recorder, stack)
        there = ("debug", "--photo", "there", "-n", NAMESPACE)
        scenes: dict[str, Callable[[], int]] = {
            "debug-succeeds": lambda: worker("debug", "--photo", "gone", "--url", "http://x/y.jpg", "-n", NAMESPACE),
            "debug-is-buried": lambda: worker(*there, "--url", "file:///x"),
            "no-template": lambda: worker("debug", "--photo", "x", "--url", "http://x/y.jpg", "-n", "default"),
        }
        expected = {"debug-succeeds": 5, "debug-is-buried": 5, "no-template": 6}
        for scene, play in scenes.items():
            code = play()
            assert code == expected[scene], (scene, code)
            recorder.write(scene)
        worker(*there, "--url", "file:///x", "--keep")
        wait(lambda: len(_conditions(site)) == 2, "KEDA's conditions")
        recorder.exchanges.clear()
        assert worker("status", "-n", NAMESPACE, "--release", "party") == 2
        recorder.write("status")
        site.kubectl("create", "serviceaccount", "helper", "--namespace", NAMESPACE)
        token = site.kubectl("create", "token", "helper", "--namespace", NAMESPACE).strip()
        helper = Recorder(plane.url, plane.certificate, token)
        as_helper = _proxied(site, helper, stack)
        assert as_helper("status", "-n", NAMESPACE) == 2
        assert as_helper("debug", "--photo", "x", "--url", "http://x/y.jpg", "-n", NAMESPACE) == 6
        helper.write("forbidden")
        stranger = Recorder(plane.url, plane.certificate, "nobody")
        assert _proxied(site, stranger, stack)("debug", "--photo", "x", "--url", "http://x", "-n", NAMESPACE) == 6
        stranger.write("unauthorized")
        record_readiness(site, recorder)
        site.helm("upgrade", "party", str(CHART), "--namespace", NAMESPACE, "--reuse-values", values=_unpullable())
        assert worker(*there, "--url", "file:///x", "--timeout", "6") == 6
        recorder.write("image-cannot-be-pulled")
    with ControlPlane() as bare, ExitStack() as stack:
        recorder = Recorder(bare.url, bare.certificate, TOKEN)
        site = Site(bare.kubeconfig, "")
        assert _proxied(site, recorder, stack)("status", "-n", "default") == 2
        recorder.write("without-keda")
        record_unseen(site, recorder)
    return 0


def record_readiness(site: Site, recorder: Recorder) -> None:
    """Record what `doctor` reads about ScaledJobs that are READY, and about one whose Redis KEDA cannot resolve."""
    assert _settled(recorder) == "party-compare READY, party-process READY"
    recorder.write("scaled-jobs-ready")
    patch = [{"op": "replace", "path": "/spec/triggers/0/metadata/address", "value": "redis:6379"}]
    where = ("--namespace", NAMESPACE, "--type", "json", "--patch", json.dumps(patch))
    site.kubectl("patch", "scaledjob", "party-process", *where)
    assert "no such host" in _settled(recorder)
    recorder.write("scaled-job-not-ready")


def record_unseen(site: Site, recorder: Recorder) -> None:
    """Record what `doctor` reads about ScaledJobs that no operator has seen."""
    site.kubectl("create", "--filename", str(CRDS))
    wait(lambda: "scaledjobs" in site.kubectl("api-resources", "--api-group=keda.sh"), "KEDA's CRDs")
    site.kubectl("create", "namespace", NAMESPACE)
    only = ("--show-only", "templates/scaledjobs.yaml")
    rendered = site.helm("template", "party", str(CHART), "--namespace", NAMESPACE, *only)
    site.kubectl("create", "--namespace", NAMESPACE, "--filename", "-", text=rendered)
    assert "KEDA has not reconciled it" in _settled(recorder)
    recorder.write("scaled-jobs-unseen")


def _settled(recorder: Recorder) -> str:
    """Wait until KEDA's status is settled, and then record reading it; return the result."""
    _read(recorder)
    recorder.exchanges.clear()
    return _read(recorder)


def _read(recorder: Recorder) -> str:
    """Run the check with a pod's service account and with a user's kubeconfig; return the last result."""
    port = recorder.server.server_port
    readers = ServiceAccountReader("127.0.0.1", port, NAMESPACE, "", None), None
    result = ""
    for reader in readers:
        with kubeconfig(port) as config, pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(config))
            opened_reader = reader or open_reader(context=None, namespace=NAMESPACE)
            for names in (["party-compare", "party-process"], []):
                try:
                    result = check(opened_reader, names=names, release=None if names else "party")
                except CheckFailedError as error:
                    result = error.detail
    return result


def _unpullable() -> dict[str, Any]:
    return {"image": {"repository": "registry.invalid/nothing"}, "migration": {"mode": "none"}}


def _conditions(site: Site) -> list[object]:
    found = [item.get("status", {}).get("conditions") for item in site.get("scaledjobs", "--namespace", NAMESPACE)]
    return [conditions for conditions in found if conditions]


def _proxied(site: Site, recorder: Recorder, stack: ExitStack) -> Callable[..., int]:
    config = stack.enter_context(kubeconfig(recorder.server.server_port))
    stack.callback(recorder.server.shutdown)

    def run(*arguments: str) -> int:
        done = site.worker(*arguments, **ENVIRONMENT, KUBECONFIG=str(config))
        print(
            " ".join(arguments), "→", done.returncode, done.stdout[-300:], done.stderr[-300:], sep="\n", file=sys.stderr
        )
        return done.returncode

    return run


if __name__ == "__main__":
    sys.exit(main())
