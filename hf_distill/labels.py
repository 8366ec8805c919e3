"""The labels of a run: whether data and batches have them, and whether a loss can use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset
from transformers import DataCollatorWithPadding, default_data_collator

from hf_distill.heads import LabelledHead, TaskHead
from hf_distill.heads.base import IGNORED
from hf_distill.teachers.columns import TeacherSignalCollator
from hf_distill.training_args import DistillationTrainingArguments

_RENAMED = {"label", "label_ids"}
"""What the collators of transformers rename to ``labels``."""


class Labels:
    """The labels that the student's own loss is computed from.

    Args:
        head: the student's head; ``None`` if its task is not known.
        names: the entries of a batch that hold them.
        args: the weight of the label loss.
        own_loss: whether a function of the caller replaces the student's own loss. It then defines
            which labels there may be.
    """

    def __init__(
        self,
        head: TaskHead | None,
        names: Sequence[str],
        args: DistillationTrainingArguments,
        *,
        own_loss: bool,
    ) -> None:
        self.names = list(names)
        self._head = head
        self._args = args
        self._own_loss = own_loss
        self._unusable: str | None = None

    def are_in(self, batch: Mapping[str, Any]) -> bool:
        """Return whether a batch has all labels."""
        return bool(self.names) and all(batch.get(name) is not None for name in self.names)

    def have_loss(self, batch: Mapping[str, Any], *, training: bool) -> bool:
        """Return whether the label loss of a batch can be computed."""
        return self.are_in(batch) and not (training and self._unusable)

    def check_data(self, dataset: Any, data_collator: Any) -> None:
        """Check the labels of the training data where the label loss is mixed in.

        Raises:
            ValueError: names what is missing, or the label that is not a class of the student.
        """
        columns = getattr(dataset, "column_names", None)
        if columns is not None and not _makes_labels(data_collator):
            renamed = {"labels"} if _RENAMED & set(columns) else set()
            self._require({*columns, *renamed}, "the training data")
        self._unusable = None if self._own_loss else self._out_of_range(dataset)
        if self._args.needs_labels:
            self._raise_if_unusable()

    def check_first_batch(self, batch: Mapping[str, Any]) -> None:
        """Check the first batch, which may have other entries than the data.

        Raises:
            ValueError: names what is missing where the label loss is mixed in.
        """
        present = _present(batch)
        self._require(present, "the training data")
        assert self._head is not None
        wanted = self._head.label_names
        missing = [name for name in wanted if name not in present]
        if self._args.needs_labels and missing:
            raise ValueError(
                f"label_names={self.names}: the student's class says that it is made for "
                f"{self._head.task}, whose label loss is the mean over {' and '.join(wanted)}, and "
                f"the batches have no {' and no '.join(missing)}. Name the column and the argument "
                "of the student's forward so, or set distillation_loss_weight=1 (no labels) or 0 "
                "(no teacher)."
            )

    def check_batch(self, batch: Mapping[str, Any], step: int) -> None:
        """Check a batch whose label loss has a weight in training step ``step``, from 1.

        Raises:
            ValueError: names what is missing, or the label that is not a class of the student.
        """
        self._require(_present(batch), f"a batch of training step {step}")
        self._raise_if_unusable()

    def _require(self, found: Collection[str], where: str) -> None:
        missing = [name for name in self.names if name not in found]
        if missing and self._args.needs_labels:
            raise ValueError(
                f"distillation_loss_weight={self._args.distillation_loss_weight} mixes in the "
                f"label loss, but {where} has no {' and no '.join(missing)} (it has: "
                f"{', '.join(sorted(found))}). Add the labels, name them in label_names, or set "
                "distillation_loss_weight=1 to train without labels."
            )

    def _raise_if_unusable(self) -> None:
        if self._unusable is not None:
            raise ValueError(self._unusable)

    def _out_of_range(self, dataset: Any) -> str | None:
        """Find a label that is not a class of the student, which stops a GPU without a reason."""
        head = self._head
        if not isinstance(dataset, Dataset) or not isinstance(head, LabelledHead):
            return None
        classes = head.num_labels
        if classes is None:
            return None
        names = {*self.names}
        if "labels" not in dataset.column_names:  # which data collators prefer
            names |= _RENAMED
        for name in sorted(names & set(dataset.column_names)):
            column = dataset.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
            while pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
                column = column.flatten()
            if not pyarrow.types.is_integer(column.type) or classes == 1:
                continue
            values = pyarrow.compute.unique(column).to_pylist()
            wrong = [v for v in values if v is None or not (0 <= v < classes or v == IGNORED)]
            if wrong:
                return (
                    f"The column {name!r} of train_dataset has the label {wrong[0]}, but the "
                    f"student has {classes} labels, numbered 0 to {classes - 1} (and {IGNORED} for "
                    "those that do not count). Load the student with the right num_labels, or fix "
                    "the data; without labels train with distillation_loss_weight=1."
                )
        return None


def _present(batch: Mapping[str, Any]) -> list[str]:
    return [name for name, value in batch.items() if value is not None]


def _makes_labels(data_collator: Any) -> bool:
    """Return whether batches may have labels that the data lacks, such as masked tokens."""
    if isinstance(data_collator, TeacherSignalCollator):
        data_collator = data_collator.inner
    plain = isinstance(data_collator, DataCollatorWithPadding)
    return not plain and data_collator is not default_data_collator
