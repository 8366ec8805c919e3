"""Reading a column of labels: names, numbers or lists, before their meaning is known."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from hf_distill.tasks.columns import describe, is_list, is_text, kind_of, rows_in_words
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError

_WHOLE = re.compile(r"(0|-?[1-9]\d*)(\.0+)?", re.ASCII)
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_NO_NUMBER = frozenset({"NaN", "nan", "NA", "<NA>", "null", "None"})
_LARGEST = 2**53  # beyond it, floats skip whole numbers
_ADDED = "label as it is"


def read_labels(
    table: Dataset, column: str, *, names: Sequence[str] | None = None, vectors: bool = False
) -> Dataset:
    """Replace the cells of a label column by what they are.

    Text is stripped, and cells without a visible character are missing. Whole numbers as text,
    as every CSV has them, become numbers only if each cell would be written in the same way again;
    ``1.0`` is a whole number. Other decimals as text stay text: names, or numbers to predict.

    Args:
        table: any table.
        column: a column of labels, or of lists of labels.
        names: all labels, in the order of their numbers. Labels become numbers of them.
        vectors: a list may be a vector with a 0 or 1 for each label. It becomes the list of the
            labels that are 1.

    Raises:
        MissingLabelsError: rows have none; names them. The label -1 stands for none where it is the
            only one of a column, or where classes are numbered from 0 (``ClassLabel``).
        TaskDataError: the cells can be read in more than one way, two labels differ only in
            case or spaces, or one is not among ``names``; names them.
    """
    feature = table.features[column]
    item = feature.feature if is_list(feature) else feature
    values = list(table[column])
    if isinstance(item, ClassLabel) or is_list(item):
        _check_labelled(values, column)
        _check_present(values, column)
        if names is None or is_list(item):
            return table
        new: Any = feature
    elif is_list(feature):
        values, item = _read_lists(values, item, column, names, vectors=vectors)
        new = List(item)
    else:
        new, values = _read_cells(values, item, column)
    _check_present(values, column)
    # Some of a column may be a class, or numbers to predict.
    if all(one == -1 for value in values for one in labels_of(value)):
        _check_labelled(values, column)
    if names is not None:
        new, values = _numbered(values, new, names, column)
    if new == feature and values == list(table[column]):
        return table
    order = table.column_names
    added = table.add_column(_ADDED, values, feature=new).remove_columns(column)
    return added.rename_column(_ADDED, column).select_columns(order)


def folded(name: str) -> str:
    """Return a name without what readers overlook: case, spaces and invisible characters."""
    shown = unicodedata.normalize("NFC", name).casefold()
    return "".join(letter for letter in shown if letter.isprintable() and letter != " ")


def is_number(cell: str) -> bool:
    """Return whether a text is a number, whole or with decimals."""
    return _DECIMAL.fullmatch(cell) is not None


def are_decimals(values: Iterable[Any]) -> bool:
    """Return whether all texts are numbers, some of them with decimals: ``5.00``, ``3.25``."""
    texts = {value for value in values if value is not None}
    return any("." in text for text in texts) and all(map(is_number, texts))


def _read_cells(values: list[Any], item: Any, column: str) -> tuple[Any, list[Any]]:
    if is_text(item):
        return _read_texts(values, column)
    if kind_of(item) == "float":
        for row, value in enumerate(values):
            if value is not None and math.isinf(value):
                raise TaskDataError(
                    f"The column {column!r} holds {value}, first in place {row}; a label must be a "
                    "finite number. Correct the cell, or remove its row."
                )
        values = [None if value is None or math.isnan(value) else value for value in values]
        whole = _whole(values)
        if whole is not None:
            return Value("int64"), whole
    return item, values


def _read_texts(values: list[str | None], column: str) -> tuple[Any, list[Any]]:
    texts = [(value or "").strip() or None for value in values]
    unseen = {text for text in set(texts) if text is not None and not folded(text)}
    texts = [None if text in unseen else text for text in texts]
    cells = {text for text in texts if text is not None}
    if cells and all(cell[0] == "[" and cell[-1] == "]" for cell in cells):
        raise TaskDataError(
            f"The column {column!r} holds lists written as text, such as {min(cells)!r}; write the "
            "data as .jsonl or .parquet, which have lists."
        )
    read: dict[str | None, Any] = dict.fromkeys([None, *(cells & _NO_NUMBER)])
    numbers = cells - _NO_NUMBER
    if numbers and all(map(_WHOLE.fullmatch, numbers)):
        read |= {cell: int(cell.partition(".")[0]) for cell in numbers}
        if all(abs(number) < 2**63 for number in read.values() if number is not None):
            return Value("int64"), [read[text] for text in texts]
    elif numbers and are_decimals(numbers):
        return Value("string"), [None if text in _NO_NUMBER else text for text in texts]
    check_apart(cells, column)
    return Value("string"), texts


def prints_back(cell: str) -> bool:
    """Return whether a number as text would be written in the same way again."""
    return cell in (repr(float(cell)), repr(float(cell)).removesuffix(".0"))


def _whole(values: Iterable[float | None]) -> list[int | None] | None:
    """Return the numbers as whole ones, if all are."""
    found: list[int | None] = []
    for value in values:
        if value is not None and (not float(value).is_integer() or abs(value) >= _LARGEST):
            return None
        found.append(None if value is None else int(value))
    return found


def _read_lists(
    rows: list[Any], item: Any, column: str, names: Sequence[str] | None, *, vectors: bool
) -> tuple[list[Any], Any]:
    """Return the lists with their items as they are, and the feature of these."""
    sizes = [len(row) for row in rows if row is not None]
    flat = [one for row in rows if row is not None for one in row]
    kind: Any
    if vectors and getattr(item, "dtype", "") == "bool":
        kind, flat = Value("int64"), [None if one is None else int(one) for one in flat]
        if len(set(sizes)) > 1:
            raise TaskDataError(
                f"The column {column!r} holds lists of true and false of different lengths "
                f"({min(sizes)} to {max(sizes)}); each needs one for every label."
            )
        is_vectors: bool | None = True
    else:
        kind, flat = _read_cells(flat, item, column)
        if kind_of(kind) == "float":
            raise TaskDataError(
                f"The column {column!r} holds {describe(List(kind))}; a label of several is a name "
                "or a number, or a vector has 0 or 1 for each label."
            )
        is_vectors = None if vectors and kind_of(kind) == "number" else False
    source = iter(flat)
    read = [None if row is None else [next(source) for _ in row] for row in rows]
    if is_vectors is None:
        is_vectors = _are_vectors(read, column, names)
    if not is_vectors:
        return read, kind
    count = sizes[0] if sizes else 0
    if names is not None and len(names) != count:
        raise TaskDataError(
            f"--class_names has {len(names)} names, and the vectors in the column {column!r} have "
            f"{count} numbers; give one name for each."
        )
    chosen = [row if row is None else _chosen(row) for row in read]
    return chosen, ClassLabel(names=list(names or map(str, range(count))))


def _chosen(vector: list[int | None]) -> list[int | None]:
    return [None if one is None else n for n, one in enumerate(vector) if one != 0]


def _are_vectors(rows: list[Any], column: str, names: Sequence[str] | None) -> bool:
    """Tell vectors of 0 and 1 from lists of label numbers."""
    lists = [row for row in rows if row is not None]
    sizes = {len(row) for row in lists}
    repeated = next((row for row in lists if len(set(row)) < len(row)), None)
    if len(sizes) != 1 or not {one for row in lists for one in row} <= {0, 1}:
        if repeated is not None:
            raise TaskDataError(
                f"The column {column!r} has the list {repeated}, which names a label twice, so it "
                "does not hold label numbers; and for vectors with a 0 or 1 for each label its "
                "lists differ in length or hold other numbers."
            )
        return False
    size = sizes.pop()
    if repeated is not None:
        return True
    # All different: at most 0 and 1, so a vector of two labels, or one number of two.
    if size == 0 or (names is not None and len(names) != size):
        return False
    raise TaskDataError(
        f"The column {column!r} can be read in two ways: {lists[0]} may be a vector with a 0 or 1 "
        "for each label, or a list of label numbers. Write names instead of numbers."
    )


def _check_present(values: Iterable[Any], column: str) -> None:
    missing = [
        row
        for row, value in enumerate(values)
        if value is None or (isinstance(value, list) and None in value)
    ]
    if missing:
        raise MissingLabelsError(
            f"{rows_in_words(missing)} nothing in the column {column!r}; label the row or remove "
            "it."
        )


def _check_labelled(values: Iterable[Any], column: str) -> None:
    unlabelled = [row for row, value in enumerate(values) if -1 in labels_of(value)]
    if unlabelled:
        raise MissingLabelsError(
            f"{rows_in_words(unlabelled)} the label -1 in the column {column!r}, which stands "
            "for no label in many test splits; choose a split with labels, or remove the row."
        )


def labels_of(cell: Any) -> list[Any]:
    """Return the labels of a cell, which holds one or a list."""
    return cell if isinstance(cell, list) else [cell]


def are_numbers(names: Iterable[str]) -> bool:
    """Return whether the names of labels are their numbers."""
    return all(name == str(number) for number, name in enumerate(names))


def _numbered(
    rows: list[Any], feature: Any, names: Sequence[str], column: str
) -> tuple[Any, list[Any]]:
    """Return the feature of labels with these names, and their numbers."""
    item = feature.feature if is_list(feature) else feature
    if kind_of(item) == "other":
        return feature, rows
    if kind_of(item) == "float":
        raise TaskDataError(
            f"The column {column!r} holds {describe(feature)}, which have no names; leave out "
            "--class_names."
        )
    written = item.names if isinstance(item, ClassLabel) else None
    numbered = kind_of(item) == "number" or (written is not None and are_numbers(written))
    known = {folded(name): number for number, name in enumerate(names)}

    def number(label: Any, row: int) -> int:
        if numbered or written == list(names):
            if label >= len(names):
                raise TaskDataError(
                    f"The column {column!r} has the label {label} in row {row}, but --class_names "
                    f"has {len(names)} names, for 0 to {len(names) - 1}."
                )
            return int(label)
        name = str(label) if written is None else written[label]
        if folded(name) not in known:
            raise TaskDataError(
                f"The column {column!r} has the label {name!r} in row {row}, which is not in "
                f"--class_names {' '.join(names)}; name all labels of the data there, or correct "
                "the cell."
            )
        return known[folded(name)]

    new = ClassLabel(names=list(names))
    if is_list(feature):
        return List(new), [[number(one, row) for one in many] for row, many in enumerate(rows)]
    return new, [number(one, row) for row, one in enumerate(rows)]


def checked_names(names: Sequence[str]) -> list[str]:
    """Return the names of labels without spaces around them.

    Raises:
        ValueError: there is one only, one cannot be seen, or two differ only in case, spaces or
            invisible characters.
    """
    stripped = [name.strip() for name in names]
    given = " ".join(map(repr, names))
    if len(names) < 2 or not all(map(folded, stripped)):
        raise ValueError(f"--class_names {given} must be the names of at least two labels.")
    seen: dict[str, str] = {}
    for name in stripped:
        other = seen.get(folded(name))
        if other is not None:
            raise ValueError(
                f"--class_names {given} has {other!r} and {name!r}, which differ at most in case, "
                "spaces or invisible characters; give each label once."
            )
        seen[folded(name)] = name
    return stripped


def check_apart(cells: Iterable[str], column: str) -> None:
    """Check that no two names differ only in what readers overlook."""
    seen: dict[str, str] = {}
    for cell in sorted(cells):
        other = seen.setdefault(folded(cell), cell)
        if other != cell:
            raise TaskDataError(
                f"The column {column!r} has the labels {other!r} and {cell!r}, which differ only "
                "in case, spaces or invisible characters; write one of them everywhere."
            )
