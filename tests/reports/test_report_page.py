"""The page of a report: safe, whole, the numbers that were measured and no others."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.reports.comparison import Comparison, Latency, ModelReport
from hf_distill.reports.comparison_plot import measured_axes, quality_figure
from hf_distill.reports.disagreements import find_disagreements
from hf_distill.reports.html_page import html_page
from hf_distill.reports.inline_svg import inline_svg
from hf_distill.reports.layer_similarity import similarity_figure
from hf_distill.reports.layout import lay_out
from hf_distill.reports.markdown_page import markdown_page
from hf_distill.reports.pages import write_comparison
from hf_distill.reports.report import (
    Decision,
    Grid,
    Picture,
    Report,
    Stage,
    Tile,
    write_report,
)
from hf_distill.tasks.base import ScoredRow
from hf_distill.tasks.calibration import Calibration

ATTACKS = (
    "<script>alert(1)</script>",
    '"onload="alert(1)',
    "' onmouseover='alert(1)",
    "</title></style></svg><img src=x onerror=alert(1)>",
    "<!-- ]]> --> &lt;b&gt; &#x3c;script&#x3e;",
    "javascript:alert(1)",
    "|a|b|\n# title\n```\n![x](https://example.org/x.png) $x^$",
    "\x00\x1b[31m\ud800\u202e",
)
VOID = {"meta", "br", "img", "hr", "link", "input"}
LOG = [
    {"step": 10, "loss": 2.0, "loss_task": 3.0, "loss_prediction": 1.5},
    {"step": 10, "eval_loss": 2.5, "eval_loss_task": 2.5, "eval_loss_prediction": 1.25},
    {"step": 20, "loss": 1.0, "loss_task": 2.0, "loss_prediction": 0.5},
]


class Reader(HTMLParser):
    """Reads a page strictly: each element is closed where it must be."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def text(self) -> str:
        return "\n".join(self.texts)


def model(role: str, f1: float, **options: Any) -> ModelReport:
    return ModelReport(role, options.pop("name", f"{role}-model"), {"f1": f1}, 4_000_000, **options)


def comparison(*further: ModelReport) -> Comparison:
    sure = np.linspace(0.05, 0.95, 40)
    calibration = Calibration.of(sure, sure > 0.4)
    teacher = model(
        "teacher", 83.217, latency=Latency(41.26, (40.0, 42.0), 9), throughput=20.125,
        memory=16_000_000, calibration=calibration,
    )  # fmt: skip
    student = model(
        "student_distilled", 78.456, latency=Latency(13.31, (13.0, 14.0), 9), throughput=61.5,
        memory=8_000_000, divergence=0.12345, calibration=calibration + calibration,
        agreement={"identical": 0.8125}, outcomes={"both_right": 30, "teacher_right": 5},
    )  # fmt: skip
    return Comparison(
        "question-answering", "dev.json", 40, [teacher, student, *further], {"f1": "F1"},
        agreement_labels={"identical": "same answer"}, machine={"processor": "A 1"},
    )  # fmt: skip


def rows(*answers: str) -> list[ScoredRow]:
    return [
        ScoredRow(f"question {n}", "gold", answer, answer == "gold")
        for n, answer in enumerate(answers)
    ]


def everything(text: str = "a text") -> Report:
    """A report with all its parts, which all hold ``text``."""
    ours = [ScoredRow(text, text, f"{text}1", False)]
    theirs = [ScoredRow(text, text, text, True)]
    return Report(
        title=text,
        subtitle=text,
        headline=[text],
        tiles=[Tile(text, text)],
        scores={text: text},
        disagreements=find_disagreements(ours, theirs),
        decisions=[Decision(text, text, text)],
        stages=[Stage(text, {text: text})],
        grids=[Grid(text, [text, text], [[text, text]], [text])],
        cost={text: text},
        commands=[text, text],
        settings={text: text},
        machine={text: text},
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_texts_do_not_run(attack: str) -> None:
    safe, page = (Reader(html_page(lay_out(everything(one)))) for one in ("a", attack))
    assert page.tags == safe.tags
    long = ("td", "class", "long")  # may be broken over lines
    seen, known = ([a for a in one.attributes if a != long] for one in (page, safe))
    assert seen == known


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    page = Reader(html_page(lay_out(everything(f"x{text}x"))))
    assert page.tags == Reader(html_page(lay_out(everything("a")))).tags
    shown = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)
    assert f"x{shown}x".replace("\r", "\n") in page.texts


@pytest.mark.parametrize("attack", ["".join(ATTACKS[:6]), "".join(ATTACKS[6:])])
def test_pictures_do_not_run(attack: str) -> None:
    odd = replace(comparison(), quality_labels={"f1": attack})
    drawings = [
        Reader(inline_svg(quality_figure(one, measured_axes(one)[:1]), "c", attack))
        for one in (comparison(), odd)
    ]
    safe, page = ([(tag, name) for tag, name, _ in one.attributes] for one in drawings)
    assert {*page} == {*safe}
    assert drawings[0].tags == drawings[1].tags


def test_nothing_is_requested_or_run() -> None:
    report = replace(everything(), comparison=comparison(), stages=[Stage("s", {}, LOG)])
    source = html_page(lay_out(report))
    page = Reader(source)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", "content", policy) in page.attributes
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {*page.tags}
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/")), (tag, name, value)
    assert not re.search(r"url\((?!#)|@import|https?://", source)
    assert page.tags.count("svg") == 6  # two of quality, one of reliability, three of losses


