"""A column of predictions as the teacher of a command: its labels, and its cells."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig

from hf_distill.heads import SequenceClassificationHead, TokenClassificationHead, head_of_task
from hf_distill.tasks.base import Task
from hf_distill.tasks.columns import TEACHER_CELL, TEACHER_ROW
from hf_distill.tasks.labels import data_labels, label_options, unnamed
from hf_distill.teachers.columns.cells import decoded, labels_of
from hf_distill.teachers.imported import TeacherColumn, check_head


def check_column_task(task: Task, column: str) -> None:
    """Check that a column can teach a task.

    Raises:
        ValueError: its labels are places or tokens.
    """
    check_head(task.head, column)


def column_config(
    task: Task, examples: Dataset, column: str, *, labelled: bool
) -> PreTrainedConfig | None:
    """Return the labels of a column as those of a teacher; ``None`` if it names none.

    In labelled data the rows must agree on them, and the labels have names: the labels of a student
    come from the data, and a column does not tell which number each has.
    """
    by_word = issubclass(task.head, TokenClassificationHead)
    if labelled:
        gold = "tags" if by_word else "label"
        problem = task.options.problem_type
        if problem == "regression" or data_labels(examples, gold).count is not None:
            return None
    cells = [decoded(cell, column, row) for row, cell in _numbered(examples)]
    if task.options.class_names is not None:
        names: tuple[str, ...] | None = tuple(task.options.class_names)
    else:
        names = labels_of(cells, by_word=by_word, shared=labelled)
    if names is not None:
        return PreTrainedConfig(**label_options(names))
    is_number = all(isinstance(cell, int | float) for cell in cells)
    if is_number and issubclass(task.head, SequenceClassificationHead) and not labelled:
        return PreTrainedConfig(**label_options(unnamed(1)), problem_type="regression")
    return None


def read_column(
    task: Task, examples: Dataset, column: str, kind: str, config: Any
) -> tuple[Dataset, TeacherColumn]:
    """Return examples without the cells of a column, and its predictions for them.

    Args:
        task: the task.
        examples: as ``load_data`` reads them with ``teacher_column``.
        column: its name.
        kind: what its numbers are.
        config: the student's.
    """
    rows, cells = zip(*_numbered(examples), strict=True)
    read = TeacherColumn.read(
        cells,
        column,
        head_of_task(task.name, config),
        kind=kind,
        class_names=task.options.class_names,
        rows=rows,
    )
    examples = examples.remove_columns([TEACHER_CELL, TEACHER_ROW])
    if "tokens" in examples.column_names:
        read.check_words(examples["tokens"])
    return examples, read


def _numbered(examples: Dataset) -> list[tuple[int, Any]]:
    return list(zip(examples[TEACHER_ROW], examples[TEACHER_CELL], strict=True))
