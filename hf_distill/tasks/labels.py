"""Names and numbers of labels, in data and in models, and how they correspond."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from hf_distill.tasks.cells import are_numbers, folded, labels_of
from hf_distill.tasks.columns import describe, is_list, kind_of
from hf_distill.tasks.errors import TaskDataError

Label = str | int


@dataclass(frozen=True)
class DataLabels:
    """Labels of a column.

    Attributes:
        names: all of them, in the order of their numbers: that of a ``ClassLabel`` feature, that
            of the alphabet for texts, that of the numbers for numbers.
        count: for numbers from 0 on without names the least number of labels, including those that
            no row has. ``None`` for names.
        exact: there are exactly ``count``.
    """

    names: tuple[str, ...]
    count: int | None = None
    exact: bool = False


def label_values(table: Dataset, column: str) -> Iterator[Any]:
    """Yield the labels of each row: names where the data has names, else numbers.

    Raises:
        TaskDataError: the column holds something else, or the label -1.
    """
    feature = table.features[column]
    item = feature.feature if is_list(feature) else feature
    if kind_of(feature) not in ("name", "number"):
        raise TaskDataError(
            f"The label column holds {describe(feature)}, and labels are names or whole "
            "numbers; choose another one with label_column, or for numbers to predict set "
            "problem_type to 'regression'."
        )
    named = isinstance(item, ClassLabel) and not are_numbers(item.names)
    truth = getattr(item, "dtype", "") == "bool"
    for row, value in zip(row_numbers(table), table[column], strict=True):
        many = value if is_list(feature) else [value]
        below = next((one for one in many if isinstance(one, int) and one < 0), None)
        if below == -100 and is_list(feature):
            raise TaskDataError(
                f"Row {row} has the label -100, which is for tokens that a loss leaves out. Give "
                "whole words with a tag for each; which of their tokens have it is found here."
            )
        if below is not None:
            raise TaskDataError(
                f"Row {row} has the label {below}, and classes are numbered from 0. If it has no "
                "label, empty the cell or remove the row; if this is a class, write names instead "
                "of numbers."
            )
        if named:
            many = [item.int2str(one) for one in many]
        elif truth:
            many = [str(one) for one in many]
        yield many if is_list(feature) else many[0]


def data_labels(table: Dataset, column: str) -> DataLabels:
    """Find all labels of a column, as ``read_labels`` makes it.

    Raises:
        TaskDataError: as ``label_values``; or there is only one label; or each row has its own.
    """
    feature = table.features[column]
    item = feature.feature if is_list(feature) else feature
    found: set[Label] = set()
    for value in label_values(table, column):
        found.update(value if is_list(feature) else [value])
    if not is_list(feature) and len(found) == len(table) > 50:
        raise TaskDataError(
            f"The label column has another value in each of {len(table)} rows, so it does not "
            "hold labels; choose another one with label_column."
        )
    if isinstance(item, ClassLabel) and not are_numbers(item.names):
        labels = DataLabels(tuple(item.names))
    elif all(isinstance(one, str) for one in found):
        labels = DataLabels(tuple(sorted(map(str, found))))
    elif isinstance(item, ClassLabel):
        labels = DataLabels(tuple(item.names), item.num_classes, exact=True)
    else:
        numbers = sorted(map(int, found))
        count = numbers[-1] + 1 if numbers[:1] == [0] else None
        labels = DataLabels(tuple(map(str, numbers)), count)
    if len(labels.names) < 2:
        raise TaskDataError(
            "The label column has no labels to tell apart, only "
            f"{', '.join(sorted(map(repr, found))) or 'empty lists'}; choose another one with "
            "label_column, or data with several labels."
        )
    return labels


def unnamed(count: int) -> tuple[str, ...]:
    """Return the names that transformers gives to labels without a name."""
    return tuple(f"LABEL_{number}" for number in range(count))


def model_labels(config: Any) -> tuple[str, ...]:
    """Return the names of a model's labels, in the order of its logits."""
    names = {int(number): str(name) for number, name in config.id2label.items()}
    return tuple(names.get(number, f"LABEL_{number}") for number in range(config.num_labels))


