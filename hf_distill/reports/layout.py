"""Order and words of a report: from what is known to sections of tables, pictures and texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from hf_distill._version import __version__
from hf_distill.plotting import loss_curves, losses_figure, why_no_pictures
from hf_distill.reports.comparison import ABSENT, Comparison
from hf_distill.reports.comparison_plot import measured_axes, quality_figure, reliability_figure
from hf_distill.reports.disagreements import OUTCOMES, Disagreement, Disagreements
from hf_distill.reports.inline_svg import inline_svg
from hf_distill.reports.report import Picture, Report, Stage, Tile
from hf_distill.tasks.calibration import BINS

UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that HTML cannot hold and a terminal obeys."""
_EXAMPLES = 4
_LONGEST_TEXT = 500


class Paragraph(NamedTuple):
    """A sentence or more."""

    text: str


class Heading(NamedTuple):
    """The title of what follows."""

    text: str


class Table(NamedTuple):
    """Cells of text; the first column names its rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = False
    """Columns after the first are aligned to the right."""


class Chart(NamedTuple):
    """A picture, with what it shows and how to read it."""

    svg: str
    title: str
    description: str
    file: str | None


class Commands(NamedTuple):
    """Lines for a shell."""

    lines: Sequence[str]


class Example(NamedTuple):
    """A row of the data and what is said about it."""

    text: str
    facts: Mapping[str, str]


Block = Paragraph | Heading | Table | Chart | Commands | Example


@dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """What both formats show, in order."""

    title: str
    subtitle: str
    headline: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    footer: str


def lay_out(report: Report) -> Page:
    """Arrange a report; sections without content are left out."""
    comparison = report.comparison
    missing = why_no_pictures()
    charts = _Charts(missing is None)
    sections = [
        Section("Scores", _pairs(report.scores)),
        Section("Models", list(_models(comparison, charts))),
        Section("Fidelity to the teacher", list(_fidelity(comparison, charts))),
        Section("Where student and teacher differ", list(_differences(report.disagreements))),
        Section("Decisions", list(_decisions(report))),
        Section("Training", [block for one in report.stages for block in _stage(one, charts)]),
        *(
            Section(grid.title, [Table(grid.header, grid.rows), *map(Paragraph, grid.notes)])
            for grid in report.grids
        ),
        Section("Pictures", [chart for one in report.pictures for chart in charts.of(one)]),
        Section("Cost", _pairs(report.cost)),
        Section("Commands", [Commands(report.commands)] if report.commands else []),
        Section("Settings", _pairs(report.settings)),
        Section("Machine and versions", _pairs(_machine(report))),
    ]
    headline = report.headline
    if not headline and comparison is not None:
        headline = [one for one in (_kept(comparison), comparison.headline()) if one]
    subtitle = report.subtitle
    if not subtitle and comparison is not None:
        subtitle = f"{comparison.task}: {comparison.data}, {comparison.examples:,} examples"
    return Page(
        title=report.title,
        subtitle=subtitle,
        headline=[*headline, *report.remarks],
        tiles=report.tiles or list(_tiles(comparison)),
        sections=[section for section in sections if section.blocks],
        footer=f"Written by hf-distill {__version__}. {missing or ''}".strip(),
    )


class _Charts:
    """Draws pictures and gives each a name."""

    def __init__(self, draws: bool) -> None:
        self._draws, self._count = draws, 0

    def of(self, picture: Picture) -> Iterator[Chart]:
        """Draw a picture, where pictures can be drawn."""
        if self._draws:
            self._count += 1
            alternative = f"{picture.title}. {picture.description}".strip()
            svg = inline_svg(picture.draw(), f"chart{self._count}", alternative)
            yield Chart(svg, picture.title, picture.description, picture.file)


def _kept(comparison: Comparison) -> str | None:
    """Return in one sentence what was kept and what was gained."""
    student, teacher = comparison.subject, comparison.model("teacher")
    gained = comparison.speed_up()
    metric = comparison.primary_metric
    if student is None or teacher is None or gained is None or teacher.quality[metric] <= 0:
        return gained
    if metric in comparison.lower_is_better:
        return gained
    share = student.quality[metric] / teacher.quality[metric]
    return f"{gained} It keeps {share:.1%} of the teacher's {comparison.quality_labels[metric]}."


def _tiles(comparison: Comparison | None) -> Iterator[Tile]:
    if comparison is None:
        return
    student, teacher = comparison.subject, comparison.model("teacher")
    metric = comparison.primary_metric
    label = comparison.quality_labels[metric]
    if student is None or teacher is None:
        for model in comparison.models:
            yield Tile(f"{model.quality[metric]:.1f}", f"{label}, {model.label}")
        return
    ours, theirs = student.quality[metric], teacher.quality[metric]
    yield Tile(f"{ours:.1f}", f"{label} of the {student.label}; the teacher has {theirs:.1f}")
    if metric not in comparison.lower_is_better and theirs > 0:
        yield Tile(f"{ours / theirs:.1%}", f"of the teacher's {label} kept")
    share = comparison.gap_closed().get(metric)
    if share is not None and comparison.doubt(metric) is None:
        yield Tile(f"{share:.0%}", "of the gap to the student alone closed")
    if student.latency is not None and teacher.latency is not None:
        times = (teacher.latency.median, student.latency.median)
        yield Tile(f"{times[0] / times[1]:.1f} ×", f"as fast: {times[0]:.1f} → {times[1]:.1f} ms")
    if teacher.size_on_disk and student.size_on_disk:
        yield Tile(
            f"{student.size_on_disk / teacher.size_on_disk:.0%}",
            f"of the size on disk: {teacher.size()} → {student.size()}",
        )
    elif teacher.parameters and student.parameters:
        sizes = (teacher.parameters, student.parameters)
        yield Tile(
            f"{sizes[1] / sizes[0]:.0%}",
            f"of the parameters: {sizes[0] / 1e6:.1f} → {sizes[1] / 1e6:.1f} million",
        )


def _models(comparison: Comparison | None, charts: _Charts) -> Iterator[Block]:
    if comparison is None:
        return
    header = ["", *(model.label for model in comparison.models)]
    rows = [[name, *cells] for name, cells in comparison.rows(fidelity=False)]
    yield Table(header, rows, numbers=True)
    label = comparison.quality_labels[comparison.primary_metric]
    for axis in reversed(measured_axes(comparison)):
        title = f"{label} against {axis.name}"
        reading = "Up is better, left is cheaper; bars are 95% intervals."
        file = "comparison.png"
        draw = partial(quality_figure, comparison, [axis])
        yield from charts.of(Picture(title, draw, reading, file))
    for note in replace(comparison, machine={}).footnotes():
        yield Paragraph(note)


def _fidelity(comparison: Comparison | None, charts: _Charts) -> Iterator[Block]:
    if comparison is None:
        return
    rows = [[name, *cells] for name, cells in comparison.fidelity_rows()]
    for outcome, label in OUTCOMES.items():
        counts = [(model.outcomes or {}).get(outcome) for model in comparison.models]
        if any(count is not None for count in counts):
            cells = [ABSENT if count is None else f"{count:,}" for count in counts]
            rows.append([f"rows: {label}", *cells])
    if rows:
        yield Table(["", *(model.label for model in comparison.models)], rows, numbers=True)
    if any(model.calibration is not None for model in comparison.models):
        yield from charts.of(
            Picture(
                "Reliability",
                lambda: reliability_figure(comparison),
                "On the dotted line a model is right as often as its probabilities say; below it "
                "it is too sure. The error is the mean distance from the line, weighted by the "
                f"predictions in each of {BINS} bins.",
            )
        )


def _differences(found: Disagreements | None) -> Iterator[Block]:
    if found is None:
        return
    for outcome, rows in found.examples(_EXAMPLES).items():
        total = len(found.differing[outcome])
        shown = f"{len(rows)} of {total:,}" if len(rows) < total else f"{total:,}"
        yield Heading(f"{OUTCOMES[outcome].capitalize()}: {shown} with different predictions")
        yield from map(_example, rows)


def _example(one: Disagreement) -> Example:
    text = one.text if len(one.text) <= _LONGEST_TEXT else f"{one.text[:_LONGEST_TEXT]}…"
    facts = {"label": one.gold, "teacher": one.teacher, "student": one.model}
    return Example(text, facts)


def _decisions(report: Report) -> Iterator[Block]:
    if report.decisions:
        rows = [(one.name, str(one.value), one.reason) for one in report.decisions]
        yield Table(["", "choice", "why"], rows)


def _stage(stage: Stage, charts: _Charts) -> Iterator[Block]:
    curves = loss_curves(stage.log_history)
    if stage.facts or curves:
        yield Heading(stage.name.capitalize())
    yield from _pairs(stage.facts)
    for name in curves:
        draw = partial(losses_figure, stage.log_history, only=name)
        yield from charts.of(Picture(f"{stage.name}: {name} by step", draw, ""))


def _machine(report: Report) -> dict[str, str]:
    measured = {} if report.comparison is None else report.comparison.machine
    return {key: str(value) for key, value in {**measured, **report.machine}.items()}


def _pairs(values: Mapping[str, str]) -> list[Block]:
    return [Table(["", ""], list(values.items()))] if values else []
