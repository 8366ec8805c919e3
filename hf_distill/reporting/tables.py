"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_distill.reporting.comparison import ROLES, Comparison


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
