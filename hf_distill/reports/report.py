"""The report of a training, a comparison, a sweep or a whole distillation, and its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill.files import write_text
from hf_distill.reports.comparison import Comparison
from hf_distill.reports.disagreements import Disagreements

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tile(NamedTuple):
    """A number that one should see first."""

    value: str
    label: str


@dataclass(frozen=True)
class Decision:
    """Something that was chosen, and why."""

    name: str
    """In ``hf-distill shrink`` the option that sets it by hand."""
    value: Any
    reason: str


@dataclass(frozen=True)
class Stage:
    """A training, or one of its stages."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Label -> value: data, steps, learning rate, time …"""
    log_history: Sequence[Mapping[str, Any]] = ()
    """``trainer.state.log_history``, of which the losses are drawn."""


@dataclass(frozen=True)
class Picture:
    """A picture in addition to those that are drawn from the other parts."""

    title: str
    draw: Callable[[], Figure]
    """Called once, only where matplotlib is installed."""
    description: str
    """One sentence on how to read it."""
    file: str | None = None
    """An image of the same in the report's folder, for Markdown."""


@dataclass(frozen=True)
class Grid:
    """A table in addition to the others."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """Everything that ``report.html`` and ``report.md`` show, in this order; absent is absent.

    All texts may hold anything, such as HTML: they are escaped where they are written. They must
    not hold paths, user names or tokens; ``files.display_name`` and ``cli.output.shown_command``
    make names and command lines fit for that.

    Args:
        title: what was made or compared.
        subtitle: task, data, in one line.
        headline: sentences that say what came of it; by default those of the comparison.
        remarks: sentences after the headline, on how far it can be trusted.
        tiles: the first numbers; by default those of the comparison.
        comparison: the models, each with what was measured.
        scores: of a model that is compared with none: metric -> value.
        disagreements: where student and teacher differ, with examples.
        decisions: what was chosen and why.
        stages: the trainings with their losses.
        grids: further tables.
        pictures: further pictures: layer similarity, attention maps, the plot of a sweep.
        cost: label -> value: times, energy, share of the teacher.
        commands: the exact commands, one per line, without line breaks.
        settings: what was trained with: option -> value.
        machine: processor, versions: name -> value.
    """

    title: str
    subtitle: str = ""
    headline: Sequence[str] = ()
    remarks: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    comparison: Comparison | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    disagreements: Disagreements | None = None
    decisions: Sequence[Decision] = ()
    stages: Sequence[Stage] = ()
    grids: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    cost: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


def write_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.html`` and ``report.md``, each whole or not at all, and return their paths.

    Without matplotlib the pages have no pictures and name the extra that draws them. The HTML page
    is one file without scripts that requests nothing; the same report gives the same bytes.

    Example:
        >>> from hf_distill.reports.report import Decision, Report, Stage, write_report
        >>> write_report(
        ...     Report(
        ...         title="bert-base to 6 layers",
        ...         comparison=comparison,
        ...         decisions=[Decision("layers", "6", "the largest that is twice as fast")],
        ...         stages=[Stage("prediction layer", {"steps": "600"}, trainer.state.log_history)],
        ...         commands=["hf-distill train --student_model student …"],
        ...     ),
        ...     "small",
        ... )  # doctest: +SKIP

    Raises:
        OSError: a file cannot be written.
    """
    from hf_distill.reports.html_page import html_page
    from hf_distill.reports.layout import lay_out
    from hf_distill.reports.markdown_page import markdown_page

    page = lay_out(report)
    return [
        write_text(Path(folder) / "report.html", html_page(page)),
        write_text(Path(folder) / "report.md", markdown_page(page, Path(folder))),
    ]
