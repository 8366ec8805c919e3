"""Columns of a table, found by the name that is given or by the usual ones, and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List, Value

from hf_distill.tasks.errors import TaskDataError

TEXTS = ("text", "sentence", "content", "review", "document", "article", "dialogue", "question")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
LABELS = ("label", "labels", "class", "category", "sentiment", "intent", "score", "target")
TOKENS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "label", "pos_tags")
SOURCES = ("document", "article", "text", "dialogue", "source")
TEACHER_CELL, TEACHER_ROW = "teacher_cell", "teacher_row"
_MIXED = "values of several kinds"
TARGETS = ("summary", "highlights", "target", "abstract")


def find_column(
    table: Dataset,
    option: str,
    chosen: str | None,
    usual: Sequence[str],
    what: str,
    *,
    taken: Collection[str] = (),
    error: type[TaskDataError] = TaskDataError,
) -> str:
    """Return the column that was chosen, or the usual one.

    Args:
        table: the data.
        option: the argument that chooses, for errors.
        chosen: its value; ``None`` to guess.
        usual: the names to look for, the most usual first.
        what: what the column holds, for errors.
        taken: columns that are something else already.
        error: what is raised where no column has a usual name.

    Raises:
        TaskDataError: the column is missing or taken, or several may be meant; lists the columns.
    """
    has = f"it has the columns {', '.join(table.column_names)}"
    if any(name.strip().isdecimal() or name.count(" ") > 2 for name in table.column_names):
        has += " (if these are cells, the first line with the names of the columns is missing)"
    if chosen is not None:
        if chosen not in table.column_names:
            raise TaskDataError(f"{option}={chosen!r}: the data has no such column; {has}.")
        if chosen in taken:
            raise TaskDataError(
                f"{option}={chosen!r} names a column that is something else already; choose "
                f"another one for {what}, {has}."
            )
        return chosen
    found = [name for name in usual if name in table.column_names and name not in taken]
    if not found:
        raise error(
            f"The data has no column with a usual name for {what}: {has}; name it with {option}."
        )
    if len(found) > 1 and found[0] != usual[0]:
        raise TaskDataError(
            f"The data has several columns that may be {what}: {', '.join(found)}; choose one with "
            f"{option}."
        )
    return found[0]


def find_pair(
    table: Dataset, first: str | None, second: str | None, *, taken: str
) -> tuple[str, str | None]:
    """Return the column of the texts, and that of the second texts where the data has pairs.

    Args:
        table: the data.
        first: ``text_column``; ``None`` to guess.
        second: ``text_pair_column``; ``None`` to guess, if ``first`` is also to be guessed.
        taken: the column of the labels.
    """
    names = table.column_names
    if first is None and second is None and TEXTS[0] not in names:
        for pair in PAIRS:
            if all(name in names for name in pair):
                return pair
    found = find_text(table, first, taken=taken)
    if second is not None:
        find_column(table, "text_pair_column", second, (), "the second text", taken=[taken, found])
    return found, second


def find_text(
    table: Dataset, chosen: str | None, usual: Sequence[str] = TEXTS, *, taken: str = ""
) -> str:
    """Return the column of texts: the one that was chosen, the only one, or a usual one."""
    features = table.features.items()
    texts = [name for name, feature in features if is_text(feature) and name != taken]
    usual = texts if len(texts) == 1 else usual
    return find_column(table, "text_column", chosen, usual, "the text", taken=[taken])


def teacher_cells(table: Dataset, column: str) -> Dataset:
    """Return a column of a teacher's predictions as ``TEACHER_CELL``, and rows as ``TEACHER_ROW``.

    Raises:
        TaskDataError: the column is missing.
    """
    find_column(table, "teacher_column", column, (), "the teacher's predictions")
    cells = table.select_columns([column]).rename_column(column, TEACHER_CELL)
    if is_mixed(cells.features[TEACHER_CELL]):  # of which the cells are JSON
        texts = [None if cell is None else next(iter(cell.values())) for cell in table[column]]
        cells = Dataset.from_dict({TEACHER_CELL: texts})
    return cells.add_column(TEACHER_ROW, list(range(len(table))))


def pick_columns(table: Dataset, columns: Mapping[str, str]) -> Dataset:
    """Keep some columns, given by their new names, under these."""
    renamed = {old: new for new, old in columns.items() if old != new}
    return table.select_columns(list(columns.values())).rename_columns(renamed)


def is_text(feature: Any) -> bool:
    """Return whether a column holds strings."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def is_list(feature: Any) -> bool:
    """Return whether a column holds lists."""
    return isinstance(feature, List | LargeList)


