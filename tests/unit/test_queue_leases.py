"""The parts of the queue that need no server: owner names, backoff, reprs."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.queue.leases import HORIZON_SECONDS, Lease, backoff, exponential, owner_name
from runner.settings import load


def test_the_repr_of_a_lease_contains_no_payload() -> None:
    lease = Lease("id-1", "compare", b"a selfie", 1, holder="owner#word", bytes=8)
    assert "selfie" not in repr(lease)
    assert "id-1" in repr(lease)


def test_a_lease_knows_whether_its_payload_is_whole() -> None:
    assert not Lease("id", "process", b"12345", 1, bytes=5).truncated
    assert not Lease("id", "process", b"12345", 1).truncated
    assert Lease("id", "process", b"123", 1, bytes=5).truncated


def test_claimed_at_defaults_to_now() -> None:
    before = time.monotonic()
    assert before <= Lease("id", "process", b"", 1).claimed_at <= time.monotonic()


def test_owners_of_one_job_are_unique_and_share_a_prefix() -> None:
    one, two = owner_name("job-1"), owner_name("job-1")
    assert one != two
    assert one.rpartition("/")[0] == two.rpartition("/")[0]
    assert one.startswith("job-1/")
    assert one.count("/") == 2
    assert owner_name("").count("/") == 1


@given(st.text(min_size=1))
def test_special_characters_in_an_owner_name_are_escaped(name: str) -> None:
    try:
        owner = owner_name(name)
    except UnicodeEncodeError:  # lone surrogates: impossible in an environment variable
        return
    assert owner.count("/") == 2
    assert "#" not in owner
    assert not owner_name(name + "x").startswith(owner.partition("/")[0] + "/")


@given(st.integers(1, 100), st.floats(0, 3600), st.floats(0, 3600), st.randoms(use_true_random=False))
def test_backoff_grows_is_capped_and_has_jitter(attempts: int, base: float, cap: float, source: random.Random) -> None:
    longest = min(cap, base * 2.0 ** (attempts - 1))
    assert longest / 2 <= backoff(attempts, base=base, cap=cap, random=source) <= longest


@pytest.mark.parametrize("attempts", [1024, 1025, 10**6])
def test_backoff_stays_at_its_cap_however_many_attempts(attempts: int) -> None:
    """A photo that waits for its image server for a day can fail thousands of times, none of which is an attempt."""
    assert 30 <= backoff(attempts, base=0.001, cap=60, random=random.Random(1)) <= 60
    assert backoff(attempts, base=0, cap=60, random=random.Random(1)) == 0
    assert exponential(attempts, base=2, cap=15) == 15


def test_no_setting_lets_a_lease_or_a_retry_reach_beyond_the_horizon() -> None:
    urls = {"REDIS_URL": "redis://h", "DATABASE_URL": "postgresql://h/d"}
    limits = {"RUNNER_LEASE_SECONDS": str(HORIZON_SECONDS), "RUNNER_RETRY_MAX_SECONDS": str(HORIZON_SECONDS)}
    settings = load(urls | limits)
    assert (settings.lease_seconds, settings.retry_max_seconds) == (HORIZON_SECONDS, HORIZON_SECONDS)