def test_ids_are_unique_and_are_what_is_referred_to() -> None:
    report = Report(title="t", comparison=comparison(), stages=[Stage("s", {}, LOG)])
    page = Reader(html_page(lay_out(report)))
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert ids and max(ids.values()) == 1
    used = {v[1:] for _, n, v in page.attributes if n == "href"}
    used |= {m for _, _, v in page.attributes for m in re.findall(r"url\(#([^)]+)\)", v)}
    assert used and used <= {*ids}


def test_colours_follow_the_page() -> None:
    source = html_page(lay_out(Report(title="t", comparison=comparison())))
    drawn = source[source.index("<svg") :]
    assert "var(--ink)" in drawn and "var(--grid)" in drawn
    assert not re.search(r"#000000|#444444|#dddddd|font-family|DejaVu", drawn)


def test_figures_in_cells_keep_their_colour_in_the_dark() -> None:
    similarity = torch.tensor([[0.0, 0.35], [0.65, 1.0]])
    drawn = inline_svg(similarity_figure(similarity, []), "c", "d")
    cells = re.findall(r"<text style=\"([^\"]*)\"[^>]*>[01]\.\d\d<", drawn)
    assert [re.findall("fill: (#[0-9a-f]+)", style) for style in cells] == [
        ["#ffffff"], ["#ffffff"], ["#111111"], ["#111111"]
    ]  # fmt: skip


def test_numbers_are_those_of_the_json(tmp_path: Path) -> None:
    measured = comparison()
    content = json.loads(write_comparison(measured, tmp_path)[0].read_text())
    written = write_report(Report(title="t", comparison=measured), tmp_path)
    assert [path.name for path in written] == ["report.html", "report.md"]
    student = content["models"]["student_distilled"]
    teacher = content["models"]["teacher"]
    error = student["calibration"]["error"]
    expected = [
        f"{student['quality']['f1']:.2f}",
        f"{teacher['latency']['median']:.1f} ms",
        f"{teacher['throughput']:.1f}/s",
        f"{student['memory'] / 1e6:.1f} MB",
        f"{student['divergence']:.4f}",
        f"{error:.1%}",
        f"{student['agreement']['identical']:.1%}",
        f"{student['quality']['f1'] / teacher['quality']['f1']:.1%}",
        f"{teacher['latency']['median'] / student['latency']['median']:.1f} ×",
    ]
    page, markdown = Reader(written[0].read_text()).text(), written[1].read_text()
    for number in expected:
        assert number in page, number
        assert number in markdown, number
    assert student["outcomes"] == {"both_right": 30, "teacher_right": 5}


def titles(report: Report) -> list[str]:
    page = html_page(lay_out(report))
    return re.findall(r"<h2>([^<]*)</h2>", page)


def test_absent_is_absent() -> None:
    assert titles(Report(title="t")) == []
    assert "tile" not in re.sub(
        "<style>.*</style>", "", html_page(lay_out(Report("t"))), flags=re.S
    )
    assert titles(Report(title="t", cost={"time": "3 s"})) == ["Cost"]
    bare = Comparison("text-classification", "d", 2, [model("model_1", 1), model("model_2", 2)],
                      {"f1": "F1"})  # fmt: skip
    assert titles(Report(title="t", comparison=bare)) == ["Models"]
    page = html_page(lay_out(Report(title="t", comparison=bare)))
    for word in ("latency", "calibration", "KL", "gap", "teacher"):
        assert word not in page.partition("<body>")[2], word


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    few = replace(comparison(), models=[replace(m, latency=None) for m in comparison().models])
    report = Report(title="t", comparison=few)
    once, again = (
        [path.read_bytes() for path in write_report(report, tmp_path / name)] for name in "ab"
    )
    assert once == again


def test_pictures_of_others_are_drawn(tmp_path: Path) -> None:
    from hf_distill.plotting import losses_figure

    picture = Picture("Mine", lambda: losses_figure(LOG), "How to read it.", "mine.png")
    report = Report(title="t", pictures=[picture, replace(picture, title="Again")])
    page, markdown = write_report(report, tmp_path)
    assert page.read_text().count("<svg") == 2 and "Mine" in page.read_text()
    assert "mine.png" not in markdown.read_text()  # there is no such file
    (tmp_path / "mine.png").touch()
    _, markdown = write_report(report, tmp_path)
    assert markdown.read_text().count("mine.png") == 1


def test_without_matplotlib_the_page_has_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with_pictures = Reader(html_page(lay_out(Report(title="t", comparison=comparison()))))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = Reader(html_page(lay_out(Report(title="t", comparison=comparison()))))
    assert "svg" not in without.tags and "hf-distill[plots]" in without.text()
    assert "78.46" in without.text() and "78.46" in with_pictures.text()


@pytest.mark.parametrize("attack", ATTACKS)
def test_markdown_is_escaped(attack: str) -> None:
    safe, odd = (markdown_page(lay_out(everything(one)), Path()) for one in ("a", attack))
    assert odd.count("\n") == safe.count("\n")
    assert "\x1b" not in odd and "\x00" not in odd
    prose = re.sub(r"^    .*$|^> ", "", odd, flags=re.M)  # code, and the quotes of examples
    assert "<" not in prose and "](" not in prose.replace("\\](", "")
    unescaped = re.compile(r"(?<!\\)\|")
    for ours, theirs in zip(safe.splitlines(), odd.splitlines(), strict=True):
        if ours.startswith("|"):
            assert len(unescaped.findall(ours)) == len(unescaped.findall(theirs))
