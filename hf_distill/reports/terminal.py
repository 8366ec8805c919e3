"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_distill.reports.comparison import ROLES, Comparison


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table, the share of the gap closed, and what it was measured with."""
    console = console or Console()
    table = Table()
    table.add_column("")
    for model in comparison.models:
        table.add_column(ROLES[model.role], justify="right", overflow="fold")
    for label, cells in comparison.rows():
        # Text: a name or an answer may hold square brackets, which rich would read as markup.
        table.add_row(label, *map(Text, cells))
    console.print(Text(f"{comparison.task}: quality, size and speed", style="bold"))
    console.print(table)
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
    "HasAns_exact": "exact match, answerable",
    "HasAns_f1": "F1, answerable",
    "HasAns_total": "answerable questions",
    "NoAns_exact": "exact match, unanswerable",
    "NoAns_f1": "F1, unanswerable",
    "NoAns_total": "unanswerable questions",
    "best_exact": "exact match, best threshold",
    "best_exact_thresh": "threshold of the best exact match",
    "best_f1": "F1, best threshold",
    "best_f1_thresh": "threshold of the best F1",
}
_SPEED = ("runtime", "per_second", "epoch", "_time")


def in_words(figures: Mapping[str, Any], quality: Mapping[str, str]) -> dict[str, Any]:
    """Return the figures of an evaluation under the names that tables show.

    Args:
        figures: by name, with or without ``eval_``. Those of its speed are left out.
        quality: what the metrics of the task are called; they come first.
    """
    values = {name.removeprefix("eval_"): value for name, value in figures.items()}
    shown = {label: values[name] for name, label in quality.items() if name in values}
    # The loss of the labels, which the log of a distillation calls loss_task, too.
    compares_layers = "loss_task" not in values and any(n.startswith("loss_") for n in values)
    words = {**_WORDS, "loss": "loss" if compares_layers else "label loss"}
    for name, value in values.items():
        if name not in quality and name != "loss_task" and not name.endswith(_SPEED):
            shown[words.get(name, name.replace("_", " "))] = value
    return shown


def print_figures(
    title: str, figures: Mapping[str, object], console: Console | None = None
) -> None:
    """Print a table of names and numbers.

    Args:
        title: the line above it.
        figures: the rows; floats are shown with two decimals, or four digits below 1.
        console: where to; the terminal by default.
    """
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in figures.items():
        table.add_row(Text(name), Text(_number(value)))
    (console or Console()).print(Text(title, style="bold"), table, sep="\n")


def print_rows(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console | None = None,
    *,
    names: bool = False,
) -> None:
    """Print a table of texts, as they are.

    Args:
        title: the line above it.
        header: of the columns.
        rows: their cells.
        console: where to; the terminal by default.
        names: the first column has names to copy, which are not broken over lines.
    """
    table = Table()
    for i, name in enumerate(header):
        table.add_column(name, overflow="fold", no_wrap=names and i == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    (console or Console()).print(Text(title, style="bold"), table, sep="\n")


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"
    return str(value)
