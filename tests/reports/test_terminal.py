from __future__ import annotations

import io

from rich.console import Console

from hf_distill.reports.comparison import Comparison, ModelReport
from hf_distill.reports.terminal import print_comparison, print_figures, print_rows


def console(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_figures_are_rounded() -> None:
    shown = console()
    print_figures("a [title]", {"f1": 75.4321, "loss": 0.012345, "zero": 0.0, "n": 7}, shown)
    for part in ("a [title]", "75.43", "0.01235", "0.00", "7"):
        assert part in text(shown)


def test_square_brackets_are_no_markup() -> None:
    shown = console()
    print_rows("Which [bold]?", ("answer", "score"), [("[red]text[/red]", "0.1")], shown)
    assert "[red]text[/red]" in text(shown)
    assert "Which [bold]?" in text(shown)


def test_comparison_fits_a_narrow_terminal() -> None:
    models = [
        ModelReport(role, f"{role}[x]", {"f1": f1}, 12_345_678)
        for role, f1 in (("teacher", 75.0), ("student_alone", 62.5), ("student_distilled", 70.0))
    ]
    comparison = Comparison(
        "question-answering", "dev.json", 7, models, {"f1": "F1"}, machine={"threads": "1"}
    )
    shown = console(80)
    print_comparison(comparison, shown)
    for part in ("75.00", "62.50", "12.35 M", "60% of the gap", "dev.json, 7 examples", "threads"):
        assert part in text(shown)
    assert "teacher[x]" in text(shown)
    assert "…" not in text(shown)
