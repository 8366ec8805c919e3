"""Task heads: which logits a task has, which classes of a row exist and which rows count.

A head knows one task and no trainer. It turns the outputs of a model into a tensor of logits
``(*rows, classes)``; each row is one distribution that the student learns from the teacher.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

Batch = Mapping[str, Any]


class TaskHead(ABC):
    """What distillation has to know about one kind of model."""

    task: str
    auto_model: str
    """Name of the ``AutoModelFor…`` class that loads a teacher for this task."""
    needs_token_types = False
    """Whether every input is a pair of texts, which a model with token types must be told apart."""

    @abstractmethod
    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of a model's outputs, ``(*rows, classes)``."""

    def class_mask(self, batch: Batch) -> Tensor | None:
        """Bool, broadcastable to the logits: False where a class of a row is only padding."""
        return None

    @abstractmethod
    def count_rows(self, batch: Batch) -> int | Tensor:
        """How many rows the distillation loss of this batch is the mean of."""

    @abstractmethod
    def count_labelled(self, batch: Batch) -> int | Tensor:
        """How many items the student's own label loss of this batch is the mean of."""

    def check_loss(self, loss_name: str) -> None:  # noqa: B027
        """Raise ``ValueError`` if a distillation loss makes no sense for this task."""

    def check_models(self, student_config: Any, teacher_config: Any) -> None:  # noqa: B027
        """Raise ``ValueError`` if the two models do not solve the same task."""


class QuestionAnsweringHead(TaskHead):
    """Extractive question answering: two distributions over the positions of a sequence.

    Rows are ``(batch, 2)``, start and end; the mean over rows is the average of both, as in
    Hugging Face's ``run_squad_w_distillation.py``. Padded positions are no classes. Labels outside
    the sequence (a truncated answer) do not count, as in the models' own loss.
    """

    task = "question-answering"
    auto_model = "AutoModelForQuestionAnswering"
    needs_token_types = True

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Start and end logits, ``(batch, 2, length)``."""
        return torch.stack((_get(outputs, "start_logits"), _get(outputs, "end_logits")), dim=1)

    def class_mask(self, batch: Batch) -> Tensor | None:
        """The attention mask, ``(batch, 1, length)``."""
        attention_mask = batch.get("attention_mask")
        return None if attention_mask is None else attention_mask.bool()[:, None, :]

    def count_rows(self, batch: Batch) -> int:
        """Two a sequence."""
        return 2 * _sequences(batch).shape[0]

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """Sequences whose answer lies inside the sequence."""
        start, end = batch.get("start_positions"), batch.get("end_positions")
        if start is None or end is None:
            return 0
        length = _sequences(batch).shape[1]
        return ((start < length) & (end < length)).sum()


class SequenceClassificationHead(TaskHead):
    """One label, several labels or one number for a sequence.

    - single label: one distribution a sequence, ``(batch, classes)``;
    - several labels (``problem_type="multi_label_classification"``): one yes/no distribution a
      label, ``(batch, labels, 2)`` with logits ``[z, 0]``, whose softmax is the sigmoid of z;
    - regression: the numbers themselves, ``(batch, outputs)``, for the loss ``mse`` only.
    """

    task = "text-classification"
    auto_model = "AutoModelForSequenceClassification"

    def __init__(self, config: Any) -> None:
        self._config = config

    @property
    def problem_type(self) -> str:
        """The configuration's problem type, or what transformers infers where it is not set."""
        if self._config.problem_type is not None:
            return str(self._config.problem_type)
        return "regression" if self._config.num_labels == 1 else "single_label_classification"

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits, see the class."""
        logits = _get(outputs, "logits")
        if self.problem_type == "multi_label_classification":
            return torch.stack((logits, torch.zeros_like(logits)), dim=-1)
        return logits

    def count_rows(self, batch: Batch) -> int:
        """One a sequence; one a label where there are several."""
        sequences = _sequences(batch).shape[0]
        if self.problem_type == "multi_label_classification":
            return sequences * int(self._config.num_labels)
        return sequences

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """Labelled sequences: those that are not -100."""
        labels = batch.get("labels")
        if labels is None:
            return 0
        if self.problem_type != "single_label_classification":
            return int(labels.shape[0])
        if labels.is_floating_point():
            raise ValueError(
                "The labels are floating-point numbers, but the student classifies into one of "
                f"{self._config.num_labels} classes; set config.problem_type to "
                "'multi_label_classification' or 'regression', or make the labels integers."
            )
        return (labels != -100).sum()

    def check_loss(self, loss_name: str) -> None:
        """Regression has no distributions to compare."""
        if self.problem_type == "regression" and loss_name != "mse":
            raise ValueError(
                f"distillation_loss={loss_name!r} compares probabilities, and a regression model "
                "has none; set distillation_loss='mse'."
            )

    def check_models(self, student_config: Any, teacher_config: Any) -> None:
        """Same number, same names and same order of labels, same problem type."""
        if student_config.num_labels != teacher_config.num_labels:
            raise ValueError(
                f"The teacher has {teacher_config.num_labels} labels and the student "
                f"{student_config.num_labels}; load the student with "
                f"num_labels={teacher_config.num_labels}, or choose a teacher of the same task."
            )
        types = (student_config.problem_type, teacher_config.problem_type)
        if None not in types and types[0] != types[1]:
            raise ValueError(
                f"The student's problem_type is {types[0]!r} and the teacher's {types[1]!r}; load "
                f"the student with problem_type={types[1]!r}."
            )
        student_names, teacher_names = (
            [str(config.id2label[i]).lower() for i in range(config.num_labels)]
            for config in (student_config, teacher_config)
        )
        unnamed = [f"label_{i}" for i in range(student_config.num_labels)]
        if student_names == teacher_names or unnamed in (student_names, teacher_names):
            return
        raise ValueError(
            f"The labels differ: the student's are {student_config.id2label} and the teacher's "
            f"{teacher_config.id2label}. A teacher whose labels have another order or meaning "
            "teaches the wrong classes; give the student the teacher's id2label and label2id, and "
            "number the labels of the data set accordingly."
        )


def find_head(model: nn.Module) -> TaskHead | None:
    """The head of a model, by its class; ``None`` if its task has none here.

    Models of libraries other than transformers are known by their class name's ending
    (``…ForQuestionAnswering``, ``…ForSequenceClassification``).
    """
    model = without_adapters(model)
    name = type(model).__name__
    if name in modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values() or name.endswith(
        "ForQuestionAnswering"
    ):
        return QuestionAnsweringHead()
    if name in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values() or (
        name.endswith("ForSequenceClassification")
    ):
        return SequenceClassificationHead(model.config)
    return None


def without_adapters(model: nn.Module) -> nn.Module:
    """The transformers model under PEFT adapters; the model itself where there are none."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model


def _get(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    value = outputs.get(name) if isinstance(outputs, Mapping) else None
    if value is None:
        has = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"Distillation compares {name}, but the model returned only: {has}. Use a model whose "
            f"forward returns a ModelOutput with {name} (return_dict=True)."
        )
    return value


def _sequences(batch: Batch) -> Tensor:
    for name in ("input_ids", "inputs_embeds", "attention_mask"):
        if isinstance(batch.get(name), Tensor):
            return batch[name]
    raise ValueError(
        f"A batch has neither input_ids nor inputs_embeds, only: {', '.join(batch)}. Check the "
        "columns of the data set and the data collator."
    )
