"""A column of predictions as the teacher of a command: its labels, and its cells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedConfig

from hf_distill.compatibility import Finding, PairReport, check_teacher
from hf_distill.compatibility.findings import error, info
from hf_distill.heads import SequenceClassificationHead, TokenClassificationHead, head_of_task
from hf_distill.heads.base import IGNORED
from hf_distill.loading import read_config
from hf_distill.scoring import Scores
from hf_distill.tasks.base import Task
from hf_distill.tasks.cells import check_apart
from hf_distill.tasks.columns import TEACHER_CELL, TEACHER_ROW
from hf_distill.tasks.fidelity import OutputRecorder
from hf_distill.tasks.labels import data_labels, label_options, unnamed
from hf_distill.tasks.text_classification import REGRESSION, data_problem_type
from hf_distill.teachers.columns.cells import KINDS
from hf_distill.teachers.columns.contents import ColumnError, decoded, labels_of
from hf_distill.teachers.imported import TeacherColumn, check_head

_PREFIX = "column:"


class ColumnSource(NamedTuple):
    """A column where a command takes a model: ``column:NAME``, or ``column:NAME:KIND``."""

    name: str
    kind: str

    @classmethod
    def of(cls, source: str) -> ColumnSource | None:
        """Return the column that is named; ``None`` for a model."""
        if not source.startswith(_PREFIX):
            return None
        name, _, kind = source.removeprefix(_PREFIX).rpartition(":")
        return cls(name, kind) if name and kind in KINDS else cls(source[len(_PREFIX) :], KINDS[0])


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
        if not by_word and (task.options.problem_type or data_problem_type(examples)) == REGRESSION:
            return None
        if data_labels(examples, "tags" if by_word else "label").count is not None:
            return None
    cells = [decoded(cell, column, row) for row, cell in _numbered(examples)]
    if task.options.class_names is not None:
        names: tuple[str, ...] | None = tuple(task.options.class_names)
    else:
        names = labels_of(cells, by_word=by_word, shared=labelled)
        check_apart(names or (), column)
    if names is not None and len(names) > 1:
        return PreTrainedConfig(**label_options(names))
    if names is not None and not labelled:
        raise ColumnError(
            f"The column {column!r} names one label only, {names[0]!r}; name all labels with "
            "--class_names."
        )
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


def score_column(
    task: Task, examples: Dataset, source: ColumnSource, *, batch_size: int = 16
) -> tuple[Scores, OutputRecorder]:
    """Score a column on labelled data, as ``score_model`` does a model.

    Its labels are those of the data. What is recorded of words is nothing: they have no tokens.
    """
    labels = column_config(task, examples, source.name, labelled=True)
    config: Any = PreTrainedConfig(**task.model_options(None, labels, examples))
    examples, column = read_column(task, examples, source.name, source.kind, config)
    labelled = task.labelled(examples, config)
    recorder = OutputRecorder(column.head, keeps_logits=True)
    if isinstance(column.head, TokenClassificationHead):
        counts = [len(tags) for tags in labelled["tags"]]
        features = Dataset.from_dict({"words": [list(range(count)) for count in counts]})
        gold = np.full((len(counts), max(counts)), IGNORED)
        found = np.zeros((*gold.shape, config.num_labels))
        for row, (tags, logits) in enumerate(zip(labelled["tags"], column.logits, strict=True)):
            gold[row, : len(tags)], found[row, : len(tags)] = tags, logits
    else:
        features, gold, found = examples, np.array(labelled["labels"]), np.stack(column.logits)
        for begin in range(0, len(gold), batch_size):
            part = slice(begin, begin + batch_size)
            batch = {"labels": torch.from_numpy(gold[part])}
            recorder.record(batch, {"logits": torch.from_numpy(found[part])})
    model: Any = SimpleNamespace(config=config)
    tokenizer: Any = None  # the scorers of classes read none
    scorer = task.scorer(examples, features, tokenizer, model)
    kept = scorer.preprocess_logits(torch.from_numpy(found), torch.from_numpy(gold))
    predictions = tuple(part.numpy() for part in kept) if isinstance(kept, tuple) else found
    metrics = scorer(EvalPrediction(predictions=predictions, label_ids=gold))
    return Scores(metrics, scorer, PartialState().is_main_process), recorder


def check_column(
    task: Task, examples: Dataset, source: ColumnSource, student: str, *, labelled: bool
) -> PairReport:
    """Check a column as ``check_pair`` does a teacher: can it be read, is it any good?"""
    try:
        labels = column_config(task, examples, source.name, labelled=labelled)
        found = read_config(student, "STUDENT")
        options = task.model_options(found, labels, examples if labelled else None)
        config = PreTrainedConfig(**options)
        examples, column = read_column(task, examples, source.name, source.kind, config)
        findings = [
            info("task", f"Labels for {task.name}."),
            info("column", f"All {len(column.logits)} rows of {source.name!r} can be read."),
        ]
        return PairReport(task.name, (*findings, _quality(task, examples, column, labelled)))
    except ValueError as problem:
        return PairReport(task.name, (error("column", str(problem)),))


def _quality(task: Task, examples: Dataset, column: TeacherColumn, labelled: bool) -> Finding:
    if not labelled:
        return info("quality", "Not tried: the data has no labels.")
    rows = task.labelled(examples, column.head.config)
    by_word = isinstance(column.head, TokenClassificationHead)
    gold = [tag for tags in rows["tags"] for tag in tags] if by_word else rows["labels"]
    join = np.concatenate if by_word else np.stack
    batch = {"labels": torch.tensor(gold), "logits": torch.from_numpy(join(column.logits))}
    tried = check_teacher(column.head, lambda batch: batch, [batch], "this data")
    return tried or info("quality", "Not tried: the labels are numbers.")


def _numbered(examples: Dataset) -> list[tuple[int, Any]]:
    return list(zip(examples[TEACHER_ROW], examples[TEACHER_CELL], strict=True))
