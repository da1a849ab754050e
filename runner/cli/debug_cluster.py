"""`debug` without --local: a single job as a Job in the cluster."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml

from runner import output
from runner.cluster.api import COMPONENT_LABEL, RELEASE_LABEL, Cluster, Object
from runner.cluster.debug import DebugRun, dry_run
from runner.cluster.template_job import COMPONENT, find_template
from runner.errors import CheckFailedError, JobError, UsageError
from runner.worker.kinds import kind_of


def debug_in_cluster(payload: bytes, args: argparse.Namespace) -> int:
    """Run the job in the cluster, print its outcome, and return the exit code."""
    _check_payload(payload)
    if args.dry_run and args.template:  # needs no cluster
        return _dry_run(read_template(args.template, args.release), payload, args)
    cluster = Cluster.connect(context=args.context, namespace=args.namespace)
    template = read_template(args.template, args.release) if args.template else find_template(cluster, args.release)
    if args.dry_run:
        return _dry_run(template, payload, args)

    with DebugRun(cluster, template, payload, keep=args.keep, say=output.problem) as run:
        run.start()
        outcome = run.follow(args.timeout, show=output.problem)
    if args.json:
        output.document(outcome.document(), indent=2)
    else:
        output.line(outcome.line())
    if args.keep:
        output.problem(
            f"Job {run.name} was not deleted: kubectl --namespace {cluster.namespace} describe job {run.name}"
        )
    return 0 if outcome.ending == "succeeded" else CheckFailedError.exit_code


def _check_payload(payload: bytes) -> None:
    """Reject a payload that no run could process, before anything is created."""
    try:
        kind_of(payload).decode(payload)
    except JobError as error:
        raise CheckFailedError(str(error)) from None


def read_template(name: str, release: str | None) -> Object:
    """Return the CronJob for debug runs, of `release` if given, in a YAML file such as the output of `helm template`.

    A CronJob without the chart's label of its component counts as one. Raises `UsageError` unless there is exactly one.
    """
    cron_jobs = [item for item in _documents(name) if isinstance(item, dict) and item.get("kind") == "CronJob"]
    marked = [item for item in cron_jobs if _label(item, COMPONENT_LABEL) == COMPONENT]
    found = marked or [item for item in cron_jobs if not _label(item, COMPONENT_LABEL)]
    chosen = [item for item in found if not release or _label(item, RELEASE_LABEL) == release]
    what = f"CronJobs for debug runs{f' of release {release}' if release else ''}"
    if not chosen:
        raise UsageError(
            f"--template {name} contains no {what.replace('CronJobs', 'CronJob')}: pass the output of `helm template`, "
            "with the value debug.enabled true"
        )
    if len(chosen) > 1:
        releases = sorted({_label(item, RELEASE_LABEL) for item in chosen} - {""})
        advice = f"choose one with --release ({', '.join(releases)})" if len(releases) > 1 else "pass only one"
        raise UsageError(f"--template {name} contains several {what}: {advice}")
    return dict(chosen[0])


def _documents(name: str) -> list[Any]:
    try:
        if name == "-":
            return list(yaml.safe_load_all("" if sys.stdin is None else sys.stdin.read()))
        with open(name, encoding="utf-8") as file:  # noqa: PTH123 - the path as it was typed
            return list(yaml.safe_load_all(file))
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
        reason = error.strerror if isinstance(error, OSError) else "it is not valid YAML"
        raise UsageError(f"--template {name} cannot be read: {reason}") from None


def _label(item: Object, name: str) -> str:
    try:
        return str(item["metadata"]["labels"][name] or "")
    except (IndexError, KeyError, TypeError):  # it may be any YAML
        return ""


def _dry_run(template: Object, payload: bytes, args: argparse.Namespace) -> int:
    manifests = dry_run(template, payload)
    if args.json:
        output.document({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2)
    else:
        output.lines(yaml.safe_dump_all(manifests, sort_keys=False).splitlines())  # YAML escapes what is not ASCII
    return 0
