"""`exec`, with the client of Kubernetes."""

from __future__ import annotations

import argparse

import yaml

from runner import output
from runner.cli.debug_cluster import read_template
from runner.cluster.api import Cluster, Object
from runner.cluster.template_job import TemplateJob, find_template, job_from
from runner.errors import ClusterError

# Resources for an operator's command; the template requests those of a run, which a full cluster may not have.
_REQUESTS = {"cpu": "100m", "memory": "128Mi"}


def exec_in_cluster(args: argparse.Namespace) -> int:
    """Run the command as a Job, print its output, and return its exit code."""
    if args.dry_run and args.template:  # needs no cluster
        return _dry_run(command_job(read_template(args.template, args.release), args.argument))
    cluster = Cluster.connect(context=args.context, namespace=args.namespace)
    template = read_template(args.template, args.release) if args.template else find_template(cluster, args.release)
    manifest = command_job(template, args.argument)
    if args.dry_run:
        return _dry_run(manifest)
    with TemplateJob(cluster, manifest, keep=args.keep, say=output.problem) as run:
        run.start()
        job, pod = run.end(args.timeout, show=output.line)
    if args.keep:
        output.problem(
            f"Job {run.name} was not deleted: kubectl --namespace {cluster.namespace} describe job {run.name}"
        )
    if pod is None or pod.exit_code is None:
        reason = "; ".join(filter(None, [job.reason, pod.reason if pod else "it had no pod"]))
        raise ClusterError(f"Job {run.name} ended without running the command: {reason}")
    return pod.exit_code


def command_job(template: Object, arguments: list[str]) -> Object:
    """Return the Job that runs spottmee-worker with `arguments`, made from the CronJob `template`.

    Raises `ClusterError` if the template is not a CronJob with a container.
    """

    def replace_command(_: Object, container: Object) -> None:
        container["args"] = arguments
        resources = container.get("resources") or {}
        container["resources"] = resources | {"requests": (resources.get("requests") or {}) | _REQUESTS}

    return job_from(template, replace_command)


def _dry_run(manifest: Object) -> int:
    output.lines(yaml.safe_dump(manifest, sort_keys=False).splitlines())
    return 0
