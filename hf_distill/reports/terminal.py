"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_distill.reports.comparison import Comparison
from hf_distill.reports.sweep_report import figure
from hf_distill.tasks.bootstrap import TIMINGS


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table, the share of the gap closed, and what it was measured with."""
    console = console or _console()
    roles = [model.label for model in comparison.models]
    rows = [(label, *cells) for label, cells in comparison.rows()]
    title = f"{comparison.task}: quality, size and speed"
    print_rows(title, ["", *roles], rows, console, numbers=True)
    for sentence in (comparison.headline(), comparison.speed_up()):
        if sentence:
            console.print(sentence, style="bold", markup=False, highlight=False)
    for note in comparison.footnotes():
        console.print(note, style="dim", markup=False, highlight=False)


_WORDS = {
    "loss_prediction": "distillation loss",
    "loss_hidden_states": "loss of hidden states",
    "loss_attention": "loss of attentions",
    "total": "questions",
    "HasAns_exact": "exact match (answerable)",
    "HasAns_f1": "F1 (answerable)",
    "HasAns_total": "answerable questions",
    "NoAns_exact": "exact match (unanswerable)",
    "NoAns_f1": "F1 (unanswerable)",
    "NoAns_total": "unanswerable questions",
    "best_exact": "exact match (best threshold)",
    "best_exact_thresh": "threshold of the best exact match",
    "best_f1": "F1 (best threshold)",
    "best_f1_thresh": "threshold of the best F1",
}


def in_words(figures: Mapping[str, Any], quality: Mapping[str, str]) -> dict[str, Any]:
    """Return the figures of an evaluation under the names that tables show.

    Args:
        figures: by name, with or without ``eval_``. Those of its speed are left out.
        quality: what the metrics of the task are called; they come first.
    """
    values = {name.removeprefix("eval_"): value for name, value in figures.items()}
    shown = {label: values[name] for name, label in quality.items() if name in values}
    # The loss of the labels, which the log of a distillation also has as loss_task.
    compares_layers = "loss_task" not in values and any(n.startswith("loss_") for n in values)
    words = {**_WORDS, "loss": "loss" if compares_layers else "label loss"}
    for name, value in values.items():
        if name not in quality and name != "loss_task" and not name.endswith(TIMINGS):
            count = name.endswith("total")
            shown[words.get(name, name.replace("_", " "))] = int(value) if count else value
    return shown


def in_digits(value: object) -> str:
    """Return a number as tables show it: a float with two decimals, or four digits below 1."""
    return figure(value) if isinstance(value, float) else str(value)


def print_figures(
    title: str, figures: Mapping[str, object], console: Console | None = None
) -> None:
    """Print a table of names and numbers."""
    rows = [(name, in_digits(value)) for name, value in figures.items()]
    print_rows(title, (), rows, console, numbers=True)


def print_rows(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str | tuple[str, str]]],
    console: Console | None = None,
    *,
    names: bool = False,
    numbers: bool = False,
    lines: bool = False,
) -> None:
    """Print a table of texts.

    Args:
        title: the line above it; may be empty.
        header: the columns' names; empty for none.
        rows: their cells: a text, or a text and its style.
        console: where to print; the terminal by default.
        names: the first column has names to copy, which are not broken over lines.
        numbers: all columns but the first are aligned to the right.
        lines: draw a line between the rows.
    """
    console = console or _console()
    table = Table(show_header=bool(header), show_lines=lines)
    for i, name in enumerate(header or [""] * len(rows[0])):
        table.add_column(
            name,
            overflow="fold",
            no_wrap=names and i == 0,
            justify="right" if numbers and i > 0 else "left",
        )
    for row in rows:
        # Not as it is: it may hold square brackets, which rich would read as markup.
        table.add_row(*map(Text.assemble, row))
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def _console() -> Console:
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width
        console.width = max(console.width, 150)
    return console
