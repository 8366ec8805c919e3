"""An overview of the data in 80 columns, before a model is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datasets import Dataset

from hf_distill.tasks.columns import is_list, is_text

_TEXTS = ("text", "text_pair", "tokens", "context", "question", "target")
_MOST_LABELS = 12
_WIDTH = 79


class Overview(NamedTuple):
    """One split of the data.

    Attributes:
        rows: the rows that are used.
        inputs: what a model reads of them: windows, blocks or the rows.
        cut: rows of which the end is cut off.
        labels: how often there is each label; or other figures of what is to be predicted.
        blank: rows without any text, by column.
    """

    rows: int
    inputs: int
    cut: int
    labels: Mapping[str, float]
    blank: Mapping[str, list[int]]


def look_at(examples: Dataset, inputs: int, cut: int, labels: Mapping[str, float]) -> Overview:
    """Count the rows without text; see ``Overview`` for the arguments."""
    places = examples["row"] if "row" in examples.column_names else range(len(examples))
    blank = {}
    for column in _TEXTS:
        feature = examples.features.get(column)
        if feature is not None and (is_text(feature) or is_list(feature)):
            values = zip(places, examples[column], strict=True)
            rows = [row for row, value in values if not _has_text(value)]
            if rows:
                blank[column] = rows
    return Overview(len(examples), inputs, cut, labels, blank)


def overview_table(splits: Mapping[str, Overview], limit: str) -> str:
    """Set splits, by name, next to each other; ``limit`` names the option for lengths."""
    looks = list(splits.values())
    lines = [("", *splits), ("rows", *(_figure(look.rows) for look in looks))]
    if any(look.inputs != look.rows for look in looks):
        lines.append(("inputs of the model", *(_figure(look.inputs) for look in looks)))
    lines += [
        (name, *(_figure(look.labels.get(name)) for look in looks))
        for name in _most_frequent(look.labels for look in looks)
    ]
    more = [len(look.labels) - _MOST_LABELS for look in looks]
    if max(more) > 0:
        lines.append(("(further labels)", *(_figure(max(0, count)) for count in more)))
    for column in dict.fromkeys(column for look in looks for column in look.blank):
        counts = [len(look.blank.get(column, ())) for look in looks]
        lines.append((f"blank {column}", *map(_figure, counts)))
    lines.append((f"cut off ({limit})", *(_figure(look.cut) for look in looks)))
    figures = [
        max(12, *(len(line[place]) + 2 for line in lines)) for place in range(1, len(looks) + 1)
    ]
    name_width = min(max(len(line[0]) for line in lines), _WIDTH - sum(figures))
    shown = [
        _shortened(line[0], name_width).ljust(name_width)
        + "".join(cell.rjust(width) for cell, width in zip(line[1:], figures, strict=True))
        for line in lines
    ]
    for name, look in splits.items():
        for column, rows in look.blank.items():
            shown.append(f"blank {column} in {name}: {_places(rows)}")
    return "\n".join(line.rstrip() for line in shown)


def _has_text(value: Any) -> bool:
    return bool(value and (value.strip() if isinstance(value, str) else any(value)))


def _places(rows: list[int], most: int = 10) -> str:
    return f"rows {', '.join(map(str, rows[:most]))}" + (", …" if len(rows) > most else "")


def _most_frequent(labels: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the most frequent labels of all splits, in the order in which they were given."""
    total: Counter[str] = Counter()
    for one in labels:
        total.update(one)
    if len(total) <= _MOST_LABELS:
        return list(total)
    return [name for name, _ in total.most_common(_MOST_LABELS)]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _shortened(name: str, width: int) -> str:
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 1] + "…"