def label_options(names: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a model with these labels."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


class LabelMap:
    """Turns the labels of data into the numbers that a model gives them.

    A name is looked up among the model's, exactly or except for case and spaces. A number is a name
    if the model has such a name (``"1"``). Otherwise it is the model's own number, unless the
    model's names show that they are counted in another way (``01, 02``). A name of a ``ClassLabel``
    feature stands for its number where the model has no names (``LABEL_0``, …).

    Args:
        names: the model's labels, in the order of its logits.
        table: the data, with the labels as ``read_labels`` makes them.
        column: where its labels are.

    Raises:
        TaskDataError: the data has vectors with a number for each label, and the model has more
            or fewer labels.
    """

    def __init__(self, names: Sequence[str], table: Dataset, column: str) -> None:
        self.names = tuple(names)
        self._table = table
        self._column = column
        self._numbers: dict[str, int] = {}
        similar: dict[str, int] = {}
        for number, name in enumerate(self.names):
            key = folded(name)
            similar[key] = -1 if key in similar else number
            self._numbers.setdefault(name, number)
        self._similar = {key: number for key, number in similar.items() if number >= 0}
        feature = table.features[column]
        item = feature.feature if is_list(feature) else feature
        numbered = isinstance(item, ClassLabel) and are_numbers(item.names)
        if numbered and is_list(feature) and item.num_classes != len(self.names):
            raise TaskDataError(
                f"The label column numbers {item.num_classes} labels, and the model has "
                f"{len(self.names)}: {join_names(self.names)}. Which of these they are is not "
                "known; name them (for vectors of 0 and 1 with --class_names)."
            )
        self._data_names: tuple[str, ...] = ()
        if isinstance(item, ClassLabel) and are_made_up(self.names):
            self._data_names = tuple(item.names)
        self._named: Iterable[Label] = ()
        if isinstance(item, ClassLabel) and not numbered:
            self._named = item.names
        elif numbered or kind_of(feature) == "number":
            self._named = range(len(self.names))

    def number(self, label: Label, row: int) -> int:
        """Return the number of a label.

        Raises:
            TaskDataError: the model has no such label; names the row.
        """
        found = self._find(label)
        if found is None:
            raise TaskDataError(
                f"Row {row} has the label {label!r}, which is none of the model's labels: "
                f"{join_names(self.names)}. Correct the data, choose another label_column, or a "
                "model with that label."
            )
        return found

    def _find(self, label: Label) -> int | None:
        name = str(label)
        found = self._numbers.get(name)
        if found is None:
            found = self._similar.get(folded(name))
        if found is not None:
            return found
        if label in self._data_names:
            label = self._data_names.index(name)
        counts = isinstance(label, int) and are_counted(self.names)
        return int(label) if counts and 0 <= int(label) < len(self.names) else None

    def meanings(self) -> list[str]:
        """Return what each label of the model is, in words that all models on this data share.

        It is what the data calls the label, if it has a number for it, else its name; case and
        spaces are left out where they tell no labels apart.
        """
        found = [key if (key := folded(name)) in self._similar else name for name in self.names]
        for label in self._named:
            number = self._find(label)
            if number is not None:
                found[number] = str(label)
        return found

    def _rows(self) -> Iterator[tuple[int, Any]]:
        values = label_values(self._table, self._column)
        return zip(row_numbers(self._table), values, strict=True)

    def all_numbers(self) -> list[Any]:
        """Return the labels of all rows as numbers, in lists where the data has lists."""
        return [
            [self.number(one, row) for one in value]
            if isinstance(value, list)
            else self.number(value, row)
            for row, value in self._rows()
        ]

    def counts(self) -> dict[str, int]:
        """Count each label; its name is followed by the data's number for it, if it has one."""
        found: Counter[int] = Counter()
        written: dict[int, Label] = {}
        without = 0
        for row, value in self._rows():
            many = labels_of(value)
            without += not many
            for one in many:
                number = self.number(one, row)
                found[number] += 1
                written[number] = one
        shown = {}
        for number, name in enumerate(self.names):
            label = written.get(number, name)
            is_place = isinstance(label, int) and str(label) != name
            shown[f"label {name}" + (f" ({label})" if is_place else "")] = found[number]
        return shown | ({"no label": without} if without else {})


def positive_label(names: Sequence[str], table: Dataset, column: str) -> str:
    """Choose the positive one of two labels: the second of the data, or of the alphabet.

    It does not depend on the order in which a model has them.
    """
    feature = table.features[column]
    if isinstance(feature, ClassLabel):
        known = {folded(name): name for name in names}
        if feature.num_classes == 2 and folded(feature.names[1]) in known:
            return known[folded(feature.names[1])]
    if kind_of(feature) == "number":
        return names[1]
    return sorted(names)[1]


def label_agreement(
    student: tuple[Sequence[str], Sequence[Any]], teacher: tuple[Sequence[str], Sequence[Any]]
) -> float:
    """Return the share of equal predictions.

    Args:
        student: the meanings of its labels (``LabelMap.meanings``), and a label number, or a list
            of them, per prediction.
        teacher: the same of the teacher.
    """
    sides = [
        [{keys[n] for n in one} if isinstance(one, list) else keys[one] for one in predictions]
        for keys, predictions in (student, teacher)
    ]
    pairs = zip(*sides, strict=True)
    return float(np.mean([one == other for one, other in pairs]))


def check_numbering(table: Dataset, column: str, models: Mapping[str, Any]) -> None:
    """Check that the labels of data are the same ones to several models.

    Args:
        table: the data, with the labels as ``read_labels`` makes them.
        column: where its labels are.
        models: the configuration of each model, by what to call it.

    Raises:
        TaskDataError: the data has numbers, and two models disagree what they mean.
    """
    known: dict[str, tuple[str, str]] = {}
    names = {who: model_labels(config) for who, config in models.items()}
    for who, own in names.items():
        for name, meaning in zip(own, LabelMap(own, table, column).meanings(), strict=True):
            other, others = known.setdefault(folded(name), (who, meaning))
            if others != meaning and other != who:
                raise numbered_differently(f"{other} and {who}", names[other], own)


def numbered_differently(who: str, *names: Sequence[str]) -> TaskDataError:
    """Return the error for bare numbers that models with these names take for different ones."""
    return TaskDataError(
        f"The data has numbers for labels, and {who} number the same names differently "
        f"({'; '.join(map(join_names, names))}). Write the names into the label column of the data."
    )


def row_numbers(table: Dataset) -> Iterable[int]:
    """Return the row numbers to report: those of the whole data, where the rows know them."""
    return table["row"] if "row" in table.column_names else range(len(table))


def are_made_up(names: Sequence[str]) -> bool:
    """Return whether the names are numbers, or what transformers makes of them."""
    return are_numbers(names) or tuple(names) == unnamed(len(names))


def are_counted(names: Sequence[str]) -> bool:
    """Return whether the digits in names, if any, are the places of the names."""
    return all(
        int(digits) == number and str(number) == digits
        for number, name in enumerate(names)
        for digits in re.findall(r"\d+", name)
    )


def join_names(names: Iterable[str], most: int = 12) -> str:
    """Join some names."""
    ordered = sorted(names) if isinstance(names, frozenset) else list(names)
    return ", ".join(ordered[:most]) + (", …" if len(ordered) > most else "")
