"""The documentation matches the code: generated parts, links, files, commands, values."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from runner import cli
from tests.support.pages import blocks, name_of, shell_blocks
from tools import chart_docs, docs
from tools.prose import PAGES, ROOT, wrapped

README_LINES = 110
_LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)")
_FILE = re.compile(r"`((?:runner|tests|docs|docker|helm|k8s|keda|requirements)/[\w./*-]+)`")
_COMMAND = re.compile(r"(?:^|-- |&& |\|\| |\| )(?:[A-Z_]+=\S+ )*(?:\S*/)?spottmee-worker +(?!-t )([^|&<>]+)")
_MAKE = re.compile(r"(?:^|&& )make ([a-z][a-z0-9-]*)", re.MULTILINE)


@pytest.mark.parametrize("name", docs.PAGES)
def test_the_generated_parts_of_a_reference_page_are_current(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == docs.renewed(text, docs.PAGES[name]), "run `make docs`"


@pytest.mark.parametrize("path", chart_docs.PAGES, ids=lambda path: path.parent.name)
def test_the_tables_of_chart_values_are_current(path: Path) -> None:
    values = (chart_docs.CHART / "values.yaml").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert text == chart_docs.page(text, values), "run `make docs`"


def test_the_schema_of_the_chart_is_current() -> None:
    values, schema = (
        (chart_docs.CHART / name).read_text(encoding="utf-8") for name in ("values.yaml", "values.schema.json")
    )
    assert schema == chart_docs.schema(schema, values), "run `make docs`"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_the_readme_lists_every_command() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) == set(cli.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_of_a_page_belongs_to_a_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_is_wrapped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == wrapped(text), "run `make docs`"


def test_wrapping_does_not_change_code_tables_and_generated_parts() -> None:
    long = "word " * 30
    kept = f"```sh\n{long}\n```\n\n| {long} |\n\n<!-- settings: generated -->\n\n{long}\n\n<!-- /settings -->\n"
    assert wrapped(kept) == kept
    lines = wrapped(f"- {long}`{'code ' * 10}` end\n- second\n").splitlines()
    assert [line[:2] for line in lines] == ["- ", "  ", "  ", "- "]
    assert any(f"`{'code ' * 10}`" in line for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = _FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


@pytest.mark.parametrize("page", [page for page in PAGES if shell_blocks(page)], ids=name_of)
def test_commands_on_a_page_are_understood(page: Path) -> None:
    """Even if they cannot run here: the worker's own parser accepts them, and make has the targets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    parser = cli._parser()
    for block in shell_blocks(page):
        text = re.sub(r" +#.*$", "", block.text.replace("\\\n", " "), flags=re.MULTILINE)
        for line in text.splitlines():
            for arguments in _COMMAND.findall(line):
                with contextlib.redirect_stderr(io.StringIO()) as complaint:
                    try:
                        parser.parse_args(shlex.split(arguments))
                    except SystemExit:
                        pytest.fail(f"{line}\n{complaint.getvalue()}")
        for target in _MAKE.findall(text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_of_a_page_exist(page: Path) -> None:
    named = re.findall(r"`spottmee-worker ([\w-]+)", page.read_text(encoding="utf-8"))
    assert set(named) <= {*cli.COMMANDS, "COMMAND", "--version"}


@pytest.mark.parametrize("page", ["kubernetes.md", "gpu.md"])
def test_values_on_a_page_are_values_of_the_chart(page: str) -> None:
    defaults = yaml.safe_load((chart_docs.CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((chart_docs.CHART / "values.schema.json").read_text(encoding="utf-8"))
    examples = [block.text for block in blocks(ROOT / "docs" / "how-to" / page) if block.language == "yaml"]
    assert examples
    for example in examples:
        jsonschema.validate(_merged(defaults, yaml.safe_load(example)), schema)


def _merged(defaults: Any, values: Any) -> Any:
    """Return `values` over `defaults`, as helm merges them."""
    if not isinstance(defaults, dict) or not isinstance(values, dict):
        return values
    return {**defaults, **{key: _merged(defaults.get(key), value) for key, value in values.items()}}
