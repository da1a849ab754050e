"""The retry policy: what is retried, for how long, and with which delays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runner.retry import RetryPolicy, time_spent
from tests.support.clock import Clock
from tests.support.failing import Failing


def policy(seconds: float) -> RetryPolicy:
    return RetryPolicy(seconds, lambda error: isinstance(error, ConnectionError))


def test_an_operation_that_succeeds_is_called_once(clock: Clock) -> None:
    operation = Failing()
    assert policy(30).call(operation) == "done"
    assert (operation.calls, clock.waits) == (1, [])


def test_an_operation_is_retried_until_it_succeeds(clock: Clock) -> None:
    operation = Failing(*[ConnectionError() for _ in range(5)])
    calls, left = list[int](), list[float]()

    def prepare(seconds: float) -> None:
        calls.append(operation.calls)
        left.append(seconds)

    assert policy(30).call(operation, before_retry=prepare) == "done"
    assert (operation.calls, calls) == (6, [1, 2, 3, 4, 5])
    assert left == pytest.approx([30 - sum(clock.waits[:count]) for count in calls])


def test_waits_are_random_and_their_bound_doubles_to_three_seconds(clock: Clock) -> None:
    runs = []
    for _ in range(200):
        clock.waits = []
        assert policy(1000).call(Failing(*[ConnectionError() for _ in range(8)])) == "done"
        runs.append(clock.waits)
    longest = [max(waits) for waits in zip(*runs, strict=True)]
    shortest = [min(waits) for waits in zip(*runs, strict=True)]
    bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 3, 3, 3]
    assert all(0.8 * bound < wait <= bound for wait, bound in zip(longest, bounds, strict=True))
    assert all(0.05 <= wait < 0.5 * bound + 0.05 for wait, bound in zip(shortest, bounds, strict=True))


def test_no_attempt_begins_after_the_budget(clock: Clock) -> None:
    operation = Failing(*[ConnectionError(str(number)) for number in range(1000)])
    with pytest.raises(ConnectionError) as caught:
        policy(30).call(operation)
    assert str(caught.value) == str(operation.calls - 1), "the last failure is the one that is raised"
    assert 27 < clock.now < 30


def test_the_budget_begins_with_the_first_failure(clock: Clock) -> None:
    def slow() -> None:
        clock.now += 100
        raise ConnectionError

    with pytest.raises(ConnectionError):
        policy(100).call(slow)
    assert 200 <= clock.now < 201, "a second attempt, and no third"


def test_a_budget_of_zero_is_one_attempt(clock: Clock) -> None:
    operation = Failing(ConnectionError())
    with pytest.raises(ConnectionError):
        policy(0).call(operation)
    assert (operation.calls, clock.waits) == (1, [])


@pytest.mark.parametrize("earlier", [0, 1, 3])
def test_an_error_that_is_not_transient_is_raised_at_once(earlier: int, clock: Clock) -> None:
    lasting = ValueError("lasting")
    operation = Failing(*[ConnectionError() for _ in range(earlier)], lasting)
    with pytest.raises(ValueError, match="lasting") as caught:
        policy(30).call(operation)
    assert caught.value is lasting
    assert (operation.calls, len(clock.waits)) == (earlier + 1, earlier)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "tried once"), (0.04, "tried once"), (0.06, "tried for 0.1 s"), (5.02, "tried for 5.0 s"),
     (9.96, "tried for 10 s"), (40.4, "tried for 40 s")],
)  # fmt: skip
def test_the_time_spent_is_rounded(seconds: float, text: str) -> None:
    assert time_spent(seconds) == text


def test_tenacity_is_imported_by_the_first_failure() -> None:
    program = """
import sys
from runner.retry import RetryPolicy
calls = []
def work():
    calls.append("tenacity" in sys.modules)
    if len(calls) == 1:
        raise ConnectionError
RetryPolicy(1, lambda error: True).call(work)
print(calls)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[False, True]\n"
