"""The tables of ``benchmarks/RESULTS.md`` are those of the committed results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tables() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        before = set(sys.modules)
        import tables

        yield tables
        for name in set(sys.modules) - before:  # such as `report`: other tests may have their own
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def test_every_table_is_that_of_its_results(tables: Any) -> None:
    sections = tables.written()
    assert len(sections) >= 20
    other = [name for name, text in sections.items() if tables.RENDER[name]() != text]
    assert other == [], "run python benchmarks/tables.py"


def test_no_table_stands_outside_of_the_sections(tables: Any) -> None:
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    for section in tables.written().values():
        text = text.replace(section, "")
    assert [line for line in text.splitlines() if line.startswith("|")] == []
