"""`debug` and `status` against recorded answers of a real API server (tests/e2e runs them against the server)."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from runner.cli import main
from runner.cluster.api import COMPONENT_LABEL, RELEASE_LABEL
from runner.cluster.service_account import ServiceAccountReader
from runner.errors import ClusterError
from tests.support.answering import AnsweringServer
from tests.support.recorded_api import RecordedApi, kubeconfig

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.run_tools import Service

JOB = ("debug", "--photo", "gone", "--url", "http://x/y.jpg", "-n", "recorded")


@contextmanager
def _scene(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedApi]:
    with RecordedApi(name) as api, kubeconfig(api.port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield api
        assert api.unknown == []


def _cron_job(*, name: object, **container: object) -> dict[str, Any]:
    pod = {"spec": {"containers": [{"name": "runner", **container}]}}
    return {"kind": "CronJob", "metadata": {"name": name}, "spec": {"jobTemplate": {"spec": {"template": pod}}}}


def _bodies(api: RecordedApi, kind: str) -> list[Any]:
    return [body for _, _, body in api.requests if body and body.get("kind") == kind]


def test_a_debug_run_from_template_to_removal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("debug-succeeds", monkeypatch) as api:
        assert main([*JOB, "--json"]) == 0
        (job,), (secret,) = _bodies(api, "Job"), _bodies(api, "Secret")
        deleted = [path for method, path, _ in api.requests if method == "DELETE"]
    printed = capsys.readouterr()
    outcome = json.loads(printed.out)
    assert (outcome["outcome"], outcome["error"]["code"]) == ("succeeded", "photo_gone")
    name = job["metadata"]["name"]
    assert outcome["job"] == name
    assert [path.rpartition("/")[2].partition("?")[0] for path in deleted] == [f"{name}-payload-0", name]
    payload = base64.b64decode(secret["data"]["payload-000"])
    assert json.loads(payload) == {"id": "gone", "imageUrl": "http://x/y.jpg"}
    assert secret["metadata"]["ownerReferences"][0]["name"] == name
    assert "x/y.jpg" not in json.dumps(job), "the Job does not hold the payload"
    assert '"outcome": "succeeded"' in printed.err, "the log is shown"


def test_the_job_is_the_template_with_one_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    with _scene("debug-succeeds", monkeypatch) as api:
        main(list(JOB))
        (job,) = _bodies(api, "Job")
    spec, container = job["spec"], job["spec"]["template"]["spec"]["containers"][0]
    assert (spec["backoffLimit"], container["args"]) == (0, ["run"])
    assert {"name": "RUNNER_JOB", "value": "/var/run/spottmee-job"} in container["env"]
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "debug"
    assert job["metadata"]["annotations"] == {"cronjob.kubernetes.io/instantiate": "manual"}
    assert job["metadata"]["ownerReferences"][0]["kind"] == "CronJob"
    assert len(job["metadata"]["name"]) <= 63
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["ttlSecondsAfterFinished"] > 0


def test_a_debug_run_reports_a_dead_lettered_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("debug-is-buried", monkeypatch):
        assert main(["debug", "--photo", "there", "--url", "file:///x", "-n", "recorded"]) == 5
    assert capsys.readouterr().out.startswith("dead_lettered: The image URL is not one that this runner may fetch")


def test_keep_keeps_the_job_but_never_the_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    with _scene("debug-succeeds", monkeypatch) as api:
        main([*JOB, "--keep"])
        deleted = [path for method, path, _ in api.requests if method == "DELETE"]
    assert len(deleted) == 1
    assert "/secrets/" in deleted[0]


def test_a_large_payload_is_spread_over_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.cluster import debug

    monkeypatch.setattr(debug, "PART_BYTES", 20)
    with RecordedApi("debug-succeeds") as api, kubeconfig(api.port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        main([*JOB, "--keep"])
        (job,), secrets = _bodies(api, "Job"), _bodies(api, "Secret")
    parts = [base64.b64decode(value) for secret in secrets for value in secret["data"].values()]
    assert json.loads(b"".join(parts)) == {"id": "gone", "imageUrl": "http://x/y.jpg"}
    assert len(parts) > 1
    sources = job["spec"]["template"]["spec"]["volumes"][-1]["projected"]["sources"]
    assert [source["secret"]["name"] for source in sources] == [secret["metadata"]["name"] for secret in secrets]
    assert sorted(key for secret in secrets for key in secret["data"]) == [
        f"payload-{n:03d}" for n in range(len(parts))
    ]


def test_waiting_for_an_image_ends_in_time_and_cleans_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("image-cannot-be-pulled", monkeypatch) as api:
        arguments = ["debug", "--photo", "there", "--url", "file:///x", "-n", "recorded", "--timeout", "1"]
        assert main(arguments) == 6
        assert sum(method == "DELETE" for method, _, _ in api.requests) == 2
    errors = capsys.readouterr().err
    assert errors.count("waiting: ImagePullBackOff") == 1
    assert "--timeout" in errors


@pytest.mark.parametrize(
    ("scene", "namespace", "sentence"),
    [
        ("no-template", "default", "there is no CronJob for debug runs in namespace default"),
        ("unauthorized", "recorded", "rejects the credentials of context recorded: log in again"),
    ],
)
def test_unsupported_arguments_are_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scene: str, namespace: str, sentence: str
) -> None:
    with _scene(scene, monkeypatch):
        assert main(["debug", "--photo", "x", "--url", "http://x", "-n", namespace]) == 6
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_forbidden_request_names_the_missing_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("forbidden", monkeypatch):
        assert main(["debug", "--photo", "x", "--url", "http://x", "-n", "recorded"]) == 6
        assert "kubectl auth can-i list cronjobs -n recorded" in capsys.readouterr().err
        assert main(["status", "-n", "recorded", "--json"]) == 6
    document = json.loads(capsys.readouterr().out)
    assert document["cluster"] is None
    assert "`list jobs` is forbidden" in document["cluster_error"]["message"]


def test_status_shows_the_objects_of_a_release(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], redis_url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    with _scene("status", monkeypatch):
        assert main(["status", "-n", "recorded", "--release", "party", "--json"]) == 0
        cluster = json.loads(capsys.readouterr().out)["cluster"]
        assert main(["status", "-n", "recorded", "--release", "party"]) == 0
    assert {job["name"] for job in cluster["scaled_jobs"]} == {"party-process", "party-compare"}
    assert all(job["conditions"]["Ready"] == "True" for job in cluster["scaled_jobs"])
    (job,), (pod,) = cluster["jobs"], cluster["pods"]
    assert (job["phase"], job["component"], job["release"]) == ("Complete", "debug", "party")
    assert (pod["phase"], pod["reason"], pod["exit_code"], pod["job"]) == ("Succeeded", "Completed", 0, job["name"])
    assert pod["summary"]["dead_lettered"] == 1
    text = capsys.readouterr().out
    assert "namespace recorded of recorded" in text
    assert "party-process" in text


def test_status_of_a_cluster_needs_no_redis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("status", monkeypatch):
        assert main(["status", "-n", "recorded", "--release", "party"]) == 0
        text = capsys.readouterr().out
        monkeypatch.setenv("RUNNER_CONNECT_TIMEOUT_SECONDS", "0.1")
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        assert main(["status", "-n", "recorded", "--release", "party"]) == 75
    assert "REDIS_URL is missing" in text
    assert "party-process" in text


def test_status_without_keda_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], redis_url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    with _scene("without-keda", monkeypatch):
        assert main(["status", "-n", "default"]) == 0
    assert "KEDA is not installed in this cluster" in capsys.readouterr().out


def test_an_unreachable_api_server_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with kubeconfig(port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        assert main(list(JOB)) == 6
    error = capsys.readouterr().err
    assert f"http://127.0.0.1:{port} (context recorded) cannot be reached" in error
    assert "object at 0x" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("missing", ["kubernetes", "yaml"])
@pytest.mark.parametrize("command", [JOB, ("status", "--namespace", "default")], ids=["debug", "status"])
def test_without_the_package_the_install_command_is_given(
    service: Service, tmp_path: Path, command: Sequence[str], missing: str
) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name='{missing}')", "utf-8")
    process = service.start(*command, PYTHONPATH=str(tmp_path))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "pip install kubernetes" in output + errors
    assert "Traceback" not in errors
    assert ("process" in output) == (command[0] == "status")  # the lists in Redis are still shown


def test_an_unknown_context_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with kubeconfig(1) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        assert main([*JOB, "--context", "other"]) == 6
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        assert main(list(JOB)) == 6
    errors = capsys.readouterr().err.splitlines()
    assert "context other" in errors[0]
    assert "no usable kubeconfig" in errors[1]


@pytest.mark.parametrize(
    "template",
    [
        {"kind": "CronJob"},
        {"kind": "CronJob", "metadata": None, "spec": 3},
        {"kind": "CronJob", "metadata": [1]},
        {"kind": "CronJob", "metadata": {"name": 5, "labels": [1]}, "spec": {"jobTemplate": 5}},
        _cron_job(name=5),
        _cron_job(name="x", env=3),
        _cron_job(name="x", env=[{"value": "1"}]),
        _cron_job(name="x", env=[3]),
        _cron_job(name="x", volumeMounts=3),
    ],
)
def test_a_template_with_a_wrong_shape_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, template: object
) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(json.dumps(template), encoding="utf-8")
    assert main([*JOB, "--dry-run", "--template", str(file)]) == 6
    error = capsys.readouterr().err
    assert "the template is not a CronJob with a container" in error
    assert error.count("\n") == 1


def test_an_invalid_payload_is_refused_before_anything_is_created(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", "--job", '{"id": 5}']) == 5
    assert capsys.readouterr().err == (
        "spottmee-worker: The command did not succeed: The payload is not a valid job: id must be a non-empty string\n"
    )


def test_a_lost_log_does_not_change_the_outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RecordedApi("debug-succeeds") as api, kubeconfig(api.port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        api.forget("/log")
        assert main([*JOB, "--json"]) == 0
    printed = capsys.readouterr()
    assert "the log could not be followed further: " in printed.err
    assert json.loads(printed.out)["summary"]["claimed"] == 1


@pytest.mark.parametrize("moment", ["created in namespace", "waiting: "])
def test_an_interruption_at_any_moment_removes_what_was_created(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    from runner.cluster import api, debug, template_job

    def say(line: str) -> None:
        if moment in line:
            raise KeyboardInterrupt

    with _scene("image-cannot-be-pulled", monkeypatch) as server:
        cluster = api.Cluster.connect(namespace="recorded")
        template = template_job.find_template(cluster, None)
        run = debug.DebugRun(cluster, template, b"{}", keep=False, say=say)

        def play() -> None:
            with run:
                run.start()
                run.follow(60, show=say)

        with pytest.raises(KeyboardInterrupt):
            play()
        cluster.close()
        deleted = [
            path.rpartition("/")[2].partition("?")[0] for method, path, _ in server.requests if method == "DELETE"
        ]
    assert deleted == [f"{run.name}-payload-0", run.name]


def test_objects_that_cannot_be_removed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RecordedApi("debug-succeeds") as api, kubeconfig(api.port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        api.forget("propagationPolicy")
        assert main(list(JOB)) == 0
        (job,) = _bodies(api, "Job")
    assert f"kubectl --namespace recorded delete job {job['metadata']['name']}" in capsys.readouterr().err


def test_exec_runs_a_command_as_a_job_and_prints_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("debug-succeeds", monkeypatch) as api:
        assert main(["exec", "-n", "recorded", "--", "dead", "list", "--json"]) == 0
        (job,) = _bodies(api, "Job")
        assert not _bodies(api, "Secret")
        deleted = [path for method, path, _ in api.requests if method == "DELETE"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ["dead", "list", "--json"]
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": "128Mi"}
    assert "RUNNER_JOB" not in {item["name"] for item in container["env"]}
    assert [path.rpartition("/")[2].partition("?")[0] for path in deleted] == [job["metadata"]["name"]]
    assert '"outcome": "succeeded"' in capsys.readouterr().out, "the log of the pod is the output"


def test_exec_says_why_its_pod_did_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _scene("image-cannot-be-pulled", monkeypatch) as api:
        assert main(["exec", "-n", "recorded", "--timeout", "1", "--", "dead", "list"]) == 6
        assert any(method == "DELETE" for method, _, _ in api.requests)
    printed = capsys.readouterr()
    assert re.search("waiting: (ErrImagePull|ImagePullBackOff)", printed.err), printed.err
    assert printed.out == ""


@pytest.mark.parametrize("command", ["ls", "exec"])
def test_exec_rejects_unknown_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", "--", command, "-l"]) == 2
    assert f"'{command}' is not a command that can run in the cluster" in capsys.readouterr().err


def test_exec_shows_its_job_without_a_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cronjob.yaml").write_text(yaml.safe_dump(_cron_job(name="party-debug")))
    assert main(["exec", "--dry-run", "--template", str(tmp_path / "cronjob.yaml"), "--", "doctor"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["doctor"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html>Sign in</html>", "text/html"),
        (b"<html>Sign in</html>", "application/json"),
        (b"\xff\xfe", "text/plain; charset=nothing"),
        (b"", "application/json"),
        (b"null", "application/json"),
        (b"[]", "application/json"),
        (b'"items"', "application/json"),
        (b'{"status": "success", "data": {}}', "application/json"),
        (b'{"items": 5}', "application/json"),
        (b'{"items": [{"metadata": {}}], "metadata": []}', "application/json"),
    ],
)
def test_a_server_that_is_not_kubernetes_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: bytes, content_type: str
) -> None:
    with AnsweringServer(lambda *_: (200, content_type, body)) as server, kubeconfig(server.port) as config:
        monkeypatch.setenv("KUBECONFIG", str(config))
        for command in (
            ("status",),
            ("exec", "--", "dead", "list"),
            JOB[:-2],
            ("doctor",),
            ("doctor", "--scaled-job", "party-process"),
        ):
            assert main([command[0], "-n", "recorded", *command[1:]]) == 6, command
            printed = capsys.readouterr()
            shown = printed.out + printed.err
            assert f"127.0.0.1:{server.port} (context recorded) answered" in shown, command
            assert "as no Kubernetes API does" in shown
            assert "Sign in" not in shown
        reader = ServiceAccountReader("127.0.0.1", server.port, "recorded", "token", None)
        for read in (lambda: reader.scaled_job("party-process"), lambda: reader.scaled_jobs({})):
            with pytest.raises(ClusterError, match=f"127.0.0.1:{server.port} answered .* as no Kubernetes API does"):
                read()


def _labelled(release: str, component: str = "debug") -> dict[str, Any]:
    document = _cron_job(name=f"{release}-{component}")
    document["metadata"]["labels"] = {RELEASE_LABEL: release, COMPONENT_LABEL: component}
    return document


def _exec_with_template(documents: Sequence[object], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(yaml.safe_dump_all(documents)))
    return main(["exec", *arguments, "--dry-run", "--template", "-", "--", "doctor"])


@pytest.mark.parametrize(
    ("releases", "arguments", "chosen"),
    [
        (("one", "two"), ("--release", "two"), "two-debug-"),
        (("one", "two"), ("--release", "one"), "one-debug-"),
        (("one",), (), "one-debug-"),
    ],
)
def test_a_template_is_chosen_by_release(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    releases: Sequence[str],
    arguments: Sequence[str],
    chosen: str,
) -> None:
    rendered = [_labelled(release, component) for release in releases for component in ("sweep", "debug")]
    assert _exec_with_template(rendered, monkeypatch, *arguments) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["name"].startswith(chosen)


@pytest.mark.parametrize(
    ("documents", "arguments", "reason"),
    [
        ([_labelled("one"), _labelled("two")], (), "choose one with --release (one, two)"),
        ([_labelled("one"), _labelled("two")], ("--release", "on"), "no CronJob for debug runs of release on"),
        ([_labelled("one"), _labelled("one")], ("--release", "one"), "several CronJobs for debug runs of release one"),
        ([_cron_job(name="a"), _cron_job(name="b")], (), "several CronJobs for debug runs"),
        ([_cron_job(name="a")], ("--release", "one"), "no CronJob for debug runs of release one"),
        ([_labelled("one", "sweep")], (), "debug.enabled"),
        ([{"kind": "Secret"}], (), "no CronJob for debug runs"),
    ],
)
def test_a_template_that_is_not_exactly_one_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    documents: Sequence[object],
    arguments: Sequence[str],
    reason: str,
) -> None:
    assert _exec_with_template(documents, monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_inspect_needs_no_client_of_kubernetes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image leaves it out."""
    for name in ("kubernetes", "rich", "yaml"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["inspect", "--pid", "1"]) == 5
    assert "there is no `spottmee-worker run`" in capsys.readouterr().err
