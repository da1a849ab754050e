"""The objects that the chart renders: the same with both versions of helm, and as the design requires."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from math import ceil
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml

from runner import __version__, cli, errors, settings
from runner.images import ssrf
from runner.queue import keys
from tools import binaries
from tools.render import CASES as CASE_FILES
from tools.render import CHART, OLDEST, Object, Rendered, cases, environment, helm, render

CASES = cases()
EVERY_CASE = pytest.mark.parametrize("case", CASES)
LONGEST = "a-party-of-four-hundred-people-and-all-of-their-photos"[:53]
LISTS = ("process", "compare")
OTHERS = ("debug", "metrics", "migrate", "reprocess", "sweep", "test")
HELM_TIMEOUT_SECONDS = 300  # helm's own --timeout
OWN_LABELS = ("name", "instance", "version", "managed-by")


def rendered(case: str = "defaults", **options: Any) -> Rendered:
    return render(binaries.HELM_4, CASES[case], **options)


def scaled_jobs(objects: Rendered) -> dict[str, Object]:
    return {item["metadata"]["labels"]["app.kubernetes.io/component"]: item for item in objects.of_kind("ScaledJob")}


def variables(pod: Object) -> dict[str, Any]:
    return {variable["name"]: variable for variable in pod["spec"]["containers"][0]["env"]}


@EVERY_CASE
def test_both_helms_render_the_same_objects(case: str) -> None:
    for release in ("faces", LONGEST):
        assert render(binaries.HELM_3, CASES[case], release=release) == render(
            binaries.HELM_4, CASES[case], release=release
        )


def test_the_oldest_kubernetes_gets_the_same_objects(helm_tool: binaries.Tool) -> None:
    assert render(helm_tool, {}, kube=OLDEST) == render(helm_tool, {})


def test_the_chart_carries_the_version_of_the_runner() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == __version__
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


@EVERY_CASE
def test_every_object_and_pod_is_labelled(case: str) -> None:
    objects = rendered(case)
    for item in [*objects.objects, *(pod for _, pod in objects.pods())]:
        labels = item["metadata"]["labels"]
        assert {f"app.kubernetes.io/{name}" for name in OWN_LABELS} <= set(labels)
        assert labels["app.kubernetes.io/name"] == "spottmee-worker"
        assert labels["app.kubernetes.io/instance"] == "faces"
        assert re.fullmatch(r"spottmee-worker-[\w.+-]+", labels["helm.sh/chart"])
        if "containers" in item.get("spec", {}):
            assert labels["app.kubernetes.io/component"] in {*LISTS, *OTHERS}


class TestNames:
    def test_objects_are_named_after_the_release(self) -> None:
        assert {(item["kind"], item["metadata"]["name"]) for item in rendered().objects} == {
            ("ConfigMap", "faces"),
            ("CronJob", "faces-debug"),
            ("CronJob", "faces-sweep"),
            ("Job", "faces-migrate"),
            ("Pod", "faces-test"),
            ("Role", "faces-test"),
            ("RoleBinding", "faces-test"),
            ("ScaledJob", "faces-compare"),
            ("ScaledJob", "faces-process"),
            ("ServiceAccount", "faces"),
            ("ServiceAccount", "faces-migrate"),
            ("ServiceAccount", "faces-test"),
        }

    @EVERY_CASE
    def test_a_release_of_53_characters_leaves_room_for_every_suffix(self, case: str) -> None:
        objects = rendered(case, release=LONGEST)
        assert len(LONGEST) == 53
        for item in objects.objects:
            name = item["metadata"]["name"]
            if item["kind"] == "ScaledJob":
                name += "-xxxxx"  # KEDA's generateName; the Job's name is a label too
            assert len(name) <= {"CronJob": 52, "ClusterTriggerAuthentication": 253}.get(item["kind"], 63), name
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
            for label in item["metadata"]["labels"].values():
                assert len(label) <= 63

    @pytest.mark.parametrize("release", ["true", "1e3"])
    @EVERY_CASE
    def test_a_release_name_that_yaml_could_misread_stays_a_string(self, case: str, release: str) -> None:
        # The Service of `metrics` needs a name that begins with a letter; another one is refused (test_values.py).
        values = {key: value for key, value in CASES[case].items() if release[0].isalpha() or key != "metrics"}
        objects = render(binaries.HELM_4, values, release=release)
        names = [item["metadata"]["name"] for item in objects.objects]
        assert all(isinstance(name, str) for name in names)
        for _, pod in objects.pods():
            assert pod["metadata"]["labels"]["app.kubernetes.io/instance"] == release
            assert isinstance(pod["spec"]["serviceAccountName"], str)

    def test_two_releases_in_one_namespace_share_no_object(self) -> None:
        def names(release: str) -> set[tuple[str, str]]:
            objects = rendered("everything", release=release).objects
            names = {(item["kind"], item["metadata"]["name"]) for item in objects}
            return {(kind, name) for kind, name in names if kind != "PriorityClass"}  # cluster-scoped

        assert not names("faces") & names("faces-2")
        assert not names(LONGEST) & names(LONGEST[:-1] + "x")

    def test_a_network_policy_selects_only_its_own_release(self) -> None:
        objects = rendered("everything", release="faces-2")
        policy = objects.find("NetworkPolicy", "faces-2")
        selector = policy["spec"]["podSelector"]["matchLabels"]
        assert selector["app.kubernetes.io/instance"] == "faces-2"
        for _, pod in objects.pods():
            assert selector.items() <= pod["metadata"]["labels"].items()


# A pod on a node that does not respond is evicted after this time instead of five minutes.
GIVEN_UP = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for taint in ("not-ready", "unreachable")
]

STRATEGIES: dict[str, dict[str, Any]] = {
    "accurate": {"strategy": "accurate", "pendingPodConditions": ["DisruptionTarget"]},
    "default": {},
    "eager": {"strategy": "eager"},
}


class TestScaling:
    @EVERY_CASE
    def test_each_list_is_scaled_by_list_and_leases_together(self, case: str) -> None:
        for name, item in scaled_jobs(rendered(case)).items():
            spec = item["spec"]
            values = CASES[case].get("queues", {}).get(name, {})
            strategy = STRATEGIES[values.get("scalingStrategy", "accurate")]
            assert spec["scalingStrategy"] == {"multipleScalersCalculation": "sum"} | strategy
            rollout = {"strategy": "immediate", "propagationPolicy": "background"} | values.get("rollout", {})
            kept = "propagationPolicy" if rollout["strategy"] == "immediate" else "strategy"
            assert spec["rollout"] == {kept: rollout[kept]}
            lists = [trigger["metadata"]["listName"] for trigger in spec["triggers"]]
            assert lists == [keys.list_key(name), keys.leases(name)]
            for trigger in spec["triggers"]:
                assert all(isinstance(value, str) for value in trigger["metadata"].values())
            activation = [trigger["metadata"]["activationListLength"] for trigger in spec["triggers"]]
            assert activation == [str(values.get("activationListLength", 0)), "0"], "a lease must always be recovered"

    @EVERY_CASE
    def test_max_jobs_is_at_least_jobs_per_pod(self, case: str) -> None:
        objects = rendered(case)
        for name, item in scaled_jobs(objects).items():
            environment_of = environment(item["spec"]["jobTargetRef"]["template"], objects)
            (length,) = {int(trigger["metadata"]["listLength"]) for trigger in item["spec"]["triggers"]}
            assert int(environment_of["RUNNER_MAX_JOBS"]) >= length
            assert environment_of["RUNNER_QUEUES"] == name

    def test_the_number_of_jobs_for_a_burst_follows_the_formula(self) -> None:
        length = int(scaled_jobs(rendered())["process"]["spec"]["triggers"][0]["metadata"]["listLength"])
        assert [ceil(waiting / length) for waiting in (0, 1, 200, 201, 800)] == [0, 1, 1, 2, 4]

    def test_a_paused_list_is_annotated_and_a_disabled_list_is_omitted(self) -> None:
        found = scaled_jobs(rendered("one-list"))
        assert list(found) == ["process"]
        assert found["process"]["metadata"]["annotations"] == {"autoscaling.keda.sh/paused": "true"}
        assert "annotations" not in scaled_jobs(rendered())["process"]["metadata"]

    def test_replicas_and_history_come_from_the_values(self) -> None:
        spec = scaled_jobs(rendered("gpu"))["process"]["spec"]
        assert (spec["pollingInterval"], spec["minReplicaCount"], spec["maxReplicaCount"]) == (15, 1, 4)
        assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (5, 5)


class TestJobs:
    @EVERY_CASE
    def test_disruptions_are_ignored_and_configuration_errors_fail_the_job(self, case: str) -> None:
        for item in scaled_jobs(rendered(case)).values():
            job = item["spec"]["jobTargetRef"]
            evicted, failed = job["podFailurePolicy"]["rules"]
            assert evicted["action"] == failed["action"] == "FailJob"
            assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
            permanent = (errors.SettingsError, errors.SchemaError, errors.ModelError, errors.PhotosInvisibleError)
            assert failed["onExitCodes"]["values"] == [error.exit_code for error in permanent]
            assert errors.UnreachableError.exit_code not in failed["onExitCodes"]["values"]
            container = job["template"]["spec"]["containers"][0]["name"]
            assert failed["onExitCodes"]["containerName"] == container == item["spec"]["envSourceContainerName"]
            assert job["podReplacementPolicy"] == "Failed"
            assert job["template"]["spec"]["restartPolicy"] == "Never"
            assert job["ttlSecondsAfterFinished"] == 3600

    @EVERY_CASE
    def test_the_grace_period_and_deadline_exceed_the_runners_own_limits(self, case: str) -> None:
        objects = rendered(case)
        for item in scaled_jobs(objects).values():
            job = item["spec"]["jobTargetRef"]
            seconds = environment(job["template"], objects)
            drain, limit = float(seconds["RUNNER_SHUTDOWN_SECONDS"]), float(seconds["RUNNER_MAX_SECONDS"])
            assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + 5
            assert job["activeDeadlineSeconds"] > limit + drain

    def test_a_pod_knows_its_name_node_and_job(self) -> None:
        for name, pod in rendered().pods():
            given = variables(pod)
            assert given["POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            assert given["NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
            if name in {"faces-process", "faces-compare", "faces-debug"}:
                job = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
                assert given["RUNNER_OWNER"]["valueFrom"] == given["JOB_NAME"]["valueFrom"] == job
                assert given["RUNNER_TERMINATION_LOG"]["value"] == "/dev/termination-log"

    @EVERY_CASE
    def test_no_variable_is_set_twice(self, case: str) -> None:
        """KEDA's CRD rejects a ScaledJob with two variables of one name."""
        for _, pod in rendered(case).pods():
            names = [variable["name"] for variable in pod["spec"]["containers"][0]["env"]]
            assert len(names) == len(set(names))

    def test_the_debug_template_is_suspended(self) -> None:
        template = rendered().find("CronJob", "faces-debug")
        assert template["spec"]["suspend"] is True
        given = variables(template["spec"]["jobTemplate"]["spec"]["template"])
        assert given["RUNNER_MAX_JOBS"]["value"] == "1"
        assert given["RUNNER_LOG_LEVEL"]["value"] == "debug"
        assert template["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0

    @pytest.mark.parametrize("like", LISTS)
    def test_a_debug_run_neither_waits_for_jobs_nor_after_a_failure(self, like: str) -> None:
        objects = render(binaries.HELM_4, {"debug": {"like": like}})
        template = objects.find("CronJob", "faces-debug")["spec"]["jobTemplate"]["spec"]["template"]
        given = environment(template, objects)
        assert (given["RUNNER_IDLE_SECONDS"], given["RUNNER_FAILURE_DELAY_SECONDS"]) == ("0", "0")

    def test_the_sweep_runs_often_enough_with_redis_and_both_databases(self) -> None:
        cron = rendered().find("CronJob", "faces-sweep")["spec"]
        assert (cron["schedule"], cron["concurrencyPolicy"], cron.get("suspend")) == ("*/15 * * * *", "Forbid", None)
        pod = cron["jobTemplate"]["spec"]["template"]
        assert pod["spec"]["containers"][0]["args"] == ["sweep", "--max-share", "10"]
        assert "REDIS_URL" in environment(pod, rendered())
        assert {"DATABASE_URL", "EMBEDDINGS_DATABASE_URL"} <= set(variables(pod))
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {
            "cpu": "500m",
            "memory": "512Mi",
            "ephemeral-storage": "512Mi",
        }

    def test_a_cronjob_pushes_photos_without_a_job_if_enabled(self) -> None:
        assert "faces-stuck" not in {item["metadata"]["name"] for item in rendered().of_kind("CronJob")}
        objects = rendered("everything")
        (cron,) = (item["spec"] for item in objects.of_kind("CronJob") if item["metadata"]["name"].endswith("-stuck"))
        assert (cron["schedule"], cron["concurrencyPolicy"], cron.get("suspend")) == ("7 * * * *", "Forbid", None)
        pod = cron["jobTemplate"]["spec"]["template"]
        arguments = pod["spec"]["containers"][0]["args"]
        parsed = cli._parser().parse_args(arguments)
        assert (parsed.status, parsed.older_than, parsed.max_waiting) == (["UPLOADED", "PROCESSING"], 3600, 50)
        given = environment(pod, objects)
        assert {"REDIS_URL", "RUNNER_PHOTO_URL"} <= set(given)
        assert {"DATABASE_URL", "EMBEDDINGS_DATABASE_URL"} <= set(variables(pod))

    @EVERY_CASE
    def test_the_test_pod_runs_doctor_with_every_scaled_job(self, case: str) -> None:
        objects = rendered(case)
        (pod,) = objects.of_kind("Pod")
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        arguments = pod["spec"]["containers"][0]["args"]
        parsed = cli._parser().parse_args(arguments)
        if case == "openshift":
            assert arguments == ["doctor"]
        else:
            assert parsed.namespace == "party"
            assert parsed.scaled_job == [item["metadata"]["name"] for item in objects.of_kind("ScaledJob")]

    @EVERY_CASE
    def test_the_test_pods_account_may_only_read_its_scaled_jobs_and_events(self, case: str) -> None:
        objects = rendered(case)
        (pod,) = objects.of_kind("Pod")
        name = pod["metadata"]["name"]
        if case == "openshift":
            assert not objects.of_kind("Role")
            assert pod["spec"]["automountServiceAccountToken"] is False
            return
        assert pod["spec"]["serviceAccountName"] == name
        assert pod["spec"]["automountServiceAccountToken"] is True
        scaled = [item["metadata"]["name"] for item in objects.of_kind("ScaledJob")]
        assert objects.find("Role", name)["rules"] == [
            {"apiGroups": ["keda.sh"], "resources": ["scaledjobs"], "resourceNames": scaled, "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
        ]
        binding = objects.find("RoleBinding", name)
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "party"}]

    @EVERY_CASE
    def test_of_the_test_only_the_pod_is_a_hook_so_that_uninstall_deletes_its_permissions(self, case: str) -> None:
        own = [
            item
            for item in rendered(case).objects
            if item["metadata"]["labels"].get("app.kubernetes.io/component") == "test"
        ]
        hooks = [item["kind"] for item in own if "helm.sh/hook" in item["metadata"].get("annotations", {})]
        assert hooks == ["Pod"]
        assert len(own) == (1 if case == "openshift" else 5 if rendered(case).of_kind("NetworkPolicy") else 4)


