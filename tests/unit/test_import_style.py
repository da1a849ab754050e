"""Imports stand at the top of a module; the few that do not say why, and their number is bounded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import runner

ROOT = Path(runner.__file__).parent
MOST_DELAYED = 30
MOST_FOR_TYPES = 25


def _delayed(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """Yield each group of adjacent imports inside a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    group: list[ast.stmt] = []
    found = [node for node in inside if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(found, key=lambda node: node.lineno):
        if group and node.lineno - (group[-1].end_lineno or 0) > 1:
            yield group
            group = []
        group.append(node)
    if group:
        yield group


def _for_types(tree: ast.Module) -> list[ast.If]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]


def _has_reason(lines: list[str], first: int, last: int) -> bool:
    """Return whether a comment stands on one of the lines, which count from 1, or just before them."""
    return lines[first - 2].lstrip().startswith("#") or any("# " in line for line in lines[first - 1 : last])


def _places() -> tuple[dict[str, int], list[str], list[str]]:
    """Return place → number of delayed imports, the places of the blocks for types, and those without a reason."""
    delayed: dict[str, int] = {}
    for_types: list[str] = []
    unexplained: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text("utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        for group in _delayed(tree):
            place = f"{path.relative_to(ROOT)}:{group[0].lineno}"
            delayed[place] = len(group)
            if not _has_reason(lines, group[0].lineno, group[-1].end_lineno or 0):
                unexplained.append(place)
        for block in _for_types(tree):
            place = f"{path.relative_to(ROOT)}:{block.lineno}"
            for_types.append(place)
            if not _has_reason(lines, block.lineno, block.lineno):
                unexplained.append(place)
    return delayed, for_types, unexplained


@pytest.fixture(scope="module")
def places() -> tuple[dict[str, int], list[str], list[str]]:
    return _places()


def test_few_imports_stand_inside_functions(places: tuple[dict[str, int], list[str], list[str]]) -> None:
    assert 0 < sum(places[0].values()) <= MOST_DELAYED, places[0]


def test_few_blocks_import_for_types_alone(places: tuple[dict[str, int], list[str], list[str]]) -> None:
    assert 0 < len(places[1]) <= MOST_FOR_TYPES, places[1]


def test_each_import_that_is_not_at_the_top_says_why(places: tuple[dict[str, int], list[str], list[str]]) -> None:
    assert not places[2]
