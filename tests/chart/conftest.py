"""Both helms, as a parameter of every test that renders."""

from __future__ import annotations

import pytest

from tests.chart import tools


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    """Fetch helm and kubectl before the first test. Only another kind of machine is a reason to leave them out."""
    if not tools.is_supported():
        pytest.skip(
            "helm and kubectl are fetched as x86-64 Linux binaries (tests/chart/tools.py); this is another machine"
        )
    for tool in tools.TOOLS:
        tools.ensure(tool)


@pytest.fixture(params=[tools.HELM_3, tools.HELM_4], ids=lambda tool: f"helm-{tool.version}")
def helm_tool(request: pytest.FixtureRequest) -> tools.Tool:
    tool: tools.Tool = request.param
    return tool
