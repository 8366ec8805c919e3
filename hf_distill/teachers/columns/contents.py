"""Content of a column's cells before a student's labels are known: JSON, and names of labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any


class ColumnError(ValueError):
    """A column does not hold a teacher's predictions."""


def decoded(cell: Any, column: str, row: int) -> Any:
    """Return a cell with the content of its JSON, if it is text, as every cell of a CSV file is.

    Raises:
        ColumnError: it is not JSON, or names a label twice.
    """
    if not isinstance(cell, str):
        return cell
    if not cell.strip():
        return None
    where = f"Row {row} of the column {column!r}"

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ColumnError(f"{where} has the label {name!r} twice; write one number for it.")
        return dict(pairs)

    try:
        return json.loads(cell, object_pairs_hook=unique, parse_int=_integer)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ColumnError(
            f"{where} is the text {cell[:80]!r}, which is not JSON ({error}). Write an object "
            '{"label": number, …} in it, or choose another teacher_column; a column of labels '
            "without numbers is a label_column."
        ) from error


def labels_of(cells: Iterable[Any], *, by_word: bool, shared: bool) -> tuple[str, ...] | None:
    """Return the labels that a column names, sorted; ``None`` if it names none.

    Args:
        cells: the cells, decoded.
        by_word: they are lists of predictions.
        shared: ``None`` also if not every prediction names the same ones.
    """
    every = [
        frozenset(_names(one))
        for cell in cells
        for one in (cell if by_word and isinstance(cell, list) else [cell])
    ]
    if shared and len(set(every)) > 1:
        return None
    found = frozenset().union(*every)
    return tuple(sorted(found, key=_in_order)) or None


def _in_order(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else -1, name)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else float(digits)  # infinity: no float is as large


def _names(cell: Any) -> Iterable[str]:
    if isinstance(cell, Mapping):
        if holds_lists(cell):
            names = cell["labels"]
        elif holds_one(cell):
            names = [cell["label"]]
        else:
            names = [name for name, number in cell.items() if number is not None]
    elif isinstance(cell, list) and all(isinstance(one, Mapping) for one in cell):
        names = [one["label"] for one in cell if "label" in one]
    else:
        return ()
    return [str(name) for name in names if is_label(name) and str(name).strip()]


def is_label(name: Any) -> bool:
    """Return whether a value can name a label; null and NaN stand for no label."""
    return isinstance(name, str | Real | Decimal) and name == name


def holds_lists(cell: Mapping[str, Any]) -> bool:
    """Return whether an object is labels and scores, as two lists; other keys are not read."""
    return {"labels", "scores"} <= set(cell) and isinstance(cell["labels"], list | tuple)


def holds_one(cell: Any) -> bool:
    """Return whether something is an object with a label and its score; other keys are not read."""
    return isinstance(cell, Mapping) and {"label", "score"} <= set(cell)
