"""Progress of a command: only on a terminal, with and without rich."""

from __future__ import annotations

import sys

import pytest

from runner.cli.counter import Counter, counter


def count_to(total: int, shown: Counter) -> None:
    shown.start(total)
    for done in range(1, total + 1):
        shown.update(done)
    shown.close()


def test_no_progress_is_shown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    count_to(50, counter("photos"))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("has_rich", [True, False])
def test_progress_on_a_terminal_is_redrawn_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, has_rich: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not has_rich:  # as in the image
        monkeypatch.setitem(sys.modules, "runner.cli.progress_bar", None)
    count_to(50, counter("photos"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "photos" in shown.err
    assert ("50/50" if has_rich else "\rphotos: 50 of 50") in shown.err
    assert shown.err.removesuffix("\x1b[?25h").endswith("\n")
