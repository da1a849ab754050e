"""Runs the commands of the documentation on a given cluster, in order, and reports which ones fail.

    python -m tests.e2e.follow_docs --set NAMESPACE=party --set RELEASE=faces [--as-reader] [PAGE…]

Only blocks marked `<!-- not run: needs a cluster -->` are run, each in a shell of its own at the repository's root,
with kubectl, helm and spottmee-worker from PATH and the cluster of KUBECONFIG. A block must succeed, or, where the
marker ends in `; exits with N`, end with that exit code. `--set OLD=NEW` replaces text of the
pages; NEW may be a shell expression, such as $(kubectl …). A block with a placeholder without a value is skipped.
`--as-reader` uses an account that has only the Role of docs/how-to/debugging.md, for the pages that say that it
suffices. `--transcript FILE` writes the commands with their output as Markdown. Of the runbook, the commands in its
sentences are run as well.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.e2e.roles import role
from tests.support.pages import Block, name_of, shell_blocks
from tools.prose import ROOT

RUNBOOK = "docs/how-to/runbook.md"
PAGES = (
    "docs/tutorial/kind.md",
    "docs/how-to/kubernetes.md",
    "docs/how-to/debugging.md",
    "docs/how-to/single-job.md",
    "docs/how-to/gitops.md",
    "docs/how-to/upgrading.md",
    RUNBOOK,
)
# Those whose reader has the Role of debugging.md, and is no administrator.
FOR_READERS = ("docs/how-to/debugging.md", "docs/how-to/single-job.md")
REASON = re.compile(r"needs a cluster(?:; exits with (?P<code>\d+))?")
# The cluster is there already, with KEDA and the image.
PROVIDED = re.compile(r"^(kind|docker) |kedacore/keda")
ENDLESS = re.compile(r"--watch\b|--follow\b")
ENDLESS_SECONDS, SECONDS = 15, 300
_PLACEHOLDERS = re.compile(
    r"\b(?:[A-Z]+_ID|IMAGE_URL|NAMESPACE|RELEASE|REGISTRY|POD)\b|…"
    r"|(?<=[ /])(?:CODE|COMMAND|ID|JOB|NODE|TEMPLATE)(?=\s|$)"
)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"`((?:kubectl|spottmee-worker)\s[^`]+)`")
# Where the runbook's commands run that name no cluster, as it says.
IN_METRICS_POD = "kubectl --namespace NAMESPACE exec deploy/RELEASE-metrics -- "
_TIMED_OUT = 124
READER = "docs-reader"
DEFAULTS = {
    "POD": "$(kubectl --namespace NAMESPACE get pods --selector app.kubernetes.io/instance=RELEASE"
    " --sort-by .metadata.creationTimestamp --output name | tail -1 | cut -d/ -f2)",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a block: its commands as run, their output, and the exit code (None: skipped, and why)."""

    block: Block
    commands: str
    output: str
    code: int | None

    @property
    def ok(self) -> bool:
        """Whether the block ended as the page says, or was skipped."""
        marker = REASON.fullmatch(self.block.reason or "")
        return self.code in (None, int(marker["code"] or 0) if marker else 0)

    def line(self) -> str:
        """Return the outcome in one line."""
        first = next(iter(self.commands.splitlines()), "")
        verdict = "skipped" if self.code is None else "ok" if self.ok else f"FAILED ({self.code})"
        return f"{verdict:12} {name_of(self.block.page)}: {first}"


def commands_of(block: Block) -> str:
    """Return the commands of a block without those that make what is provided."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    return "\n".join(line for line in joined.splitlines() if not PROVIDED.search(line))


def replaced(commands: str, given: Mapping[str, str]) -> str:
    """Return the commands with the placeholders' values; a value may name other placeholders."""
    values = DEFAULTS | dict(given)
    for _ in range(2):
        for old, new in values.items():
            pattern = rf"(?<![A-Z_]){re.escape(old)}(?![A-Z_])"
            commands = re.sub(pattern, new.replace("\\", r"\\"), commands)
    return commands


def follow(block: Block, given: Mapping[str, str], environment: Mapping[str, str]) -> Outcome:
    """Run one block."""
    commands = replaced(commands_of(block), given)
    if missing := sorted(set(_PLACEHOLDERS.findall(commands))):
        return Outcome(block, commands, f"no value for {', '.join(missing)} (--set)", None)
    if not commands.strip():
        return Outcome(block, commands, "the cluster has it already", None)
    endless = bool(ENDLESS.search(commands))
    limit = ENDLESS_SECONDS if endless else SECONDS
    done = subprocess.run(
        ["timeout", str(limit), "bash", "-euo", "pipefail", "-c", commands],
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    code = 0 if endless and done.returncode == _TIMED_OUT else done.returncode
    return Outcome(block, commands, done.stdout, code)


def blocks_of(pages: Iterable[str]) -> Iterator[Block]:
    """Yield the blocks that need a cluster, page by page."""
    for page in pages:
        yield from (block for block in shell_blocks(ROOT / page) if REASON.fullmatch(block.reason or ""))
        if page == RUNBOOK:
            yield from sentence_blocks(ROOT / page)


def sentence_blocks(page: Path) -> Iterator[Block]:
    """Yield each command that stands in a sentence of a page."""
    for found in _COMMAND.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        command = " ".join(found.split())
        if command.startswith("spottmee-worker") and "--namespace" not in command:
            command = IN_METRICS_POD + command
        yield Block(page, "sh", f"{command}\n", "needs a cluster")


def reader(namespace: str, folder: Path) -> Path:
    """Return the kubeconfig of an account that has only the documented Role."""

    def kubectl(*arguments: str, text: str | None = None) -> str:
        command = ["kubectl", "--namespace", namespace, *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER}}
    documented = yaml.safe_load(role())
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": READER},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": documented["metadata"]["name"]
        },
        "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": namespace}],
    }  # fmt: skip
    kubectl("apply", "--filename", "-", text=yaml.safe_dump_all([account, documented, binding]))
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    config["users"][0]["user"] = {"token": kubectl("create", "token", READER, "--duration", "1h").strip()}
    path = folder / "reader.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def transcript(outcomes: Iterable[Outcome]) -> str:
    """Return the commands and their output as Markdown."""
    return "\n".join(
        f"## {outcome.line()}\n\n```console\n{outcome.commands}\n---\n{outcome.output.rstrip()}\n```\n"
        for outcome in outcomes
    )


def main(argv: list[str] | None = None) -> int:
    """Follow the pages; return 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--set", action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("--as-reader", action="store_true")
    parser.add_argument("--transcript", type=Path)
    args = parser.parse_args(argv)
    given = dict(item.split("=", 1) for item in args.set)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = reader(given["NAMESPACE"], Path(folder)) if args.as_reader else None
        for block in blocks_of(args.pages or PAGES):
            environment = dict(os.environ)
            if kubeconfig and name_of(block.page) in FOR_READERS:
                environment["KUBECONFIG"] = str(kubeconfig)
            outcomes.append(follow(block, given, environment))
            print(outcomes[-1].line(), flush=True)
            if not outcomes[-1].ok or outcomes[-1].code is None:
                print("             " + outcomes[-1].output.strip()[-1000:].replace("\n", "\n             "))
    if args.transcript:
        args.transcript.write_text(transcript(outcomes), encoding="utf-8")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
