"""The tables that come from the code are those of the code."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from hf_distill import DistillationTrainingArguments
from hf_distill.markdown import markdown_table
from hf_distill.recipes import families, list_recipes

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_no_page_is_stale(page: Path, generate: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate.regenerate(text) == text, "run `python docs/generate.py`"


def test_every_part_is_on_a_page(generate: ModuleType) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    opened = re.findall(r"<!-- generated: ([\w-]+) -->\n", text)
    assert sorted(opened) == sorted(generate.PARTS)
    assert sorted(re.findall(r"<!-- end: ([\w-]+) -->", text)) == sorted(opened)


def test_a_stale_page_is_made_new(generate: ModuleType) -> None:
    page = "before\n<!-- generated: recipes -->\nold\n<!-- end: recipes -->\nafter\n"
    new = generate.regenerate(page)
    assert new.startswith("before\n") and new.endswith("\nafter\n")
    assert "old" not in new
    assert generate.regenerate(new) == new


def test_nothing_is_left_out(generate: ModuleType) -> None:
    arguments = generate.arguments()
    inherited = {field.name for field in fields(DistillationTrainingArguments.__base__)}
    own = [f.name for f in fields(DistillationTrainingArguments) if f.name not in inherited]
    assert "temperature" in own
    assert all(f"| `{name}` |" in arguments for name in own)
    assert all(f"`{name}`" in generate.recipes() for name in list_recipes())
    students = generate.students()
    for family in families().values():
        assert family.title in students
        assert all(student.id in students for student in family.students)
        assert all(remark in students for remark in family.remarks)


def test_cells_cannot_break_a_table() -> None:
    assert markdown_table(("a", "b"), [("x | y", "z")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x \\| y | z |",
    ]
