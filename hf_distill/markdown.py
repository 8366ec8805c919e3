"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> str:
    """A table.

    Args:
        header: the names of the columns.
        rows: their cells.
        right: the columns, from 0, that are aligned to the right.
    """
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join(_row(cells) for cells in [header, rule, *rows])


def without_html(text: str) -> str:
    """Return a text as Markdown and the HTML in it show it, on one line."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("\r", " ").replace("\n", " ")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
