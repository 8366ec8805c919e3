"""A column of predictions as the teacher: probabilities and no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from hf_distill.compatibility import head_of, input_names
from hf_distill.heads import (
    LabelledHead,
    MultipleChoiceHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)
from hf_distill.heads.base import main_input
from hf_distill.teachers.columns import SignalDescription, checksum, identities
from hf_distill.teachers.columns.cells import CellReader, Problem
from hf_distill.teachers.columns.contents import ColumnError, decoded
from hf_distill.teachers.columns.description import CHECKSUM, COLUMN, LOGITS

_PROBLEMS: dict[str, Problem] = {
    "single_label_classification": "one label",
    "multi_label_classification": "several labels",
    "regression": "numbers",
}
_BATCH = 64
_LABELS = ("label", "label_ids", "labels")


@dataclass(frozen=True)
class TeacherColumn:
    """Predictions of a column, in the order of a student's labels.

    Attributes:
        name: the column's.
        kind: what its numbers are; a key of ``KINDS``, or ``numbers`` to predict.
        head: the student's.
        logits: ``(labels,)`` for each row, or ``(words, labels)``.
        rows: their numbers, for errors.
    """

    name: str
    kind: str
    head: TaskHead
    logits: list[NDArray[np.float32]]
    rows: Sequence[int]

    @classmethod
    def read(
        cls,
        cells: Sequence[Any],
        name: str,
        head: TaskHead,
        *,
        kind: str = "probabilities",
        class_names: Sequence[str] | None = None,
        rows: Sequence[int] | None = None,
    ) -> TeacherColumn:
        """Read the cells of a column; see ``load_teacher_column``."""
        rows = range(len(cells)) if rows is None else rows
        by_word = isinstance(head, TokenClassificationHead)
        contents = [decoded(cell, name, row) for cell, row in zip(cells, rows, strict=True)]
        check_head(type(head), name)
        problem = _problem(head)
        names = _names(head, contents, name, class_names)
        reader = CellReader(name, kind, names, problem, class_names, head.task)
        if not by_word:
            places = [(f"Row {row}", cell) for row, cell in zip(rows, contents, strict=True)]
            counts = [1] * len(contents)
        else:
            places = list(_words(contents, name, rows))
            counts = [len(cell) for cell in contents]
        values = reader.logits(places).astype(np.float32)
        parts = np.split(values, np.cumsum(counts)[:-1])
        logits = parts if by_word else [part[0] for part in parts]
        return cls(name, "numbers" if problem == "numbers" else kind, head, logits, rows)

    def most_likely(self) -> list[Any]:
        """Return the most likely label of each row, or of each of its words, by name."""
        names = _label_names(self.head.config)
        return [
            [names[n] for n in row.argmax(axis=-1)] if row.ndim > 1 else names[int(row.argmax())]
            for row in self.logits
        ]

    def check_words(self, words: Sequence[Sequence[str]]) -> None:
        """Check that there is a prediction for each word.

        Raises:
            ColumnError: names the row.
        """
        for row, (found, wanted) in enumerate(zip(self.logits, words, strict=True)):
            if len(found) != len(wanted):
                raise ColumnError(
                    f"Row {self.rows[row]} of the column {self.name!r} has {len(found)} "
                    f"predictions, and the row has {len(wanted)} words; write one for each word, "
                    "or choose another teacher_column."
                )

    def join(
        self,
        dataset: Dataset,
        student: nn.Module,
        data_collator: Callable[[list[Any]], Any],
    ) -> Dataset:
        """Return features with the predictions as the columns of a cached teacher."""
        by_position = isinstance(self.head, TokenClassificationHead)
        kept = {*input_names(student), *_LABELS, *self.head.target_names}
        names = [name for name in dataset.column_names if name in kept]
        is_prepared = dataset.format["type"] == "custom" or not names
        inputs = dataset if is_prepared else dataset.select_columns(names)
        words = dataset.with_format(None)["words"] if "words" in dataset.column_names else None
        stored: list[NDArray[np.float32]] = []
        sums: list[int] = []
        for begin in range(0, len(dataset), _BATCH):
            rows = range(begin, min(begin + _BATCH, len(dataset)))
            batch = data_collator(inputs.__getitems__(list(rows)))
            found = identities(self.head, batch)
            positions = self.head.compared_positions(batch)
            self._check_batch(batch, len(found), rows)
            for n, row in enumerate(rows):
                logits = self.logits[row]
                if positions is not None:
                    logits = logits if words is None else logits[list(words[row])]
                    self._check_positions(len(logits), int(positions[n].sum()), row)
                stored.append(logits.ravel())
                sums.append(checksum(found[n], [stored[-1]]))
        description = self._describe(stored, by_position)
        columns = Dataset.from_dict(
            {LOGITS: stored, CHECKSUM: sums}, features=description.features()
        )
        return concatenate_datasets([dataset, columns], axis=1)

    def _check_batch(self, batch: Any, inputs: int, rows: range) -> None:
        if inputs != len(rows):
            raise ValueError(
                f"The data collator made {inputs} inputs of {len(rows)} rows, so the predictions "
                f"of the column {self.name!r} have no place in its batch; use one that keeps rows "
                "apart."
            )
        if isinstance(self.head, MultipleChoiceHead):
            choices, given = main_input(batch).shape[1], self.logits[0].shape[-1]
            if choices != given:
                raise ColumnError(
                    f"Row {self.rows[rows[0]]} has {choices} choices, and the column "
                    f"{self.name!r} has {given} numbers for each row; write one for each choice."
                )

    def _check_positions(self, have: int, wanted: int, row: int) -> None:
        if have != wanted:
            raise ColumnError(
                f"Row {self.rows[row]} of the column {self.name!r} has {have} predictions, and "
                f"the loss looks at {wanted} tokens: those whose label is not -100, or all where "
                "there are no labels. Give the first token of each word a label (-100 to the "
                "others), and if the tokenizer cuts sentences off, a column `words` with the "
                "words that these tokens begin."
            )

    def _describe(self, stored: Sequence[NDArray[np.float32]], by_word: bool) -> SignalDescription:
        config = self.head.config
        digest = sha256(f"{self.name} {self.kind}\n".encode())
        for row in stored:
            digest.update(row.tobytes())
        facts = {"column": self.name, "kind": self.kind, "sure": self._has_certain_labels()}
        if isinstance(self.head, LabelledHead):
            names = _label_names(config)
            facts |= {"id2label": dict(zip(map(str, range(len(names))), names, strict=True))}
            facts |= {"problem_type": getattr(config, "problem_type", None)}
        return SignalDescription(
            task=self.head.task,
            architecture=COLUMN,
            config=facts,
            dtype="float32",
            classes=self.logits[0].shape[-1],
            by_position=by_word,
            top_k=None,
            hidden_layers=(),
            hidden_width=0,
            teacher=f"the column {self.name!r}",
            weights=digest.hexdigest(),
            tokenizer=None,
        )

    def _has_certain_labels(self) -> bool:
        return any(bool((np.abs(row) >= np.float32(1e30)).any()) for row in self.logits)


def load_teacher_column(
    dataset: Dataset,
    teacher_column: str,
    student: nn.Module,
    *,
    teacher_column_kind: str = "probabilities",
    class_names: Sequence[str] | None = None,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
) -> Dataset:
    """Make a column of predictions the teacher of a data set.

    For a teacher of which there are probabilities and no weights: a language model, an interface,
    an ensemble. ``DistillationTrainer(teacher_model=None, train_dataset=…)`` then learns from them
    as from the columns of ``cache_teacher_outputs``.

    A row holds one prediction (for token classification a list of one per word) in one of these
    layouts, or its JSON text, as in CSV files:

    - ``{"positive": 0.9, "negative": 0.1}``: a number for every label;
    - ``[{"label": "positive", "score": 0.9}, …]``, as pipelines of transformers return it, or
      ``{"labels": ["positive", …], "scores": [0.9, …]}``: what the labels of such a list leave of
      1 is shared out evenly among those that it leaves out, as of outputs cached with ``top_k``.
      Other keys (``rank``, ``sequence``) are not read;
    - ``[0.9, 0.1]``: a number for every label, in the order of ``class_names``;
    - for regression a number; for multiple choice a number per choice.

    Labels are matched with the student's (``config.id2label``) by name; whole numbers by their
    place in ``class_names``, unless labels are numbers themselves. Probabilities may be off by 0.01
    in their sum, and are normalised. They are stored as their logs, so that the teacher at
    temperature T is ``p ** (1 / T)``, normalised. A probability of 0 is exact: the losses never
    become NaN because of it; ``mse``, which compares logits, is refused for them. With several
    labels per row (``problem_type="multi_label_classification"``) each has a probability of its
    own, of which the log-odds are stored.

    Args:
        dataset: the data as it will be trained on: tokenised, and with the column. For token
            classification the tokens that begin a word have a label and the others -100, even if
            no label is learned from; where the tokenizer cuts sentences off, a column ``words``
            has the words that these tokens begin.
        teacher_column: its name.
        student: the model to train, whose labels and inputs are used.
        teacher_column_kind: ``probabilities``, ``log_probabilities`` (natural logs) or ``logits``.
        class_names: the labels in the order of the numbers, for lists of numbers.
        processing_class: the tokenizer (or processor) that the data was prepared with; pads
            batches where there is no ``data_collator``.
        data_collator: the one that will be trained with; by default ``Trainer``'s default.

    Returns:
        ``dataset`` with the columns ``teacher_logits`` and ``teacher_checksum`` instead of the
        column, in memory.

    Raises:
        ValueError: a cell cannot be read, a number is out of range, a label is unknown, missing
            or there twice, or the student's task has no labels; names row, value and argument.

    Example:
        ```python
        train_dataset = load_teacher_column(tokenised, "probabilities", student)
        trainer = DistillationTrainer(model=student, train_dataset=train_dataset, ...)
        ```
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}; teacher_column needs a datasets.Dataset, all "
            "of which is checked before training (Dataset.from_generator makes one of a stream)."
        )
    if teacher_column not in dataset.column_names:
        raise ColumnError(
            f"teacher_column={teacher_column!r}: the data has no such column; it has the columns "
            f"{', '.join(dataset.column_names)}."
        )
    there = [name for name in dataset.column_names if name in (LOGITS, CHECKSUM)]
    if there:
        raise ValueError(
            f"dataset has a column {there[0]!r} already; take the data without teacher columns "
            "(remove_columns)."
        )
    if len(dataset) == 0:
        raise ValueError("dataset is empty: it has no rows.")
    column = TeacherColumn.read(
        list(dataset.with_format(None)[teacher_column]),
        teacher_column,
        head_of(student, None, "student"),
        kind=teacher_column_kind,
        class_names=class_names,
    )
    if data_collator is None:
        data_collator = default_data_collator
        if isinstance(processing_class, PreTrainedTokenizerBase):
            data_collator = DataCollatorWithPadding(processing_class)
    return column.join(dataset.remove_columns(teacher_column), student, data_collator)


