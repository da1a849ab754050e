"""The command line: which modules a command imports, and that its help is complete."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runner import cli

# Writes the modules of the command line that are loaded, and heavy packages, when the help has been printed.
CHILD = """
import json, sys
from runner import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
heavy = {"kubernetes", "onnxruntime", "psycopg", "redis", "rich"} & set(sys.modules)
own = {name for name in sys.modules if name.startswith("runner.cli.")}
print(json.dumps([code, sorted(heavy), sorted(own)]), file=sys.stderr)
"""


def _loaded(*arguments: str) -> tuple[int, list[str], list[str]]:
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    code, heavy, own = json.loads(done.stderr.splitlines()[-1])
    return code, heavy, own


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: choice
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, choice in action.choices.items()
    }


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = _subcommands(parser)
    yield from (leaf for choice in below.values() for leaf in _leaves(choice))
    if not below:
        yield parser


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), ([], 2), (["unknown"], 2)],
)
def test_the_general_help_imports_no_command(arguments: list[str], code: int) -> None:
    assert _loaded(*arguments) == (code, [], [])


def test_a_command_imports_no_other_command() -> None:
    code, heavy, own = _loaded("models", "--help")
    assert (code, heavy, own) == (0, [], ["runner.cli.models"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_general_help_lists_every_command_for_any_command(name: str) -> None:
    overview = cli._parser(())
    complete = cli._parser({name})
    assert list(_subcommands(complete)) == list(cli.COMMANDS)
    assert complete.format_help() == overview.format_help()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_argument_of_a_command_has_help(name: str) -> None:
    for parser in _leaves(_subcommands(cli._parser())[name]):
        assert callable(parser.get_default("run")), parser.prog
        without = [action.dest for action in parser._actions if not action.help]
        assert without == [], parser.prog


def test_a_mistyped_command_is_named_with_a_pointer_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["runn"])
    assert "error: 'runn' is not a command; spottmee-worker --help lists them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "payload",
    [
        r'{"jobId": "\u00e9", "selfie": "QUJD=="}', "QUJD" * 100, "QUJD" * 10_000, "QUJD//" * 100,
        "redis://user:QUJD@redis/0", "postgresql://u:pass/QUJD@db/x", "redis://h?sentinel_password=QUJD",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["exec"], []),
        (["run", "--queues"], []),
        (["run", "--max-jobs"], []),
        (["dead", "show"], []),
        (["debug", "--photo"], []),
        (["debug", "--local", "--job", "{}", "--save-image"], []),
        (["debug", "--job", '{"imageUrl": "https://h/a.jpg", "id": "p"}', "--dry-run", "--template"], []),
        (["simulate", "--values"], ["--csv", "a.csv"]),
        (["simulate", "--csv"], []),
        (["evaluate"], []),
        (["metrics", "--port"], []),
        (["reprocess", "--code"], []),
        (["status", "--interval"], []),
        (["status"], []),
    ],
)
def test_a_payload_in_place_of_another_argument_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    after: list[str],
    payload: str,
) -> None:
    monkeypatch.setenv("RUNNER_FAILURE_DELAY_SECONDS", "0")
    try:
        code = cli.main([*before, payload, *after])
    except SystemExit as error:
        code = int(str(error))
    printed = capsys.readouterr()
    assert (code, "QUJD" in printed.out + printed.err) == (2, False)


def test_exec_rejects_an_argument_with_a_selfie(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["exec", "--", "debug", "--local", "--job", '{"jobId": "j", "selfie": "QUJD"}']) == 2
    shown = capsys.readouterr().err
    assert ("pass the job to `spottmee-worker debug`" in shown, "QUJD" in shown) == (True, False)


@pytest.mark.parametrize("payload", ['{"jobId": "j", "selfie": "QUJD"}', "QUJD" * 100, "redis://:QUJD@redis"])
def test_a_payload_in_place_of_a_command_is_not_repeated(capsys: pytest.CaptureFixture[str], payload: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([payload])
    assert "QUJD" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "longest", "too_long"),
    [
        (["reprocess", "--older-than"], "3650d", "3651d"),
        (["reprocess", "--older-than"], "87600h", "999999999d"),
        (["dead", "list", "--newer-than"], "3650d", "3650.001d"),
        (["debug", "--photo", "p", "--timeout"], "1000000", "1000001"),
        (["status", "--interval"], "1000000", "1e300"),
    ],
)
def test_a_time_that_no_clock_can_represent_is_rejected(
    capsys: pytest.CaptureFixture[str], command: list[str], longest: str, too_long: str
) -> None:
    cli._parser().parse_args([*command, longest])
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, too_long])
    assert f"argument {command[-1]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["import-legacy", "--model", "m", "--table", "\udcff"],
        ["reprocess", "--url", "https://x/\udcff{id}"],
        ["debug", "--photo", "p", "--url", "https://x/\udcff"],
        ["dead", "requeue", "--code", "unexpected", "--code", "\udcff"],
        ["exec", "--", "dead", "show", "\udcff"],
        ["status", "--namespace", "\udcff"],
        ["metrics", "--once", "--allowed-host", "\udcff"],
        ["metrics", "--once", "--host", "\udcff"],
        ["run", "--queues", "\udcff"],
    ],
)
def test_an_argument_that_is_not_utf8_is_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/x")
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert "is not valid UTF-8" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["exec", "--dry-run", "--template", "\udcff", "--", "doctor"], 2),
        (["debug", "--job", '{"imageUrl": "https://h/a.jpg", "id": "p"}', "--local", "--save-image", "/\udcff/x"], 2),
        (["debug", "--job", "\udcff", "--dry-run"], 5),
        (["simulate", "--csv", "\udcff"], 2),
        (["evaluate", "\udcff"], 2),
        (["models", "bake", "--pack", "buffalo_l", "--source", "\udcff", "--out", "\udcff"], 4),
        (["models", "verify", "\udcff"], 4),
    ],
)
def test_a_file_name_may_be_any_bytes(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    assert cli.main(arguments) == code
    assert "not valid UTF-8" not in capsys.readouterr().err
