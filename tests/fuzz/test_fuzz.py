"""A short run of every target (`make fuzz` is the long one), and tests that a campaign notices every failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.targets import TARGETS, Target

INPUTS = 1500
# Outcomes that a short run must reach: otherwise no failure would mean nothing.
REACHED = {
    "payload": {"refused refused", "ProcessJob refused", "refused CompareJob"},
    "image": {
        *(
            f"decoded {name}"
            for name in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG 2000", "PNM")
        ),
        "image_undecodable",
        "image_too_many_pixels",
    },
    "setting": {"refused", "read"},
    "text": {"as it is", "escaped"},
    "url": {"refused", "internal", "public", "a name"},
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_gives_a_valid_result_or_a_typed_error(name: str, tmp_path: Path) -> None:
    outcome = campaign.run(name, seed=2, inputs=INPUTS, keep=tmp_path)
    assert outcome.failures == []
    assert outcome.inputs == INPUTS == sum(outcome.words.values())
    assert set(outcome.words) >= REACHED[name]
    assert max(outcome.words.values()) < INPUTS * 0.8


def test_seed_and_number_reproduce_an_input() -> None:
    for target in TARGETS.values():
        assert campaign.make_input(target, 3, 4) == campaign.make_input(target, 3, 4)
        assert len({campaign.make_input(target, 3, number) for number in range(50)}) > 25


def _raise() -> None:
    raise KeyError("untyped")


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _stall() -> None:
    time.sleep(60)


def _troubled(trouble: Callable[[], None]) -> Target:
    def check(data: bytes) -> str:
        if data == b"3":
            trouble()
        return "fine"

    return Target("trouble", check, lambda random: b"%d" % random.randrange(20), lambda _random, data: data, list)


RAISES, CRASHES, STALLS = _troubled(_raise), _troubled(_crash), _troubled(_stall)


@pytest.mark.parametrize(
    ("attribute", "sentence"), [("RAISES", "ended with 1"), ("CRASHES", "ended with -11"), ("STALLS", "stalled")]
)
def test_the_input_of_a_child_that_fails_is_kept(
    attribute: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One stall is enough, of as many seconds as the other inputs may take on a busy machine.
    count = 60 if attribute != "STALLS" else 40
    monkeypatch.setattr(campaign, "STALLED_SECONDS", 30.0 if attribute != "STALLS" else 5.0)
    inputs = [campaign.make_input(RAISES, 1, number) for number in range(count)]
    troubling = [number for number, data in enumerate(inputs) if data == b"3"]
    assert 1 <= len(troubling) < 10
    outcome = campaign.run(f"{__name__}:{attribute}", seed=1, inputs=count, keep=tmp_path)
    assert len(outcome.failures) == len(troubling)
    assert outcome.inputs == count
    assert all(sentence in failure for failure in outcome.failures)
    assert {file.name for file in tmp_path.iterdir()} == {f"{attribute}-1-{number}" for number in troubling}
    assert {file.read_bytes() for file in tmp_path.iterdir()} == {b"3"}
    assert attribute != "RAISES" or "KeyError: 'untyped'" in outcome.failures[0]
    assert attribute != "CRASHES" or "Fatal Python error: Segmentation fault" in outcome.failures[0]