class TestPlacement:
    def test_a_gpu_pod_gets_its_resources_and_placement(self) -> None:
        spec = scaled_jobs(rendered("gpu"))["process"]["spec"]["jobTargetRef"]["template"]["spec"]
        assert spec["runtimeClassName"] == "nvidia"
        assert spec["priorityClassName"] == "batch"
        assert spec["nodeSelector"] == {"accelerator": "l4"}
        assert spec["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            *GIVEN_UP,
        ]
        assert set(spec["affinity"]) == {"nodeAffinity"}
        assert spec["topologySpreadConstraints"][0]["maxSkew"] == 1
        container = spec["containers"][0]
        assert container["resources"]["limits"] == {
            "cpu": "4",
            "memory": "8Gi",
            "ephemeral-storage": "512Mi",
            "nvidia.com/gpu": "1",
        }
        assert container["image"] == f"registry.example.org/spottmee-worker:{__version__}-gpu@sha256:{'0' * 64}"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]

    def test_the_placement_of_one_list_does_not_affect_the_other(self) -> None:
        spec = scaled_jobs(rendered("gpu"))["compare"]["spec"]["jobTargetRef"]["template"]["spec"]
        assert spec["priorityClassName"] == "urgent"
        assert not {"runtimeClassName", "nodeSelector", "affinity"} & set(spec)
        assert spec["tolerations"] == GIVEN_UP
        assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]

    def test_settings_reach_the_runner_unchanged(self) -> None:
        objects = rendered("gpu")
        process = scaled_jobs(objects)["process"]["spec"]["jobTargetRef"]["template"]
        loaded = settings.load(environment(process, objects) | {"DATABASE_URL": "postgresql://db/api"})
        assert (loaded.max_image_bytes, loaded.lease_seconds, loaded.allow_private_addresses) == (33554432, 45.5, False)
        assert (loaded.max_jobs, loaded.batch_size, loaded.providers) == (8000, 32, ("cuda",))


