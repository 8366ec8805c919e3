"""The labels of a run: whether data and batches have them, and whether a loss can use them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, default_data_collator

from hf_distill.alignment import BothEncodings
from hf_distill.heads import LabelledHead, MultipleChoiceHead, QuestionAnsweringHead, TaskHead
from hf_distill.heads.base import IGNORED
from hf_distill.tasks.columns import is_list, is_text
from hf_distill.teachers.columns import TeacherSignalCollator
from hf_distill.training_args import DistillationTrainingArguments

_RENAMED = {"label", "label_ids"}
"""What the collators of transformers rename to ``labels``."""

_LISTS = (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)

_TRAINING = "train_dataset"

_NOT_TOKENS = (LabelledHead, MultipleChoiceHead, QuestionAnsweringHead)
"""The heads whose labels are not the tokens of a text."""


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
        self._dataset: Any = None
        self._checks_batches = False

    def are_in(self, batch: Mapping[str, Any]) -> bool:
        """Return whether a batch has all labels."""
        return bool(self.names) and all(batch.get(name) is not None for name in self.names)

    def have_loss(self, batch: Mapping[str, Any], *, training: bool) -> bool:
        """Return whether the label loss of a batch can be computed."""
        return self.are_in(batch) and not (training and self._unusable)

    def check_data(self, dataset: Any, data_collator: Any) -> None:
        """Check the labels of the training data where the label loss is mixed in.

        Raises:
            ValueError: names what is missing, or the label that has no loss: not a class of the
                student, not a number, or no position.
        """
        self._dataset = dataset
        columns = getattr(dataset, "column_names", None)
        makes_labels = _makes_labels(data_collator)
        if columns is not None and not makes_labels:
            renamed = {"labels"} if _RENAMED & set(columns) else set()
            self._require({*columns, *renamed}, "the training data")
        if (
            self._args.needs_labels
            and str(_inner(data_collator).__module__).startswith("transformers.")
            and self._may_be_texts(dataset)
        ):
            self._raise_if_texts()
        self._unusable = self._find_unusable(dataset, _TRAINING)
        seen = isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
        self._checks_batches = not self._own_loss and (makes_labels or not seen)
        if self._args.needs_labels:
            self._raise_if_unusable()

    def check_evaluation_data(self, datasets: Mapping[str, Any]) -> None:
        """Check the labels of data sets, by their names, that the student is evaluated on.

        Raises:
            ValueError: names the label that has no loss.
        """
        for where, dataset in datasets.items():
            unusable = self._find_unusable(dataset, where)
            if unusable is not None:
                raise ValueError(unusable)

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
            ValueError: names what is missing, or the label that has no loss.
        """
        where = f"a batch of training step {step}"
        self._require(_present(batch), where)
        self._raise_if_unusable()
        # Only where the data could not be looked at, as a GPU has to be waited for.
        if self._checks_batches and isinstance(self._head, _NOT_TOKENS):
            for name in self.names:
                wrong = self._wrong_in_batch(batch.get(name))
                if wrong:
                    raise ValueError(self._message(name, where, wrong[0]))

    def _require(self, found: Collection[str], where: str) -> None:
        missing = [name for name in self.names if name not in found]
        if missing and self._args.needs_labels:
            self._raise_if_texts()
            raise ValueError(
                f"distillation_loss_weight={self._args.distillation_loss_weight} mixes in the "
                f"label loss, but {where} has no {' and no '.join(missing)} (it has: "
                f"{', '.join(sorted(found))}). Add the labels, name them in label_names, or set "
                "distillation_loss_weight=1 to train without labels."
            )

    def _raise_if_unusable(self) -> None:
        if self._unusable is not None:
            raise ValueError(self._unusable)

    def _may_be_texts(self, dataset: Any) -> bool:
        """Return whether a column of labels may hold texts, without reading a stream."""
        if not isinstance(self._head, _NOT_TOKENS):
            return False
        features = getattr(dataset, "features", None) or {}
        found = (_holds_texts(features[name]) for name in self._columns(features))
        return isinstance(dataset, list) or any(found)

    def _raise_if_texts(self) -> None:
        """Refuse labels that are texts, which data collators drop or fail at."""
        row: Any = next(iter(() if self._dataset is None else self._dataset), None)
        for name in self._columns(row) if isinstance(row, Mapping) else ():
            value = row[name]
            while isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, str):
                numbers = "the student's config.label2id"
                if not isinstance(self._head, LabelledHead):
                    numbers = "their positions, classes or tokens"
                raise ValueError(
                    f"The column {name!r} of the training data holds texts (the first is "
                    f"{value!r}), and the label loss needs numbers. Number them by {numbers}."
                )

    def _columns(self, found: Iterable[str]) -> list[str]:
        """Return those of some columns that hold the labels."""
        names = {*self.names}
        if "labels" in names and "labels" not in found:  # which data collators prefer
            names |= _RENAMED
        return sorted(names & set(found))

    def _find_unusable(self, dataset: Any, where: str) -> str | None:
        """Find a label that has no loss, or a wrong one: the weights become NaN, a GPU stops."""
        seen = isinstance(dataset, Dataset) and isinstance(self._head, _NOT_TOKENS)
        if self._own_loss or not seen:
            return None
        for name in self._columns(dataset.column_names):
            column = dataset.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
            wrong = self._wrong_in_column(column)
            if wrong:
                return self._message(name, where, wrong[0])
        return None

    @property
    def _classes(self) -> int | None:
        """The number of classes of a label; ``None`` if it is not a class, or unknown."""
        head, single = self._head, "single_label_classification"
        if not isinstance(head, LabelledHead) or getattr(head, "problem_type", single) != single:
            return None
        return None if head.num_labels == 1 else head.num_labels

    def _wrong_in_column(self, column: Any) -> list[Any]:
        missing = column.null_count
        while isinstance(column, _LISTS):
            column = column.flatten()
            missing += column.null_count
        if missing:
            return [None]
        if pyarrow.types.is_floating(column.type):
            finite = pyarrow.compute.is_finite(column)
            return column.filter(pyarrow.compute.invert(finite))[:1].to_pylist()
        if not pyarrow.types.is_integer(column.type):
            return []
        values, classes = pyarrow.compute.unique(column).to_pylist(), self._classes
        if isinstance(self._head, QuestionAnsweringHead):
            return [value for value in values if value < 0]
        if classes is None:
            return []
        return [value for value in values if not (0 <= value < classes or value == IGNORED)]

    def _wrong_in_batch(self, labels: Any) -> list[Any]:
        if not isinstance(labels, Tensor):
            return []
        if labels.is_floating_point():
            return labels[~labels.isfinite()][:1].tolist()
        if isinstance(self._head, QuestionAnsweringHead):
            return labels[labels < 0][:1].tolist()
        return []

    def _message(self, name: str, where: str, label: Any) -> str:
        found = f"The column {name!r} of {where} has the"
        if isinstance(self._head, QuestionAnsweringHead):
            return (
                f"{found} position {label}, but positions count from 0, and models take one below "
                "as 0. Where a window does not hold the answer, write that of the token that "
                "stands for no answer (0 for [CLS]); to leave a row out of the label loss, write "
                "a position beyond the longest window."
            )
        classes, otherwise = self._classes, "without labels train with distillation_loss_weight=1."
        if where.startswith("eval"):
            otherwise = "without labels nothing but the distillation loss is evaluated."
        if classes is None or isinstance(label, float):
            return (
                f"{found} label {label}, but the label loss needs finite numbers. Correct the data "
                f"or leave out such rows; {otherwise}"
            )
        return (
            f"{found} label {label}, but the student has {classes} labels, numbered 0 to "
            f"{classes - 1} (and {IGNORED} for those that do not count). Load the student with the "
            f"right num_labels, or fix the data; {otherwise}"
        )


def _holds_texts(feature: Any) -> bool:
    while is_list(feature):
        feature = feature.feature
    return is_text(feature)


def _present(batch: Mapping[str, Any]) -> list[str]:
    return [name for name, value in batch.items() if value is not None]


def _makes_labels(data_collator: Any) -> bool:
    """Return whether batches may have labels that the data lacks, such as masked tokens."""
    data_collator = _inner(data_collator)
    plain = isinstance(data_collator, DataCollatorWithPadding)
    return not plain and data_collator is not default_data_collator


def _inner(data_collator: Any) -> Any:
    while isinstance(data_collator, TeacherSignalCollator | BothEncodings):
        data_collator = data_collator.inner
    return data_collator
