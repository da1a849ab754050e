"""Fixtures of the unit tests."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _same_random_numbers_whatever_ran_before() -> None:
    """Start each test's random graphs and images anew: xdist runs the files in another order each time."""
    tools = sys.modules.get("tests.support.graph_tools")  # only the tests of graphs pay for importing onnx
    if tools is not None:
        tools.RNG.bit_generator.state = tools.SEEDED
