"""Graceful shutdown, and the watchdog that acts if the main thread cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from runner.worker import shutdown as module
from runner.worker.shutdown import Stop, StoppedEarlyError


class Calls(list[str]):
    """Records the reasons passed to the last resort; `heard` is set with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()

    def __call__(self, reason: str) -> None:
        self.append(reason)
        self.heard.set()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two instructions of this thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_claim_ends_the_start_up(number: signal.Signals, calls: Calls) -> None:
    stop = Stop(5, 60, calls)
    with pytest.raises(StoppedEarlyError), stop:
        _send(number)
    assert stop.early
    assert calls == []


def test_a_signal_after_the_start_up_requests_a_stop_and_wakes_the_loop(calls: Calls) -> None:
    woken = []
    with Stop(5, 60, calls) as stop:
        stop.wake = lambda: woken.append(True)
        stop.begin()
        assert not stop.overdue(0)
        _send(signal.SIGTERM)
        _send(signal.SIGTERM)  # the kubelet may send it again
        assert stop.requested
        assert not stop.early
        assert stop.overdue(0)
        assert not stop.overdue(3)
    assert woken == [True]
    assert calls == []


def test_the_watchdog_acts_when_the_grace_period_after_a_signal_is_over(calls: Calls) -> None:
    with Stop(0.2, 60, calls) as stop:
        stop.begin()
        _send(signal.SIGTERM)
        assert not calls.heard.wait(0.1)
        assert calls.heard.wait(60)
        assert calls[0] == "signal"


def test_the_watchdog_acts_when_the_main_thread_hangs(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCHDOG_SECONDS", 0.02)
    with Stop(5, 0.3, calls) as stop:
        stop.begin()
        for _ in range(20):
            time.sleep(0.03)
            stop.progress()
        assert calls == []
        assert calls.heard.wait(60)
        assert calls[0] == "hung"


def test_the_watchdog_thread_ends_with_the_block(calls: Calls) -> None:
    before = set(threading.enumerate())
    with Stop(5, 60, calls):
        (watchdog,) = set(threading.enumerate()) - before
        assert watchdog.daemon
    watchdog.join(60)
    assert not watchdog.is_alive()
    assert calls == []


LONG_GRACE = """
import os, signal, sys, time
from runner.worker import shutdown
shutdown.FROZEN_SECONDS = 0.5
with shutdown.Stop(60, 1, lambda reason: os._exit(3)) as stop:
    stop.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2.5)
print("finished")
"""


def test_a_grace_period_may_be_longer_than_a_hung_call() -> None:
    result = subprocess.run([sys.executable, "-c", LONG_GRACE], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "finished\n"), result.stderr