class TestPlatform:
    """What a platform asks of every chart (tests/chart/values/platform.yaml)."""

    def test_every_object_and_pod_has_the_common_labels_and_annotations(self) -> None:
        objects = rendered("platform")
        for item in [item for item in objects.objects if item["metadata"]["name"] != "faces-extra"]:
            assert item["metadata"]["labels"]["cost-centre"] == "parties"
            assert item["metadata"]["annotations"]["owner"] == "party@example.org"
        for name, pod in objects.pods():
            assert pod["metadata"]["labels"]["cost-centre"] == "parties"
            labels = pod["metadata"]["labels"]["sidecar"], pod["metadata"]["annotations"]["owner"]
            is_process = name == "faces-process"
            assert labels == (("process", "album@example.org") if is_process else ("on", "party@example.org"))

    def test_images_come_from_the_common_registry_with_both_sets_of_credentials(self) -> None:
        for name, pod in rendered("platform").pods():
            tail = "big:7" if name == "faces-process" else f"faces/spottmee-worker:{__version__}"
            assert pod["spec"]["containers"][0]["image"] == f"mirror.example.org:5000/hub/{tail}"
            assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]

    @pytest.mark.parametrize(
        ("repository", "expected"),
        [("worker", "m.io/worker"), ("faces/worker", "m.io/faces/worker"), ("localhost/worker", "m.io/worker"),
         ("r:5000/a/worker", "m.io/a/worker")],
    )  # fmt: skip
    def test_the_common_registry_replaces_only_a_registry(self, repository: str, expected: str) -> None:
        objects = render(
            binaries.HELM_4, {"global": {"imageRegistry": "m.io"}, "image": {"repository": repository, "tag": "1"}}
        )
        assert {pod["spec"]["containers"][0]["image"] for _, pod in objects.pods()} == {f"{expected}:1"}

    def test_a_list_adds_to_the_common_placement(self) -> None:
        specs = {name: pod["spec"] for name, pod in rendered("platform").pods()}
        workers = {"key": "workers", "operator": "Exists"}
        for name, spec in specs.items():
            own = name == "faces-process"
            assert spec["nodeSelector"] == {"pool": "workers"} | ({"size": "big"} if own else {})
            big = [{"key": "big", "operator": "Exists"}] if own else []
            given_up = GIVEN_UP if name in {"faces-process", "faces-compare", "faces-debug"} else []
            assert spec["tolerations"] == [*big, workers, *given_up]
            assert spec["runtimeClassName"] == ("kata" if own else "gvisor")
            urgent = name in {"faces-compare", "faces-debug"}
            assert spec["priorityClassName"] == ("urgent" if urgent else "ordinary")
            assert set(spec["affinity"]) == {"podAntiAffinity"}
            assert spec["hostUsers"] is False

    @pytest.mark.parametrize("given", [{}, {"securityContext": None}, {"securityContext": {}}], ids=str)
    def test_an_init_container_without_a_security_context_gets_the_common_one(self, given: dict[str, Any]) -> None:
        values = {"initContainers": [{"name": "init", "image": "init:1"} | given]}
        for _, pod in render(binaries.HELM_4, values).pods():
            (init,) = pod["spec"]["initContainers"]
            assert init["securityContext"] == pod["spec"]["containers"][0]["securityContext"]

    def test_an_empty_value_of_a_list_replaces_a_common_one(self) -> None:
        common, own = {"a": "common", "b": "common"}, {"a": ""}
        fields = ("nodeSelector", "podLabels", "podAnnotations")
        values: dict[str, Any] = dict.fromkeys(fields, common) | {"queues": {"process": dict.fromkeys(fields, own)}}
        values |= {"commonLabels": common, "commonAnnotations": common, "migration": {"annotations": own}}
        objects = render(binaries.HELM_4, values)
        pod = dict(objects.pods())["faces-process"]
        migration = objects.find("Job", "faces-migrate")["metadata"]["annotations"]
        for found in (
            *(pod["spec"]["nodeSelector"], pod["metadata"]["labels"], pod["metadata"]["annotations"]), migration
        ):  # fmt: skip
            assert (found["a"], found["b"]) == ("", "common")

    def test_volumes_containers_and_authorities_reach_every_pod(self) -> None:
        for _, pod in rendered("platform").pods():
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            assert volumes["scratch"] == {"name": "scratch", "emptyDir": {}}
            assert volumes["ca-postgresql"]["secret"] == {
                "secretName": "pg-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]
            }  # fmt: skip
            assert volumes["ca-images"]["configMap"] == {
                "name": "trusted", "items": [{"key": "bundle.pem", "path": "ca.crt"}]
            }  # fmt: skip
            (container,) = pod["spec"]["containers"]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            given = variables(pod)
            assert given["PGSSLMODE"]["value"] == "verify-full"
            for name, variable in {"ca-postgresql": "PGSSLROOTCERT", "ca-images": "RUNNER_IMAGE_CA"}.items():
                assert given[variable]["value"] == f"{mounts[name]}/ca.crt"
            (mesh,) = pod["spec"]["initContainers"]
            assert (mesh["name"], mesh["restartPolicy"]) == ("mesh", "Always")
            assert mesh["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": False
            }  # fmt: skip

    def test_only_the_passwords_of_the_databases_are_in_secrets(self) -> None:
        objects = rendered("platform")
        for _, pod in objects.pods():
            given = variables(pod)
            assert given["DATABASE_URL"]["value"] == (
                "postgresql://api%20app@api-rw.data:5432/api?connect_timeout=5&schema=album"
            )
            assert given["EMBEDDINGS_DATABASE_URL"]["value"] == "postgresql://faces@faces-rw.data:5433/faces"
            for prefix, secret in {"": "api-app", "EMBEDDINGS_": "faces-app"}.items():
                reference = given[f"{prefix}DATABASE_PASSWORD"]["valueFrom"]["secretKeyRef"]
                assert reference == {"name": secret, "key": "password"}

    def test_further_objects_are_rendered(self) -> None:
        assert rendered("platform").find("ConfigMap", "faces-extra")


