"""Names and numbers of labels, in data and in models, and how they correspond."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset

from hf_distill.console import log_rank_0
from hf_distill.tasks.cells import folded
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


class Choice(NamedTuple):
    """Labels for a model to train."""

    names: tuple[str, ...]
    why: str | None
    """Where they come from, if the user should know."""


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
    named = isinstance(item, ClassLabel) and not _are_numbers(item.names)
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
    if isinstance(item, ClassLabel) and not _are_numbers(item.names):
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


def choose_labels(labels: DataLabels, student: Any = None, teacher: Any = None) -> Choice:
    """Choose the labels of a model to train.

    A student that has the labels of the data already keeps its own order of them, and so its
    head. Numbers without names get the teacher's names, if it has names, or the student's.

    Args:
        labels: the labels of the training data.
        student: the configuration of the model to train.
        teacher: the configuration of its teacher, if there is one.

    Raises:
        TaskDataError: the data has numbers, and teacher and student disagree what they mean.
    """
    own, taught = _named(student), _named(teacher)
    if labels.count is not None:
        return _choose_names(labels, labels.count, teacher, own, taught)
    if own is not None and _folded(labels.names) <= _folded(own):
        order = "" if own == labels.names else ", in its own order"
        return Choice(
            own, f"The student knows these labels and keeps them{order}: {join_names(own)}"
        )
    if taught is not None and _folded(labels.names) < _folded(taught):
        absent = _folded(taught) - _folded(labels.names)
        return Choice(taught, f"The data lacks labels that the teacher has: {join_names(absent)}")
    return Choice(labels.names, None)


def student_labels(
    student: Any, teacher: Any, examples: Dataset | None, column: str
) -> dict[str, Any]:
    """Return the labels of a model to train, as options of its configuration.

    Args:
        student: the configuration of the model to train.
        teacher: the configuration of its teacher, if there is one.
        examples: all training data; without labels (``None``) they are the teacher's.
        column: where the labels are.

    Raises:
        ValueError: there is neither data with labels nor a teacher that names its own.
    """
    if examples is None and not getattr(teacher, "id2label", None):
        raise ValueError(
            "The training data has no labels, and the teacher's configuration names none; give it "
            "id2label, or label the data."
        )
    found = DataLabels(model_labels(teacher)) if examples is None else data_labels(examples, column)
    names, why = choose_labels(found, student, teacher)
    if why is not None and examples is not None:
        log_rank_0(why)
    return label_options(names)


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
        numbered = isinstance(item, ClassLabel) and _are_numbers(item.names)
        if numbered and is_list(feature) and item.num_classes != len(self.names):
            raise TaskDataError(
                f"The label column numbers {item.num_classes} labels, and the model has "
                f"{len(self.names)}: {join_names(self.names)}. Which of these they are is not "
                "known; name them (for vectors of 0 and 1 with --class_names)."
            )
        self._data_names: tuple[str, ...] = ()
        if isinstance(item, ClassLabel) and _are_made_up(self.names):
            self._data_names = tuple(item.names)

    def number(self, label: Label, row: int) -> int:
        """Return the number of a label.

        Raises:
            TaskDataError: the model has no such label; names the row.
        """
        name = str(label)
        found = self._numbers.get(name)
        if found is None:
            found = self._similar.get(folded(name))
        if found is not None:
            return found
        if label in self._data_names:
            label = self._data_names.index(name)
        counts = isinstance(label, int) and _are_counted(self.names)
        if counts and 0 <= int(label) < len(self.names):
            return int(label)
        raise TaskDataError(
            f"Row {row} has the label {label!r}, which is none of the model's labels: "
            f"{join_names(self.names)}. Correct the data, choose another label_column, or a model "
            "with that label."
        )

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
            many = value if isinstance(value, list) else [value]
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

    Labels are compared by name where both models have the same names, else by number.

    Args:
        student: its label names, and a label number, or a list of them, per prediction.
        teacher: the same of the teacher.
    """
    named = _folded(student[0]) == _folded(teacher[0])
    sides = []
    for names, predictions in (student, teacher):
        keys = [name.casefold() if named else number for number, name in enumerate(names)]
        sides.append(
            [{keys[n] for n in one} if isinstance(one, list) else keys[one] for one in predictions]
        )
    pairs = zip(*sides, strict=True)
    return float(np.mean([one == other for one, other in pairs]))


def row_numbers(table: Dataset) -> Iterable[int]:
    """Return the row numbers to report: those of the whole data, where the rows know them."""
    return table["row"] if "row" in table.column_names else range(len(table))


def _are_numbers(names: Iterable[str]) -> bool:
    return all(name == str(number) for number, name in enumerate(names))


def _are_made_up(names: Sequence[str]) -> bool:
    """Return whether the names are numbers, or what transformers makes of them."""
    return _are_numbers(names) or tuple(names) == unnamed(len(names))


def _are_counted(names: Sequence[str]) -> bool:
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


def _named(config: Any) -> tuple[str, ...] | None:
    """Return the label names of a configuration; ``None`` if it has none of its own."""
    if config is None or not getattr(config, "id2label", None):
        return None
    names = model_labels(config)
    return None if _are_made_up(names) else names


def _choose_names(
    labels: DataLabels,
    count: int,
    teacher: Any,
    own: tuple[str, ...] | None,
    taught: tuple[str, ...] | None,
) -> Choice:
    """Choose names for labels that are bare numbers."""
    if taught is not None and _enough(taught, count, labels):
        if own is not None and own != taught and _folded(own) == _folded(taught):
            raise TaskDataError(
                "The data has numbers for labels, and student and teacher number the same names "
                f"differently ({join_names(own)}; {join_names(taught)}). Write the names into the "
                "label column of the data."
            )
        why = "The data has numbers for labels; their names are taken from the teacher: "
        return Choice(taught, why + join_names(taught))
    if own is not None and len(own) == count and _are_counted(own):
        why = "The data has numbers for labels; the student keeps its names for them: "
        return Choice(own, why + join_names(own))
    if taught is None and teacher is not None and getattr(teacher, "id2label", None):
        names = model_labels(teacher)
        if _enough(names, count, labels):
            return Choice(names, None)
    return Choice(labels.names, None)


def _enough(names: Sequence[str], count: int, labels: DataLabels) -> bool:
    return len(names) == count if labels.exact else len(names) >= count


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(folded, names))