def check_head(head: type[TaskHead], column: str) -> None:
    """Check that a column can teach models for a task.

    Raises:
        ColumnError: they predict tokens or places, which are not labels.
    """
    if not issubclass(head, LabelledHead | MultipleChoiceHead):
        raise ColumnError(
            f"teacher_column={column!r} gives a number for each label, and {head.task} predicts "
            "tokens or places in a text; cache the outputs of its teacher instead "
            "(cache_teacher_outputs, `hf-distill cache`)."
        )


def _problem(head: TaskHead) -> Problem:
    if isinstance(head, SequenceClassificationHead):
        return _PROBLEMS[head.problem_type]
    return "choices" if isinstance(head, MultipleChoiceHead) else "one label"


def _names(
    head: TaskHead, cells: Sequence[Any], column: str, class_names: Sequence[str] | None
) -> Sequence[str]:
    if isinstance(head, LabelledHead):
        return _label_names(head.config)
    if class_names is not None:
        return class_names
    first = next((cell for cell in cells if isinstance(cell, list)), None)
    if first is None:
        raise ColumnError(
            f"Row 0 of the column {column!r} is {cells[0]!r}; multiple-choice needs a list with a "
            "number for each choice."
        )
    return [str(n) for n in range(len(first))]


def _label_names(config: Any) -> list[str]:
    names = {int(n): str(name) for n, name in (getattr(config, "id2label", None) or {}).items()}
    if sorted(names) != list(range(len(names))) or not names:
        raise ColumnError(
            f"The student's id2label={names or None} does not name its labels; set config.id2label "
            "to {0: …, 1: …}, by which the labels of teacher_column are found."
        )
    return [names[n] for n in range(len(names))]


def _words(cells: Sequence[Any], column: str, rows: Sequence[int]) -> Iterator[tuple[str, Any]]:
    for row, cell in zip(rows, cells, strict=True):
        if not isinstance(cell, list):
            what = "empty" if cell is None else repr(cell)
            raise ColumnError(
                f"Row {row} of the column {column!r} is {what}; token-classification needs a list "
                "with one prediction for each word."
            )
        for word, one in enumerate(cell):
            yield f"Row {row}, word {word}", one
