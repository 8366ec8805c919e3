"""Options, commands and headings that the documentation names exist; what it denies does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_distill.cli.main import COMMANDS, _program_parser, command_module

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of accelerate, Git, pip, pytest, TensorBoard and trackio.
FOREIGN = {"num_processes", "multi_gpu", "cpu", "config_file", "logdir", "mixed_precision"}


def parsers() -> dict[str, Any]:
    found = {name: command_module(name) for name in COMMANDS}
    return {name: module.build_parser() for name, module in found.items()} | {"": _program_parser()}


PARSERS = parsers()
OPTIONS = {
    spelling.lstrip("-").replace("-", "_")
    for parser in PARSERS.values()
    for action in parser._actions
    for spelling in action.option_strings
}


def options_in(text: str) -> set[str]:
    """The options that a text names, without those that end in an ellipsis."""
    named = re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)(?!…|[\w-])", text)
    return {name.replace("-", "_") for name in named}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    assert options_in(page.read_text(encoding="utf-8")) - OPTIONS - FOREIGN == set()


@pytest.mark.parametrize("name", PARSERS)
def test_options_that_help_texts_name_exist(name: str) -> None:
    ours = [a for a in PARSERS[name]._actions if a.help]
    text = "\n".join([PARSERS[name].epilog or "", *(str(action.help) for action in ours)])
    assert options_in(text) - OPTIONS - FOREIGN == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    named = set(re.findall(r"`hf-distill ([a-z][\w-]*)", page.read_text(encoding="utf-8")))
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles]
        assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def no_option(name: str) -> Callable[[], bool]:
    return lambda: name not in OPTIONS


DENIED = {
    "| `dev_split` |": no_option("dev_split"),
}
"""The beginnings of the lines that say that something is not there, with what shows it."""


def test_what_is_denied_is_not_there() -> None:
    lines = [
        line
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"not there(:| yet)|not yet|cannot be \w+ yet|not supported", line)
    ]
    for line in lines:
        (beginning,) = (one for one in DENIED if line.startswith(one))
        assert DENIED[beginning](), line
    assert len(lines) == len(DENIED)