def mixed_type(kinds: Mapping[str, int]) -> str:
    """Name the only field of a column whose values have no common type, and are kept as JSON.

    Args:
        kinds: the first row with each kind of value.
    """
    rows = ", ".join(f"{kind} in row {row}" for kind, row in kinds.items() if kind)
    return f"{_MIXED} ({rows})"


def is_mixed(feature: Any) -> bool:
    """Return whether the values of a column have no common type."""
    return isinstance(feature, Mapping) and next(iter(feature), "").startswith(_MIXED)


def kind_of(feature: Any) -> str:
    """Return what a column or its lists hold: ``name``, ``number``, ``float`` or ``other``."""
    item = feature.feature if is_list(feature) else feature
    if isinstance(item, ClassLabel) or is_text(item):
        return "name"
    dtype = getattr(item, "dtype", "")
    if dtype == "bool":
        return "name"
    if dtype.startswith(("int", "uint")):
        return "number"
    return "float" if dtype.startswith(("float", "double")) else "other"


def checked_texts(table: Dataset, column: str, option: str) -> None:
    """Check that a column holds texts, that none is missing, and that not all are empty."""
    feature = table.features[column]
    if not is_text(feature):
        raise TaskDataError(
            f"The column {column!r} holds {describe(feature)}, not texts; choose another one with "
            f"{option}."
        )
    texts = list(table[column])
    missing = [row for row, text in enumerate(texts) if text is None]
    if missing:
        raise TaskDataError(
            f"{rows_in_words(missing)} nothing in the column {column!r}; remove the row."
        )
    if not any(text.strip() for text in texts):
        raise TaskDataError(
            f"All texts of the column {column!r} are empty; choose another one with {option}."
        )


def checked_words(table: Dataset, column: str) -> None:
    """Check that a column holds lists of words, and not only empty ones."""
    feature = table.features[column]
    if not is_list(feature) or not is_text(feature.feature):
        raise TaskDataError(
            f"The column {column!r} holds {describe(feature)}, not lists of words; choose another "
            "one with text_column."
        )
    rows = list(table[column])
    missing = [row for row, words in enumerate(rows) if None in (words or ())]
    if missing:
        raise TaskDataError(
            f"{rows_in_words(missing)} null among the words of the column {column!r}; write the "
            "word, or remove the row."
        )
    if not any(any(words or ()) for words in rows):
        raise TaskDataError(f"All rows of the column {column!r} are empty.")


def rows_in_words(rows: Sequence[int], most: int = 5) -> str:
    """Begin a sentence about some rows that have something."""
    if len(rows) == 1:
        return f"Row {rows[0]} has"
    numbers = ", ".join(map(str, rows[:most]))
    return f"{len(rows)} rows ({numbers}{', …' if len(rows) > most else ''}) have"


def describe(feature: Any) -> str:
    """Describe what a column holds."""
    if is_mixed(feature):
        return next(iter(feature))
    if is_list(feature):
        return f"lists of {describe(feature.feature)}"
    if isinstance(feature, ClassLabel):
        return "label numbers"
    return {"name": "text", "number": "whole numbers", "float": "numbers with decimals"}.get(
        kind_of(feature), f"{getattr(feature, 'dtype', type(feature).__name__)} values"
    )