class TestGpu:
    def test_only_the_pods_with_a_gpu_use_its_image_and_provider(self) -> None:
        for name, pod in rendered("gpu").pods():
            container = pod["spec"]["containers"][0]
            has_gpu = name == "faces-process"
            assert ("nvidia.com/gpu" in container["resources"]["limits"]) is has_gpu
            assert ("-gpu" in container["image"]) is has_gpu
            assert ("RUNNER_PROVIDERS" in variables(pod)) is ("LD_LIBRARY_PATH" in variables(pod)) is has_gpu
            assert pod["spec"].get("runtimeClassName") == ("nvidia" if has_gpu else None)
            assert pod["spec"].get("nodeSelector") == ({"accelerator": "l4"} if has_gpu else None)

    def test_a_releases_digests_are_used_until_a_tag_or_digest_is_given(self) -> None:
        digests = {"cpu": f"sha256:{'a' * 64}", "gpu": f"sha256:{'b' * 64}"}
        own = f"sha256:{'c' * 64}"
        for image, expected in [
            ({}, digests),
            ({"tag": "edge"}, {"cpu": ":edge", "gpu": own}),
            ({"digest": own}, {"cpu": own, "gpu": own}),
        ]:
            process = {"gpu": {"count": 1}} | ({"image": {"digest": own}} if image else {})
            values = {"queues": {"process": process}, "image": {"digests": digests, **image}}
            for name, pod in render(binaries.HELM_4, values).pods():
                used: str = pod["spec"]["containers"][0]["image"]
                assert used.endswith(expected["gpu" if name == "faces-process" else "cpu"])

    def test_pods_choose_nodes_of_an_images_only_architecture(self) -> None:
        both = {"cpu": ["amd64", "arm64"], "gpu": ["amd64"]}
        chosen = {"nodeSelector": {"kubernetes.io/arch": "arm64"}}
        values = {
            "image": {"architectures": both},
            "queues": {"process": {"gpu": {"count": 1}}, "compare": chosen},
        }
        pods = {name: pod["spec"] for name, pod in render(binaries.HELM_4, values).pods()}
        assert pods["faces-process"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        assert pods["faces-compare"]["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
        assert "nodeSelector" not in pods["faces-sweep"]

    @pytest.mark.parametrize("place", ["common", "own"])
    def test_a_value_allows_falling_back_to_the_cpu(self, place: str) -> None:
        provider = {"RUNNER_PROVIDERS": "cuda,cpu"}
        process = {"gpu": {"count": 1}} | ({"settings": provider} if place == "own" else {})
        values = {"queues": {"process": process}} | ({"settings": provider} if place == "common" else {})
        objects = render(binaries.HELM_4, values)
        (pod,) = (pod for name, pod in objects.pods() if name == "faces-process")
        assert environment(pod, objects)["RUNNER_PROVIDERS"] == "cuda,cpu"

    def test_a_variable_of_a_gpu_may_be_replaced(self) -> None:
        own = {"LD_LIBRARY_PATH": "/driver", "RUNNER_PROVIDERS": "cuda,cpu"}
        extra = [{"name": name, "value": value} for name, value in own.items()]
        values = {"queues": {"process": {"gpu": {"count": 1}}}, "extraEnv": extra}
        for _, pod in render(binaries.HELM_4, values).pods():
            given = [variable for variable in pod["spec"]["containers"][0]["env"] if variable["name"] in own]
            assert given == extra


def _violations(pod: Object) -> Iterator[str]:
    """Yield what violates Pod Security "restricted" (kubernetes.io/docs/concepts/security/pod-security-standards/)."""
    spec = pod["spec"]
    if spec["securityContext"].get("runAsNonRoot") is not True or spec["securityContext"].get("runAsUser") == 0:
        yield "may run as root"
    if spec["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp"
    if {"hostNetwork", "hostPID", "hostIPC"} & set(spec):
        yield "shares the host"
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= {"emptyDir", "secret", "configMap", "projected", "downwardAPI"}:
            yield f"volume {volume['name']}"
    for container in spec["containers"] + spec.get("initContainers", []):
        security = container["securityContext"]
        if security["allowPrivilegeEscalation"] or security["capabilities"] != {"drop": ["ALL"]}:
            yield "privileges"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "host ports"


class TestSecurity:
    @EVERY_CASE
    def test_every_pod_passes_pod_security_restricted(self, case: str) -> None:
        pods = dict(rendered(case).pods())
        assert pods
        assert {name: list(_violations(pod)) for name, pod in pods.items()} == {name: [] for name in pods}

    @EVERY_CASE
    def test_only_the_test_pod_has_a_token_and_no_pod_has_a_writable_root_file_system(self, case: str) -> None:
        objects = rendered(case)
        for account in objects.of_kind("ServiceAccount"):
            assert account["automountServiceAccountToken"] is False
        for _, pod in objects.pods():
            assert pod["spec"]["automountServiceAccountToken"] is (pod.get("kind") == "Pod" and case != "openshift")
            assert pod["spec"]["enableServiceLinks"] is False
            (container,) = pod["spec"]["containers"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["ephemeral-storage"] == "512Mi"
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert container["resources"]["limits"]["memory"]

    def test_the_cluster_can_assign_the_user(self) -> None:
        for _, pod in rendered("openshift").pods():
            assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["spec"]["securityContext"])

    def test_the_network_policy_allows_what_is_needed(self) -> None:
        policy = rendered("everything").find("NetworkPolicy", "faces")
        assert policy["spec"]["ingress"] == []
        dns, servers, images, extra = policy["spec"]["egress"]
        assert [(port["port"], port["protocol"]) for port in dns["ports"]] == [
            *((53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP"))
        ]
        assert [next(iter(peer)) for peer in dns["to"]] == ["namespaceSelector", "ipBlock"]
        assert [port["port"] for port in servers["ports"]] == [6379, 5432, 6432]
        assert servers["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}}}]
        assert [port["port"] for port in images["ports"]] == [80, 443]
        assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(images["to"][0]["ipBlock"]["except"])
        assert extra["ports"] == [{"port": 3128, "protocol": "TCP"}]

    def test_the_network_policy_allows_the_ports_of_sentinels_and_master(self) -> None:
        policy = rendered("sentinel").find("NetworkPolicy", "faces")
        assert [port["port"] for port in policy["spec"]["egress"][1]["ports"]] == [26379, 6379, 5432]

    def test_the_network_policy_allows_only_the_clusters_own_dns(self) -> None:
        """A resolver elsewhere could be used to exfiltrate data."""
        dns = rendered("sentinel").find("NetworkPolicy", "faces")["spec"]["egress"][0]
        assert dns["to"] == [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ]

    def test_the_network_policy_allows_the_same_public_addresses_as_the_runner(self) -> None:
        """Checked at the boundaries of every network that either of them lists."""
        blocks = [
            peer["ipBlock"] for peer in rendered("sentinel").find("NetworkPolicy", "faces")["spec"]["egress"][2]["to"]
        ]
        allowed = [ip_network(block["cidr"]) for block in blocks]
        refused = [ip_network(network) for block in blocks for network in block["except"]]
        known = [*refused, *allowed, *ssrf._REFUSED_4, *ssrf._REFUSED_6]
        known += [ip_network(text) for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "fc00::/7")]
        known += [ip_network(text) for text in ("fe80::/10", "ff00::/8", "100::/64", "8.8.8.0/24", "2a00:1450::/32")]
        boundaries = {number for network in known for number in _boundaries(network)}
        # NAT64 and 6to4 addresses contain IPv4 addresses, some of them public: only the runner can check those.
        carriers = [ip_network("64:ff9b::/96"), ip_network("2002::/16")]
        seen = {True: 0, False: 0}
        for address in boundaries:
            is_allowed = any(address in network for network in allowed) and not any(address in net for net in refused)
            if any(address in carrier for carrier in carriers):
                assert not is_allowed, address
            else:
                assert is_allowed == ssrf.is_public(address), address
            seen[is_allowed] += 1
        assert min(seen.values()) > 20

    @pytest.mark.parametrize("mode", ["hook", "job"])
    def test_without_ports_the_network_policies_have_no_rule_instead_of_one_for_all_ports(self, mode: str) -> None:
        closed = {"enabled": True, "imagePorts": [], "databasePorts": []}
        values = {"networkPolicy": closed, "metrics": {"enabled": True}, "migration": {"mode": mode}}
        policies = render(binaries.HELM_4, values).of_kind("NetworkPolicy")
        assert len(policies) == (4 if mode == "hook" else 3)
        for policy in policies:
            is_migration, is_test = (policy["metadata"]["name"] == f"faces-{name}" for name in ("migrate", "test"))
            ports = [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]]
            assert ports == ([[443, 6443]] if is_test else [[53, 53]] if is_migration else [[53, 53], [6379]])

    def test_the_network_policies_allow_the_ports_of_the_databases_in_the_values(self) -> None:
        pooler = {"host": "pg", "port": 6432, "name": "x", "username": "u"}
        values = {"database": pooler, "embeddingsDatabase": pooler | {"port": 6433}, "metrics": {"enabled": True}}
        objects = render(binaries.HELM_4, values | {"networkPolicy": {"enabled": True, "databasePorts": [5432]}})
        for name, redis in {"faces": [6379], "faces-migrate": [], "faces-metrics": [6379]}.items():
            servers = objects.find("NetworkPolicy", name)["spec"]["egress"][1]
            assert [port["port"] for port in servers["ports"]] == [*redis, 5432, 6432, 6433]

    def test_each_exception_is_part_of_the_network_that_is_allowed(self) -> None:
        """Kubernetes rejects a policy with another one."""
        inside = ["10.1.2.3/32", "128.0.0.0/1", "2001:db8::/32", "2000::/4", "3fff:1:2:3:4:5:6:7/128"]
        outside = ["fd00::/8", "fe80::/10", "::/96", "::1/128", "2::/16", "200::/7", "64:ff9b::/96", "4000::/4"]
        policy = {"enabled": True, "privateNetworks": [*outside, *inside]}
        egress = render(binaries.HELM_4, {"networkPolicy": policy}).find("NetworkPolicy", "faces")["spec"]["egress"]
        found = []
        for block in (peer["ipBlock"] for peer in egress[2]["to"]):
            for network in block["except"]:
                excepted, allowed = ip_network(network), ip_network(block["cidr"])
                assert allowed.supernet_of(excepted)  # type: ignore[arg-type]  # same family
                assert allowed != excepted
                found.append(network)
        assert found == inside

    def test_only_the_test_pod_may_reach_the_kubernetes_api(self) -> None:
        policy = rendered("sentinel").find("NetworkPolicy", "faces-test")
        assert policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
        assert policy["spec"]["policyTypes"] == ["Egress"]
        assert [port["port"] for port in policy["spec"]["egress"][0]["ports"]] == [443, 6443]


def _boundaries(network: IPv4Network | IPv6Network) -> Iterator[IPv4Address | IPv6Address]:
    """Yield the first and the last address of a network, and those just outside it."""
    first, last = int(network.network_address), int(network.broadcast_address)
    for number in (first - 1, first, last, last + 1):
        if 0 <= number < 1 << network.max_prefixlen:
            yield type(network.network_address)(number)


class TestHook:
    def test_a_hook_refers_to_no_object_that_does_not_exist_yet(self) -> None:
        """On a first install, the chart's other objects are created after its hooks."""
        for case, values in CASES.items():
            objects = rendered(case)
            if values.get("migration", {}).get("mode", "hook") != "hook":
                continue
            (job,) = objects.of_kind("Job")
            hooks = {
                (item["kind"], item["metadata"]["name"])
                for item in objects.objects
                if "pre-install" in item["metadata"].get("annotations", {}).get("helm.sh/hook", "")
            }
            own = {(item["kind"], item["metadata"]["name"]) for item in objects.objects} - hooks
            assert job["spec"]["activeDeadlineSeconds"] < HELM_TIMEOUT_SECONDS
            spec = job["spec"]["template"]["spec"]
            assert ("ServiceAccount", spec["serviceAccountName"]) not in own, case
            assert "envFrom" not in spec["containers"][0]
            for variable in spec["containers"][0]["env"]:
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert ("Secret", reference["name"]) not in own, case
            if case == "tls-inline":
                assert environment({"spec": spec}, objects)["EMBEDDINGS_DATABASE_URL"].startswith("postgresql://faces@")
                secret = objects.find("Secret", "faces-migrate")
                assert set(secret["stringData"]) == {"DATABASE_URL", "EMBEDDINGS_DATABASE_URL"}, (
                    "the Secret has other keys"
                )

    def test_objects_of_a_hook_are_created_before_its_job_and_deleted_afterwards(self) -> None:
        objects = rendered("tls-inline")
        weights = {
            item["kind"]: int(item["metadata"]["annotations"]["helm.sh/hook-weight"])
            for item in objects.objects
            if item["metadata"]["name"] == "faces-migrate"
        }
        assert max(weights["ServiceAccount"], weights["Secret"]) < weights["Job"]
        for kind in weights:
            annotations = objects.find(kind, "faces-migrate")["metadata"]["annotations"]
            assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
            assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"

    @EVERY_CASE
    def test_without_a_cluster_no_object_is_rendered_twice_and_none_for_an_uninstall(self, case: str) -> None:
        """Argo CD creates every object that `helm template` prints; tests/e2e/test_uninstall.py renders the others."""
        objects = rendered(case)
        names = [(item["kind"], item["metadata"]["name"]) for item in objects.objects]
        assert len(names) == len(set(names))
        hooks = [item["metadata"].get("annotations", {}).get("helm.sh/hook", "") for item in objects.objects]
        assert not [hook for hook in hooks if "delete" in hook]
        for job in objects.of_kind("Job"):
            is_hook = "helm.sh/hook" in job["metadata"].get("annotations", {})
            assert job["spec"].get("ttlSecondsAfterFinished") == (3600 if is_hook else None)

    def test_a_failed_hook_is_reported_with_its_log(self) -> None:
        annotations = rendered().find("Job", "faces-migrate")["metadata"]["annotations"]
        assert annotations["helm.sh/hook-output-log-policy"] == "hook-failed"

    @pytest.mark.parametrize("case", ["platform", "sentinel", "everything"])
    def test_its_network_policy_is_created_first(self, case: str) -> None:
        """In a namespace that denies everything, the release's own policy would come too late."""
        objects = rendered(case)
        policy, job = objects.find("NetworkPolicy", "faces-migrate"), objects.find("Job", "faces-migrate")
        own, after = (item["metadata"]["annotations"] for item in (policy, job))
        assert own["helm.sh/hook"] == after["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert int(own["helm.sh/hook-weight"]) < int(after["helm.sh/hook-weight"])
        selector = policy["spec"]["podSelector"]["matchLabels"]
        assert selector["app.kubernetes.io/component"] == "migrate"
        assert selector.items() <= job["spec"]["template"]["metadata"]["labels"].items()
        release = objects.find("NetworkPolicy", "faces")["spec"]["egress"]
        dns, servers, *extra = policy["spec"]["egress"]
        assert (dns, extra) == (release[0], release[3:])
        assert [port["port"] for port in servers["ports"]] == [
            port["port"] for port in release[1]["ports"] if port["port"] in (5432, 5433, 6432)
        ]

    def test_a_drained_node_does_not_count_as_a_failed_attempt(self) -> None:
        evicted, _ = rendered().find("Job", "faces-migrate")["spec"]["podFailurePolicy"]["rules"]
        assert evicted["action"] == "Ignore"
        assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]

    def test_placement_variables_and_settings_reach_it(self) -> None:
        job = rendered("platform").find("Job", "faces-migrate")
        assert job["metadata"]["annotations"]["sidecar.example.org/inject"] == "false"
        pod = job["spec"]["template"]
        assert pod["spec"]["nodeSelector"] == {"pool": "workers"}
        assert pod["spec"]["runtimeClassName"] == "gvisor"
        given = variables(pod)
        assert (given["TZ"]["value"], given["RUNNER_CONNECT_TIMEOUT_SECONDS"]["value"]) == ("UTC", "20")
        assert given["PGSSLROOTCERT"]["value"] == "/etc/ca-postgresql/ca.crt"

    def test_as_a_job_it_is_named_after_its_content_and_uses_the_releases_own_objects(self) -> None:
        objects = rendered("migration-job")
        (job,) = objects.of_kind("Job")
        assert job["metadata"]["annotations"] == {"argocd.argoproj.io/sync-wave": "1"}
        assert re.fullmatch(r"faces-migrate-[0-9a-f]{8}", job["metadata"]["name"])
        assert "ttlSecondsAfterFinished" not in job["spec"], "a GitOps controller would create it again forever"
        spec = job["spec"]["template"]["spec"]
        assert spec["serviceAccountName"] == "faces"
        assert variables({"spec": spec})["DATABASE_URL"]["valueFrom"]["secretKeyRef"]["name"] == "faces-inline"
        assert ("Secret", "faces-migrate") not in {(item["kind"], item["metadata"]["name"]) for item in objects.objects}

    @pytest.mark.parametrize(
        "change",
        [{"image": {"tag": "2"}}, {"commonLabels": {"a": "b"}}, {"podAnnotations": {"a": "b"}}],
        ids=lambda change: next(iter(change)),
    )
    def test_as_a_job_it_has_another_name_if_its_pod_changes(self, change: dict[str, Any]) -> None:
        """The pod template of a Job cannot be changed."""
        (job,), (changed,) = (
            render(binaries.HELM_4, CASES["migration-job"] | values).of_kind("Job") for values in ({}, change)
        )
        assert changed["spec"]["template"] != job["spec"]["template"]
        assert changed["metadata"]["name"] != job["metadata"]["name"]

    def test_as_a_job_it_keeps_its_name_if_only_its_own_annotations_change(self) -> None:
        values = CASES["migration-job"] | {"migration": {"mode": "job", "backoffLimit": 1}}
        (job,), (changed,) = (render(binaries.HELM_4, each).of_kind("Job") for each in (CASES["migration-job"], values))
        assert changed["metadata"]["name"] == job["metadata"]["name"]

    def test_it_can_be_disabled(self) -> None:
        assert not rendered("one-list").of_kind("Job")

    def test_the_service_account_of_the_hook_has_the_same_annotations(self) -> None:
        for name in ("faces", "faces-migrate"):
            account = rendered("everything").find("ServiceAccount", name)
            assert account["metadata"]["annotations"]["iam.example.org/role"] == "faces"


class TestRedis:
    """KEDA and the runner use the same Redis, in every mode."""

    @EVERY_CASE
    def test_address_database_and_tls_agree(self, case: str) -> None:
        objects = rendered(case)
        for item in scaled_jobs(objects).values():
            url = urlsplit(environment(item["spec"]["jobTargetRef"]["template"], objects)["REDIS_URL"])
            scheme, _, kind = url.scheme.partition("+")
            path = url.path.strip("/").split("/")
            query = dict(parse_qsl(url.query))
            for trigger in item["spec"]["triggers"]:
                metadata = trigger["metadata"]
                assert trigger["type"] == (f"redis-{kind}" if kind else "redis")
                assert metadata["addresses" if kind else "address"] == url.netloc
                assert metadata.get("databaseIndex") == (None if kind == "cluster" else path[-1])
                assert metadata.get("sentinelMaster") == (path[0] if kind == "sentinel" else None)
                assert metadata.get("enableTLS") == ("true" if scheme == "rediss" else None)
                assert (metadata.get("unsafeSsl") == "true") == (query.get("ssl_cert_reqs") == "none")

    @EVERY_CASE
    def test_credentials_come_from_the_same_secrets(self, case: str) -> None:
        objects = rendered(case)
        made = objects.of_kind("TriggerAuthentication") + objects.of_kind("ClusterTriggerAuthentication")
        targets = {
            target["parameter"]: (target["name"], target["key"])
            for item in made
            for target in item["spec"]["secretTargetRef"]
        }
        for item in scaled_jobs(objects).values():
            pod = item["spec"]["jobTargetRef"]["template"]
            given = variables(pod)
            secrets = {
                parameter: tuple(given[variable]["valueFrom"]["secretKeyRef"].values())
                for parameter, variable in {
                    "username": "REDIS_USERNAME",
                    "password": "REDIS_PASSWORD",
                    "sentinelPassword": "REDIS_SENTINEL_PASSWORD",
                }.items()
                if variable in given
            }
            secrets |= _certificates(pod, objects)
            for trigger in item["spec"]["triggers"]:
                if made:
                    assert trigger["authenticationRef"] == {
                        "kind": made[0]["kind"],
                        "name": made[0]["metadata"]["name"],
                    }
                    assert secrets == targets
                plain = {name for name in trigger["metadata"] if name.endswith("FromEnv")}
                config = objects.find("ConfigMap", item["metadata"]["name"].rpartition("-")[0])["data"]
                assert {trigger["metadata"][name] for name in plain} == set(config) & {
                    "REDIS_USERNAME",
                    "REDIS_SENTINEL_USERNAME",
                }

    @pytest.mark.parametrize(
        ("host", "written"),
        [
            ("redis", "redis.party.svc"),
            ("redis.data", "redis.data"),  # NAME.NAMESPACE: every pod searches svc.cluster.local
            ("redis.data.svc", "redis.data.svc"),
            ("redis-0.redis.data", "redis-0.redis.data"),
            ("cache.example.org", "cache.example.org"),
            ("10.1.2.3", "10.1.2.3"),
        ],
    )
    def test_a_host_without_a_dot_is_a_service_of_the_releases_namespace(self, host: str, written: str) -> None:
        """KEDA's operator would otherwise resolve it in its own namespace."""
        nodes = [f"{host}:7000", "other:7001"]
        for values, addresses in (
            ({"host": host}, f"{written}:6379"),
            ({"mode": "cluster", "nodes": nodes}, f"{written}:7000,other.party.svc:7001"),
            ({"mode": "sentinel", "nodes": nodes}, f"{written}:7000,other.party.svc:7001"),
        ):
            objects = render(binaries.HELM_4, {"redis": values})
            for _, pod in objects.pods():
                if "envFrom" in pod["spec"]["containers"][0]:
                    assert urlsplit(environment(pod, objects)["REDIS_URL"]).netloc == addresses
            for item in scaled_jobs(objects).values():
                for trigger in item["spec"]["triggers"]:
                    assert trigger["metadata"]["addresses" if "nodes" in values else "address"] == addresses

    def test_an_existing_authentication_is_used_instead_of_a_new_one(self) -> None:
        objects = rendered("existing-authentication")
        assert not objects.of_kind("ClusterTriggerAuthentication")
        reference = scaled_jobs(objects)["process"]["spec"]["triggers"][0]["authenticationRef"]
        assert reference == {"kind": "ClusterTriggerAuthentication", "name": "company-redis"}

    def test_an_open_redis_needs_no_authentication(self) -> None:
        objects = rendered()
        assert not objects.of_kind("TriggerAuthentication")
        assert "authenticationRef" not in scaled_jobs(objects)["process"]["spec"]["triggers"][0]
        assert (
            environment(dict(objects.pods())["faces-process"], objects)["REDIS_URL"] == "redis://redis.party.svc:6379/0"
        )

    def test_no_credential_appears_outside_secrets(self) -> None:
        values = CASES["tls-inline"]
        hidden = [values["redis"]["auth"]["password"], values["redis"]["tls"]["privateKey"], values["database"]["url"]]
        for item in rendered("tls-inline").objects:
            if item["kind"] != "Secret":
                text = yaml.safe_dump(item, allow_unicode=True)
                assert not any(secret.strip() in text for secret in hidden)


def _certificates(pod: Object, objects: Rendered) -> dict[str, tuple[str, str]]:
    """Return KEDA's parameter → (Secret, key) for each file that the URL names, looked up in the mounted volume."""
    query = dict(parse_qsl(urlsplit(environment(pod, objects)["REDIS_URL"]).query))
    options = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
    wanted = {parameter: query[option] for parameter, option in options.items() if option in query}
    if not wanted:
        return {}
    (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "redis-tls")
    (mount,) = (mount for mount in pod["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "redis-tls")
    keys_of = {f"{mount['mountPath']}/{item['path']}": item["key"] for item in volume["secret"]["items"]}
    return {parameter: (volume["secret"]["secretName"], keys_of[path]) for parameter, path in wanted.items()}


def notes(case: str) -> str:
    """Return the notes of an install. Only helm 4 prints them without a cluster."""
    arguments = ["--values", str(CASE_FILES / f"{case}.yaml")] if case != "defaults" else []
    printed = helm(
        binaries.HELM_4, "install", "faces", str(CHART), "--namespace", "party", "--dry-run=client", *arguments
    )
    return printed.partition("\nNOTES:\n")[2]


@EVERY_CASE
def test_the_notes_contain_only_valid_commands(case: str) -> None:
    printed = notes(case)
    for action in ("Check", "Watch", "Pause", "Resume", "Requeue"):
        assert re.search(rf"^{action}  ", printed, re.MULTILINE)
    commands = [line.partition("spottmee-worker ")[2] for line in printed.splitlines() if "  spottmee-worker " in line]
    operator = "dead" if case == "openshift" else "exec"
    assert [command.split()[0] for command in commands if "debug" not in command] == ["status", operator, operator]
    for command in commands:
        parser = cli._parser()
        assert parser.parse_args(command.split()).run, command
    pods = int(printed.partition("--max-log-requests ")[2].split()[0])
    specs = [item["spec"] for item in rendered(case).of_kind("ScaledJob")]
    assert pods > sum(spec["maxReplicaCount"] + spec["successfulJobsHistoryLimit"] for spec in specs)
    suspended = [item for item in rendered(case).of_kind("CronJob") if item["spec"].get("suspend")]
    assert re.findall(r"--from=cronjob/(\S+)", printed) == [item["metadata"]["name"] for item in suspended]
    assert ("PAUSED" in printed) == (case == "one-list")
