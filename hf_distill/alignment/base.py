"""Two encodings in one batch, and the interface by which a task brings their logits together.

The columns ``teacher_input_ids`` and so on hold the text as the teacher's tokenizer encodes it, and
further ones say which of its tokens belong to which of the student's. A batch has two sides:

    batch ─┬─> teacher_batch ─> teacher ─> outputs at its own tokens ─┐
           └─> student ──────────────────> outputs at its own tokens ─┴─> logits ─> the same rows
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor

from hf_distill.heads.base import Batch, TaskHead
from hf_distill.step import AlignedLogits

logger = logging.getLogger(__name__)

PREFIX = "teacher_"
INPUT_IDS = f"{PREFIX}input_ids"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that tokenizers return; with ``PREFIX`` they are columns of the teacher's."""

Side = Literal["teacher", "student"]


class TokenColumn(NamedTuple):
    """A column about tokens: what it has an entry for, and what the entries are."""

    axis: Side | None
    """The tokens that it has one entry each for; ``None``: one for the row."""
    positions_of: Side | None
    """The tokens whose positions the entries are; ``None``: numbers that do not move."""
    padding: int = -1


class Alignment:
    """Lets a student learn from a teacher that reads another encoding of the same text.

    This one is for heads that give their logits for an input as a whole, for which there is
    nothing to align. Subclasses bring together positions.

    Args:
        head: the student's, which knows the order of the teacher's labels.
    """

    unit: ClassVar[str | None] = None
    """Unit that tokens are aligned by, for reports: ``characters``, ``words``."""
    token_columns: ClassVar[Mapping[str, TokenColumn]] = {}
    """Columns in addition to the teacher's inputs."""
    optional_columns: ClassVar[frozenset[str]] = frozenset()
    """Those of them that data may lack."""
    counterparts: ClassVar[str | None] = None
    """The column with the places of tokens on the other side; below 0 where there is none."""
    uses_own_tokens_only: ClassVar[bool] = False
    """Of the teacher's logits only the probabilities of the text's own tokens are used."""
    two_encodings: ClassVar[bool] = True
    """The teacher reads another encoding than the student."""
    encoder: ClassVar[str] = "encode_for_teacher"
    """Name of the function that adds the columns to data."""

    def __init__(self, head: TaskHead) -> None:
        self.head = head

    @property
    def columns(self) -> frozenset[str]:
        """The entries of a row or batch that are for the teacher or say how to align."""
        return frozenset({f"{PREFIX}{name}" for name in INPUTS} | {*self.token_columns})

    @property
    def needed_columns(self) -> frozenset[str]:
        """Those without which a batch cannot be aligned."""
        return frozenset({INPUT_IDS, *self.token_columns} - self.optional_columns)

    def is_in(self, batch: Mapping[str, Any]) -> bool:
        """Return whether a batch (or a row) has both encodings."""
        return all(name in batch for name in self.needed_columns)

    def check_columns(self, columns: Iterable[str] | None) -> None:
        """Raise ``ValueError`` if training data lacks what is aligned; ``None`` is not known."""
        missing = sorted(
            self.needed_columns - {*(self.needed_columns if columns is None else columns)}
        )
        if missing:
            raise ValueError(
                f"train_dataset has no {', '.join(missing)}: the teacher has another tokenizer, "
                "so the data needs its encoding next to the student's. Add it with "
                f"hf_distill.alignment.{self.encoder}, or choose a teacher with the student's "
                "tokenizer."
            )

    def check_data(self, dataset: Any) -> None:
        """Check that training data has what is aligned, and warn of rows without a counterpart.

        Raises:
            ValueError: a column is missing, or no row has anything to compare.
        """
        self.check_columns(getattr(dataset, "column_names", None))
        if self.counterparts is None or not isinstance(dataset, Dataset):
            return
        places = dataset.select_columns([self.counterparts]).with_format("arrow")
        alone = sum(_rows_without(batch[self.counterparts]) for batch in places.iter(1_000))
        if alone == len(dataset) > 0:
            raise ValueError(
                f"{self.counterparts} of train_dataset names no token in any row, so nothing that "
                "the teacher predicts can be compared. Check that its tokenizer "
                "(teacher_processing_class, or --teacher_model) and max_length fit the texts."
            )
        if alone:
            logger.warning(
                "%s of %s rows of train_dataset have no text in which teacher and student have "
                "tokens of the same %s, and no distillation loss (%s).",
                f"{alone:,}",
                f"{len(dataset):,}",
                self.unit,
                self.counterparts,
            )

    def warn_of_lost_rows(self) -> None:
        """Warn, once, of rows that had no loss for what the teacher predicted for them."""

    def teacher_batch(self, batch: Batch) -> Batch:
        """Return a batch as a batch of the teacher: its inputs, labels, and stored outputs."""
        taken = {f"{PREFIX}{name}": name for name in INPUTS}
        found = {taken.get(k, k): v for k, v in batch.items() if k.startswith(PREFIX)}
        return found | self.teacher_labels(batch)

    def teacher_labels(self, batch: Batch) -> dict[str, Any]:
        """Return labels at the teacher's tokens: they say where it is looked at and tried."""
        names = self.head.label_names
        return {name: batch[name] for name in names if batch.get(name) is not None}

    def count_rows(self, batch: Batch) -> int | Tensor:
        """Count the rows that the distillation loss of this batch is the mean of."""
        return self.head.count_rows(batch)

    def logits(
        self,
        batch: Batch,
        student_outputs: Mapping[str, Tensor],
        teacher_outputs: Mapping[str, Tensor],
        temperature: float,
    ) -> AlignedLogits:
        """Return the logits of both models for the same rows and classes.

        Args:
            batch: with both encodings.
            student_outputs: what the student gave for its own.
            teacher_outputs: what the teacher gave for ``teacher_batch``.
            temperature: what both are divided by afterwards. Where probabilities move between
                classes, it is applied before: the logits are ``temperature * log(p)``.
        """
        student = self.head.logits(student_outputs, batch)
        teacher = self.head.logits(teacher_outputs, self.teacher_batch(batch))
        return self.align(batch, student, teacher, temperature)

    def align(
        self, batch: Batch, student: Tensor, teacher: Tensor, temperature: float
    ) -> AlignedLogits:
        """Bring the logits that each model has at its own tokens to the same rows and classes."""
        return same_rows(self.head, batch, student, teacher)

    def check_loss(self, name: str) -> None:
        """Raise ``ValueError`` if a distillation loss makes no sense for aligned logits."""


class SameEncoding(Alignment):
    """Both models read the same tokens, so that nothing is to be aligned."""

    two_encodings = False
    columns: frozenset[str] = frozenset()
    needed_columns: frozenset[str] = frozenset()

    def teacher_batch(self, batch: Batch) -> Batch:
        """Return the batch as it is."""
        return batch


def _rows_without(places: Any) -> int:
    """Count the lists of numbers in which none is 0 or more."""
    lists = places.combine_chunks()
    found = np.asarray(pc.list_flatten(lists)) >= 0
    return len(lists) - len(np.unique(np.asarray(pc.list_parent_indices(lists))[found]))


def same_rows(head: TaskHead, batch: Batch, student: Tensor, teacher: Tensor) -> AlignedLogits:
    """Return logits that are for the same rows, the teacher's in the order of the student's labels.

    Raises:
        ValueError: their shapes differ.
    """
    student, teacher = head.align(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} for the same batch; choose a teacher and a student of "
            "the same task, with the same labels."
        )
    return AlignedLogits(
        student, teacher, head.class_mask(batch), head.row_mask(batch), head.count_rows(batch)
    )
