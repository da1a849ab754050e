"""Fixtures of the chart's tests: helm and kubectl, and both versions of helm as a parameter."""

from __future__ import annotations

import pytest

from tools import binaries


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    """Fetch helm and kubectl before the first test; skip only on a platform that they are not fetched for."""
    if not binaries.is_supported():
        pytest.skip(
            "helm and kubectl are fetched as x86-64 Linux binaries (tools/binaries.py); this is another platform"
        )
    for tool in binaries.TOOLS:
        binaries.ensure(tool)


@pytest.fixture(params=[binaries.HELM_3, binaries.HELM_4], ids=lambda tool: f"helm-{tool.version}")
def helm_tool(request: pytest.FixtureRequest) -> binaries.Tool:
    tool: binaries.Tool = request.param
    return tool
