"""Cells of a column of predictions, read as the logits of a student's labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hf_distill.teachers.columns.contents import (
    ColumnError,
    holds_lists,
    holds_one,
    is_label,
)

KINDS = ("probabilities", "log_probabilities", "logits")
SURE = 1e30
"""Log-odds of a label that is certain: finite, so no loss is NaN, and exactly 1 as a sigmoid."""
_TOLERANCE = 0.01
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
_HOW = 'a list of objects {"label": …, "score": …}, or {"labels": […], "scores": […]}'

Problem = Literal["one label", "several labels", "numbers", "choices"]


@dataclass(frozen=True)
class CellReader:
    """Reads the cells of a column.

    Attributes:
        column: its name, for errors.
        kind: what its numbers are; one of ``KINDS``.
        names: the student's labels, in the order of its logits.
        problem: what a prediction is of.
        class_names: the labels in the order of lists of numbers; ``None`` if that is not known.
        task: the student's task, for errors.
    """

    column: str
    kind: str
    names: Sequence[str]
    problem: Problem
    class_names: Sequence[str] | None = None
    task: str = ""
    _found: dict[Any, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check kind and order."""
        if self.kind not in KINDS:
            raise ColumnError(
                f"teacher_column_kind must be one of {', '.join(KINDS)}, but it is {self.kind!r}."
            )
        given = self.class_names
        if given is not None and sorted(map(self._index, given)) != list(range(len(self.names))):
            raise ColumnError(
                f"class_names={list(given)} must name each of the student's "
                f"{len(self.names)} labels once: {_shown(self.names)}."
            )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The labels by name, by folded name where that is one label's only, or by number."""
        folded = [_folded(name) for name in self.names]
        known = {name: n for n, name in enumerate(folded) if folded.count(name) == 1}
        if self._are_made_up:
            known |= {str(n): n for n in range(len(folded))}
        return known | {name: n for n, name in enumerate(self.names)}

    @property
    def _are_made_up(self) -> bool:
        return all(name in (str(n), f"LABEL_{n}") for n, name in enumerate(self.names))

    @cached_property
    def _order(self) -> list[int] | None:
        """The label of each number in a list."""
        if self.class_names is not None:
            return [self._number(name) for name in self.class_names]
        known = self._are_made_up or len(self.names) == 1
        return list(range(len(self.names))) if known else None

    def logits(self, cells: Sequence[tuple[str, Any]]) -> NDArray[np.float64]:
        """Return logits of predictions, ``(cells, labels)``, in the student's order of labels.

        Of probabilities they are the logs, normalised: the softmax of logits that are divided by T
        is then ``p ** (1 / T)``, normalised. Of the probabilities of several labels they are the
        log-odds.

        Args:
            cells: where each is (``Row 3``), and its content.

        Raises:
            ColumnError: names the row, the value and what to change.
        """
        values = np.zeros((len(cells), len(self.names)))
        given = np.zeros(values.shape, dtype=bool)
        for n, (place, cell) in enumerate(cells):
            where = f"{place} of the column {self.column!r}"
            for label, number in self._pairs(cell, where):
                values[n, label], given[n, label] = self._checked(number, where, label), True
        places = [f"{place} of the column {self.column!r}" for place, _ in cells]
        if self.problem == "numbers" or self.kind == "logits":
            self._check_complete(given, places)
            self._check_logits(values, places)
            return values
        logs = self._logs(values, places)
        if self.problem == "several labels":
            self._check_complete(given, places)
            logs = np.minimum(logs, 0.0)
            with np.errstate(divide="ignore"):
                return np.clip(logs - np.log(-np.expm1(logs)), -SURE, SURE)
        return self._normalised(np.where(given, logs, -np.inf), given, places)

    # ---- layouts -------------------------------------------------------------------------------

    def _pairs(self, cell: Any, where: str) -> list[tuple[int, Any]]:
        """Return labels and numbers of one cell, in any of the layouts."""
        if isinstance(cell, Mapping):
            return self._pairs_of_object(cell, where)
        if isinstance(cell, list | tuple | np.ndarray):
            return self._pairs_of_list(list(cell), where)
        if cell is None:
            raise ColumnError(f"{where} is empty: write a prediction, or remove the row.")
        if self.problem == "numbers" and len(self.names) == 1:
            return [(0, cell)]
        what = f"the text {cell!r}" if isinstance(cell, str) else f"one value, {cell!r}"
        raise ColumnError(
            f"{where} is {what}; it must hold a number for each of the {len(self.names)} labels: "
            'an object {"label": number, …}, '
            f"{_HOW}. Choose another teacher_column, or write it so."
        )

    def _pairs_of_object(self, cell: Mapping[str, Any], where: str) -> list[tuple[int, Any]]:
        if holds_lists(cell):
            labels, scores = cell["labels"], cell["scores"]
            if not isinstance(scores, list | tuple) or len(labels) != len(scores):
                raise ColumnError(
                    f"{where} has {len(labels)} labels and the scores {scores!r}; write a score "
                    "for each label."
                )
            return self._top(list(zip(labels, scores, strict=True)), where)
        if holds_one(cell) and set(cell).isdisjoint(self.names):
            return self._top([(cell["label"], cell["score"])], where)
        pairs = [(name, number) for name, number in cell.items() if number is not None]
        found = [(self._label(name, where), number) for name, number in pairs]
        self._check_once(found, where)
        there = {label for label, _ in found}
        absent = [name for n, name in enumerate(self.names) if n not in there]
        if absent:
            raise ColumnError(
                f"{where} has no number for the label {absent[0]!r} (only for: "
                f"{_shown([name for name, _ in pairs]) or 'none'}); write one for each label, 0 "
                f"included. A list that leaves labels out is {_HOW}."
            )
        return found

    def _pairs_of_list(self, cell: list[Any], where: str) -> list[tuple[int, Any]]:
        if not cell:
            raise ColumnError(f"{where} is an empty list: write a prediction, or remove the row.")
        if all(map(holds_one, cell)):
            return self._top([(one["label"], one["score"]) for one in cell], where)
        nested = next((one for one in cell if isinstance(one, list | tuple | Mapping)), None)
        if nested is not None:
            what = "one list" if self.problem != "choices" else "one list of a number per choice"
            raise ColumnError(
                f"{where} holds {nested!r} inside a list, which looks like several predictions; "
                f"{self.task or 'this task'} needs {what} or object for each"
                f"{' word' if ', word ' in where else ' row'}: remove the outer list, or choose "
                "another teacher_column."
            )
        if len(cell) != len(self.names):
            raise ColumnError(
                f"{where} has {len(cell)} numbers, and the student has {len(self.names)} "
                f"labels: {_shown(self.names)}. Write one for each, or load the student with "
                f"num_labels={len(cell)}; a list that leaves labels out is {_HOW}."
            )
        if self._order is None:
            raise ColumnError(
                f"{where} is a list of numbers, and nothing tells which labels they belong to; "
                f"name them in the order of the numbers with class_names (of: "
                f"{_shown(self.names)}), or write objects {{label: number}}."
            )
        return list(zip(self._order, cell, strict=True))

    def _top(self, pairs: Sequence[tuple[Any, Any]], where: str) -> list[tuple[int, Any]]:
        if not pairs:
            raise ColumnError(f"{where} is an empty list: write a prediction, or remove the row.")
        found = [(self._label(name, where), number) for name, number in pairs]
        self._check_once(found, where)
        return found

    def _check_once(self, found: Sequence[tuple[int, Any]], where: str) -> None:
        labels = [label for label, _ in found]
        for label in labels:
            if labels.count(label) > 1:
                raise ColumnError(
                    f"{where} has the label {self.names[label]!r} twice; write one number for it."
                )

    # ---- labels --------------------------------------------------------------------------------

    def _label(self, name: Any, where: str) -> int:
        if not is_label(name):
            raise ColumnError(
                f"{where} has {name!r} as a label; write the label, or remove the row. The "
                f"student's labels are: {_shown(self.names)}."
            )
        known = (type(name), str(name))  # True is 1 as a key
        number = self._found.get(known)
        if number is None:
            number = self._found[known] = self._index(name)
        if number < 0:
            raise ColumnError(
                f"{where} has the label {name!r}, which is not one of the student's: "
                f"{_shown(self.names)}. Correct the column, or load the student with that label "
                "(id2label; on the command line --class_names)."
            )
        return number

    def _number(self, name: str) -> int:
        return self._numbers.get(name, self._numbers.get(_folded(name), -1))

    def _index(self, name: Any) -> int:
        """Return the number of a label by its name; of a number as ``class_names`` count.

        Where labels are numbers themselves, a number is a name and never a place: of 0, 1 and 2
        for the labels 1, 2 and 3, both 0 and 1 would be the label 1.
        """
        found = self._number(str(name))
        if found < 0 and isinstance(name, int) and not isinstance(name, bool):
            order = () if any(map(_NUMBER.fullmatch, self.names)) else self._order or ()
            return order[name] if 0 <= name < len(order) else -1
        return found

    # ---- numbers -------------------------------------------------------------------------------

    def _checked(self, number: Any, where: str, label: int) -> float:
        if not isinstance(number, Real | Decimal) or isinstance(number, bool | np.bool_):
            what = "the text" if isinstance(number, str) else "the value"
            raise ColumnError(
                f"{where} has {what} {number!r} for the label {self.names[label]!r}; write a "
                "number."
            )
        if math.isnan(number):
            raise ColumnError(
                f"{where} has NaN for the label {self.names[label]!r}; write a number, or remove "
                "the row."
            )
        return float(number)

    def _check_complete(self, given: NDArray[np.bool_], places: Sequence[str]) -> None:
        for n, label in np.argwhere(~given)[:1].tolist():
            needs = "logits" if self.problem != "several labels" else "several labels of a row"
            raise ColumnError(
                f"{places[n]} leaves out the label {self.names[label]!r}; {needs} need a number "
                "for every label. Write all of them (top_k=None in a pipeline), or for one label "
                "per row probabilities (teacher_column_kind='probabilities')."
            )

    def _check_logits(self, values: NDArray[np.float64], places: Sequence[str]) -> None:
        impossible = np.isneginf(values) & (self.problem != "numbers")
        bad = ~impossible & (np.abs(values) > SURE)
        bad[:, 0] |= impossible.all(axis=1)
        for n, label in np.argwhere(bad)[:1].tolist():
            raise ColumnError(
                f"{places[n]} has {values[n, label]:g} for the label {self.names[label]!r}, which "
                "is not a finite number; correct it, or remove the row."
            )

    def _logs(self, values: NDArray[np.float64], places: Sequence[str]) -> NDArray[np.float64]:
        """Return the log-probabilities, each checked."""
        if self.kind == "log_probabilities":
            bad, need = values > _TOLERANCE, "0 or less"
        else:
            bad, need = (values < 0) | (values > 1 + _TOLERANCE), "from 0 to 1"
        for n, label in np.argwhere(bad)[:1].tolist():
            raise ColumnError(
                f"{places[n]} has {values[n, label]:g} for the label {self.names[label]!r}, and "
                f"{self.kind.replace('_', '-')} are {need}. {self._advice(values)}"
            )
        if self.kind == "log_probabilities":
            return values
        with np.errstate(divide="ignore"):
            return np.log(values)

    def _advice(self, values: NDArray[np.float64]) -> str:
        """Say what the numbers look like, and which argument says so."""
        sums = values.sum(axis=1)
        if self.kind == "log_probabilities" and bool((np.abs(sums - 1) < _TOLERANCE).all()):
            return "They look like probabilities: set teacher_column_kind='probabilities'."
        if bool((values >= 0).all()) and bool((np.abs(sums - 100) < 100 * _TOLERANCE).all()):
            return "They look like percentages: divide them by 100."
        with np.errstate(over="ignore"):
            totals = np.exp(values).sum(axis=1)
        if bool((values <= 0).all()) and bool((np.abs(totals - 1) < _TOLERANCE).all()):
            return "They look like log-probabilities: set teacher_column_kind='log_probabilities'."
        return "If they are logits, set teacher_column_kind='logits'; else correct the row."

    def _normalised(
        self, logs: NDArray[np.float64], given: NDArray[np.bool_], places: Sequence[str]
    ) -> NDArray[np.float64]:
        """Return logs of probabilities that add up to 1.

        What the labels of a list leave is shared out evenly among the labels that it leaves out.
        """
        sums = np.exp(logs).sum(axis=1)
        partial = ~given.all(axis=1)
        wrong = (sums > 1 + _TOLERANCE) | (~partial & (sums < 1 - _TOLERANCE))
        for n in np.flatnonzero(wrong)[:1].tolist():
            raise ColumnError(
                f"{places[n]} has probabilities that add up to {sums[n]:.6g}, and they must add "
                f"up to 1 (within {_TOLERANCE}). {self._sum_advice(wrong)}"
            )
        rest = np.where(partial, np.maximum(1 - sums, 0.0), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = rest / (~given).sum(axis=1)
            filled = np.where(given, logs, np.log(np.where(partial, share, 0.0))[:, None])
            total: NDArray[np.float64] = np.exp(filled).sum(axis=1, keepdims=True)
            return filled - np.log(total)

    def _sum_advice(self, wrong: NDArray[np.bool_]) -> str:
        if self.problem == "one label" and bool(wrong.mean() > 0.5):
            return (
                "If a row may have several labels, load the student with "
                "problem_type='multi_label_classification'; if the numbers are logits, set "
                "teacher_column_kind='logits'."
            )
        return "Correct the row, write more decimals, or set teacher_column_kind to what they are."


def _folded(name: str) -> str:
    return name.strip().casefold()


def _shown(names: Iterable[Any], most: int = 12) -> str:
    every = list(map(str, names))
    return ", ".join(every[:most]) + (", …" if len(every) > most else "")
