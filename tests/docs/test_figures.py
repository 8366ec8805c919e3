"""The measured figures of README and docs are those of the committed results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import figures  # noqa: E402

GENERATED = ("api.md", "arguments.md", "refused-teachers.md")  # compared with the code elsewhere
PROSE = [page for page in figures.PAGES if page.name not in GENERATED]

NUMBER = r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?\**"
UNITS = r"F1|times|points?|k?B|[MG]i?B|m?s|(?:milli)?seconds?|CPU|minutes?|hours?"
WITH_UNIT = rf"{NUMBER}(?= ?(?:(?:{UNITS})\b|%|×(?! ?\d)))"
WITH_DECIMALS = r"(?<![\w.-])\d+\.\d+(?![\w.])"

SETTINGS = ("moving-over.md", "recipes.md", "temperature-and-weight.md")
"""Pages whose numbers with decimals are options and their defaults."""
NOT_MEASURED = (
    r"\b95 % (?=interval)",
    r"(?:Haystack|PEFT|Python|PyTorch|transformers)(?: \d+\.\d+(?: and \d+\.\d+)?)",
)
ALLOWED = {
    "README.md": ("Python 3.10+",),
    "augmentation.md": (
        "from 75.6 to 68.4 (Jiao et al. 2020",
        "with probability 0.4",
        "GloVe 6B",
        "15 % of its\ntokens at most",
    ),
    "RESULTS.md": (
        "(10 % warm-up,",
        "(aim 97 %)",
        "(aim 85 %)",
        "their aim of 98 %",
        "at weight 0.03",
        "first one at 2 times",
        "in a trial at 3 times",
        "models' own (0.1)",
        "(T 2, weight 0.5)",
        "*× 2.00* is an update",
        "of one with 0.1;",
        "dropout 0.1 (that of",
        "(aim: 1.08)",
        "40 % of the words,",
        "temperature 2, weight 0.5; reading",
        "weight 0.7, T = 10",
    ),
    "cached-teacher-outputs.md": (
        "95 %\ninterval",
        "within 0.2 % of the live teacher's distillation loss",
        "`bfloat16` to 2 %",
    ),
    "intermediate-layers.md": ("75.6 on average with attention and 71.0 without", "256 MiB"),
    "interruptions.md": ("kills its processes after 30 seconds",),
    "other-tokenizers.md": ("less than 1 % left",),
    "peers.md": ("| 3.10, 2026-09 |", "whether 3.10 still has"),
    "report.md": (
        "95% intervals",
        "5% means that a prediction of 90% is right some 85% or 95% of the time",
    ),
    "security.md": ("more than 1 MB",),
    "serving.md": ("points (1.0 by default)",),
    "shrink.md": (
        "4 and 1.0; for classification",
        "weight 0.5;",
        "weight 0.5 or 1.0,",
        "1.5 times or more",
    ),
    "tasks.md": ("wav2vec 2.0",),
    "teacher-column.md": ("be off by 0.01",),
}
"""Phrases with options, limits, versions, or what a cited paper measured."""


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_marked_figures_are_those_of_their_files(page: Path) -> None:
    wrong = [
        f"{page.name}:{one.line}: {one.written} is written, {one.computed} is in the results"
        for one in figures.marked(page)
        if one.written != one.computed
    ]
    assert wrong == [], "run python docs/figures.py"


def test_there_are_marked_figures() -> None:
    assert sum(len(list(figures.marked(page))) for page in PROSE) > 100


def unmarked(page: Path) -> list[str]:
    """What looks like a measured figure and has no mark, with page, line and surroundings."""
    text = page.read_text(encoding="utf-8")
    hidden = [(one.start, one.end) for one in figures.marked(page)]
    hidden += [
        found.span()
        for pattern in (
            *NOT_MEASURED,
            r"^```.*?^```",
            r"^    .*?$",
            r"`[^`]*`",
            r"\]\([^)]*\)",
            r"<!-- generated: ([\w-]+) -->.*?<!-- end: \1 -->",
            r"<!-- (\w+): begin -->.*?<!-- \1: end -->",  # see test_tables.py
            r"<!--.*?-->",
            *map(re.escape, ALLOWED.get(page.name, ())),
        )
        for found in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    ]
    for start, end in hidden:
        text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    pattern = WITH_UNIT if page.name in SETTINGS else f"{WITH_UNIT}|{WITH_DECIMALS}"
    return [
        f"{page.name}:{text.count(chr(10), 0, one.start()) + 1}: "
        f"{text[one.start() - 15 : one.end() + 15]!r}"
        for one in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_measured_figures_are_marked(page: Path) -> None:
    assert unmarked(page) == [], "see docs/figures.py: mark it, or allow the phrase in this test"


def test_allowed_phrases_are_on_their_pages() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in PROSE}
    assert [
        one for name, phrases in ALLOWED.items() for one in phrases if one not in pages[name]
    ] == []


def test_a_new_figure_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for figure in (
        "F1 71.3",
        "71 F1",
        "12 %",
        "twice: 2 × the speed",
        "30 CPU seconds",
        "4 s",
        "| **9.1** |",
    ):
        page.write_text(f"It has {figure}, `12 %`, ACL 2020, SQuAD v2.0, 4 layers, 3 × 192.\n")
        assert len(unmarked(page)) == 1, figure


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ('one("x/a")', ""),
        ('one("y/a")', "no y.json"),
        ('one("x/b")', "there is no 'b'"),
        ('one("x/list/*")', "'x/list/*' names 2 values"),
        ('one("x/name")', "'n' is not a number"),
        ('one("x/a"), one("x/a")', "2 figures, and 1 in front"),
    ],
)
def test_a_mark_that_cannot_be_computed_is_refused(
    mark: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": 1234.56, "list": [1, 2], "name": "n"}))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"One line.\nAbout **1,200.0** s<!-- = {mark} -->.\n")
    if what:
        with pytest.raises(ValueError, match=f"page.md:2: .*{re.escape(what)}"):
            figures.renew(page)
    else:
        assert [one.written for one in figures.marked(page)] == ["1,200.0"]
        assert figures.renew(page) == page.read_text().replace("1,200.0", "1,234.6")
