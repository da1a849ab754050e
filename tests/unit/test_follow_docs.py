"""The script that types the documentation's commands on a cluster: what it runs, skips and reports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e import follow_docs
from tests.support.pages import Block
from tools.prose import ROOT


def followed(text: str, *, reason: str = "needs a cluster", **given: str) -> follow_docs.Outcome:
    block = Block(ROOT / "docs" / "how-to" / "single-job.md", "sh", text, reason)
    return follow_docs.follow(block, given, os.environ)


def test_commands_run_with_the_values_of_placeholders() -> None:
    done = followed("JOB=a-NAMESPACE\necho $JOB \\\n  POD\n", NAMESPACE="party", POD="$(echo pod-1)", RELEASE="faces")
    assert (done.output, done.code) == ("a-party pod-1\n", 0)


def test_the_first_failure_ends_a_block_and_is_reported() -> None:
    done = followed("echo before\nfalse\necho after\n")
    assert (done.output, done.code, done.ok) == ("before\n", 1, False)
    assert done.line() == "FAILED (1)   docs/how-to/single-job.md: echo before"


def test_a_block_must_end_with_the_exit_code_of_its_marker() -> None:
    reason = "needs a cluster; exits with 5"
    assert followed("exit 5\n", reason=reason).ok
    assert not followed("exit 0\n", reason=reason).ok
    assert not followed("exit 5\n").ok


def test_a_placeholder_without_a_value_skips_the_block() -> None:
    done = followed("echo NAMESPACE DEAD_ID …\n", NAMESPACE="party")
    assert (done.output, done.code) == ("no value for DEAD_ID, … (--set)", None)


def test_commands_for_existing_objects_are_skipped() -> None:
    done = followed("kind create cluster\ndocker build .\n")
    assert (done.output, done.code) == ("the cluster has it already", None)


def test_a_command_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_docs, "ENDLESS_SECONDS", 1)
    done = followed("echo seen; sleep 30 # --watch\n")
    assert (done.output, done.code) == ("seen\n", 0)


def test_every_page_has_commands_for_a_cluster_and_the_transcript_shows_them(tmp_path: Path) -> None:
    for page in follow_docs.PAGES:
        found = list(follow_docs.blocks_of([page]))
        assert found, page
        assert all((block.reason or "").startswith("needs a cluster") for block in found)
    text = follow_docs.transcript([followed("echo seen\n")])
    assert "```console\necho seen\n---\nseen\n```" in text


def test_the_commands_in_sentences_of_the_runbook_run_in_the_metrics_pod_unless_they_name_the_cluster() -> None:
    commands = [block.text for block in follow_docs.sentence_blocks(ROOT / follow_docs.RUNBOOK)]
    assert f"{follow_docs.IN_METRICS_POD}spottmee-worker sweep\n" in commands
    assert "spottmee-worker status --namespace NAMESPACE --release RELEASE\n" in commands
    assert "kubectl --namespace NAMESPACE logs job/JOB\n" in commands
    assert not any("`" in command for command in commands)


def test_a_runbook_command_without_values_is_skipped() -> None:
    done = followed("kubectl --namespace NAMESPACE logs job/JOB\n", NAMESPACE="party")
    assert (done.output, done.code) == ("no value for JOB (--set)", None)
