"""`debug` without --local: a single job as a Job in the cluster."""

from __future__ import annotations

import argparse
import sys

import yaml

from runner import output
from runner.cluster.api import COMPONENT_LABEL, Cluster, Object
from runner.cluster.debug import DebugRun, dry_run
from runner.cluster.template_job import find_template
from runner.errors import CheckFailedError, JobError, UsageError
from runner.worker.kinds import kind_of


def debug_in_cluster(payload: bytes, args: argparse.Namespace) -> int:
    """Run the job in the cluster, print its outcome, and return the exit code."""
    _check_payload(payload)
    if args.dry_run and args.template:  # needs no cluster
        return _dry_run(read_template(args.template), payload, args)
    cluster = Cluster.connect(context=args.context, namespace=args.namespace)
    template = read_template(args.template) if args.template else find_template(cluster, args.release)
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


def read_template(name: str) -> Object:
    """Return the CronJob in a YAML file, which may contain other objects too, such as the output of `helm template`."""
    try:
        if name == "-":
            documents = list(yaml.safe_load_all(sys.stdin.read()))
        else:
            with open(name, encoding="utf-8") as file:  # noqa: PTH123 - the path as it was typed
                documents = list(yaml.safe_load_all(file))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid YAML"
        raise UsageError(f"--template {name} cannot be read: {reason}") from None
    found = [item for item in documents if isinstance(item, dict) and item.get("kind") == "CronJob"]
    if not (chosen := list(filter(_is_for_debug_runs, found)) or found):
        raise UsageError(f"--template {name} contains no CronJob: pass the output of `helm template`")
    return dict(chosen[0])


def _is_for_debug_runs(cron_job: Object) -> bool:
    try:
        return bool(cron_job["metadata"]["labels"][COMPONENT_LABEL] == "debug")
    except (IndexError, KeyError, TypeError):  # it may be any YAML
        return False


def _dry_run(template: Object, payload: bytes, args: argparse.Namespace) -> int:
    manifests = dry_run(template, payload)
    if args.json:
        output.document({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2)
    else:
        output.lines(yaml.safe_dump_all(manifests, sort_keys=False).splitlines())  # YAML escapes what is not ASCII
    return 0
