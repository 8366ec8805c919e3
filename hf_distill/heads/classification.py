"""Labels of texts, images, sounds, choices and tokens, and the places of answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_distill.heads.base import (
    IGNORED,
    Batch,
    LabelledHead,
    PositionHead,
    TaskHead,
    attention_mask,
    main_input,
    not_padding,
    output,
)

_AS_NUMBERS = "dataset.cast_column('labels', datasets.List(datasets.Value('float32')))"


class SequenceClassificationHead(LabelledHead):
    """One label, several labels or one number for an input.

    - single label: one distribution per input, ``(batch, classes)``;
    - several labels (``problem_type="multi_label_classification"``): one yes/no distribution per
      label, ``(batch, labels, 2)`` with logits ``[z, 0]``, whose softmax is the sigmoid of z;
    - regression: the numbers themselves, ``(batch, outputs)``, for the loss ``mse`` only.
    """

    task = "text-classification"
    auto_model = "AutoModelForSequenceClassification"

    @property
    def problem_type(self) -> str:
        """Return the configuration's problem type, or what transformers infers without one."""
        problem_type = getattr(self.config, "problem_type", None)
        if problem_type is not None:
            return str(problem_type)
        return "regression" if self.num_labels == 1 else "single_label_classification"

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        logits = output(outputs, "logits")
        if self.problem_type == "multi_label_classification":
            return torch.stack((logits, torch.zeros_like(logits)), dim=-1)
        return logits

    def outputs(self, logits: Tensor) -> dict[str, Tensor]:
        """For several labels return their log-odds, which is what a sigmoid takes."""
        if self.problem_type == "multi_label_classification":
            logits = logits[..., 0] - logits[..., 1]
        return {"logits": logits}

    def align(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.problem_type == "multi_label_classification" and self.teacher_order is not None:
            return student, teacher[:, self.teacher_order]
        return super().align(student, teacher)

    def count_rows(self, batch: Batch) -> int:
        """Count the inputs, or their labels where there are several."""
        inputs = main_input(batch).shape[0]
        if self.problem_type == "multi_label_classification":
            return inputs * int(self.config.num_labels)  # several, by their type
        return inputs

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """Count the labelled inputs: those that are not -100."""
        labels = batch.get("labels")
        if labels is None:
            return 0
        if self.problem_type != "single_label_classification" or labels.is_floating_point():
            return int(labels.shape[0])
        return (labels != IGNORED).sum()

    def gold(self, batch: Batch) -> Tensor | None:
        """Return the labels; for several labels 0 for yes and 1 for no, as in the logits."""
        labels = batch.get("labels")
        if labels is None or self.problem_type == "regression":
            return None
        if self.problem_type == "multi_label_classification":
            return (labels < 0.5).long()
        # Targets of a custom loss may be anything.
        one_each = labels.dim() < 2 or labels.shape[-1] == 1
        return labels.flatten() if one_each and not labels.is_floating_point() else None

    def check_labels(self, batch: Batch) -> None:
        """Raise ``ValueError`` for labels of another problem type: the loss would fail or change.

        With floating-point numbers, transformers makes a model for several labels of this one.
        """
        labels, classes = batch.get("labels"), self.num_labels
        if labels is None or classes is None or self.problem_type == "regression":
            return
        vectors = labels.dim() > 1 and labels.shape[-1] > 1
        if self.problem_type == "multi_label_classification":
            if (not vectors and classes > 1) or not labels.is_floating_point():
                raise ValueError(
                    f"problem_type='multi_label_classification' needs labels that are vectors of "
                    f"{classes} floating-point numbers, 0.0 or 1.0, but the labels of a batch are "
                    f"{labels.dtype} of the shape {tuple(labels.shape)}. {_AS_NUMBERS}."
                )
        elif labels.is_floating_point():
            raise ValueError(
                "The labels are floating-point numbers, but the student classifies into one of "
                f"{classes} classes; set config.problem_type to 'multi_label_classification' or "
                "'regression', or make the labels integers."
            )
        elif vectors:
            raise ValueError(
                f"The labels are vectors of whole numbers (the first is {labels[0].tolist()}), but "
                f"the student classifies into one of {classes} classes. For several labels of an "
                "input set config.problem_type='multi_label_classification' for student and "
                f"teacher, and make the labels floating-point numbers: {_AS_NUMBERS}. For one "
                "label, give its number."
            )

    @property
    def has_probabilities(self) -> bool:
        return self.problem_type != "regression"

    def check_loss(self, loss_name: str) -> None:
        """Refuse all but ``mse`` for regression, which has no distributions to compare."""
        if not self.has_probabilities and loss_name != "mse":
            raise ValueError(
                f"distillation_loss={loss_name!r} compares probabilities, and a regression model "
                "has none; set distillation_loss='mse'."
            )


class ImageClassificationHead(SequenceClassificationHead):
    """One label, several labels or one number for an image, as for a text."""

    task = "image-classification"
    auto_model = "AutoModelForImageClassification"


class AudioClassificationHead(SequenceClassificationHead):
    """One label, several labels or one number for a sound, as for a text."""

    task = "audio-classification"
    auto_model = "AutoModelForAudioClassification"


class MultipleChoiceHead(TaskHead):
    """One distribution over the choices of a question, ``(batch, choices)``."""

    task = "multiple-choice"
    auto_model = "AutoModelForMultipleChoice"
    needs_token_types = True

    def count_rows(self, batch: Batch) -> int:
        return main_input(batch).shape[0]

    def gold(self, batch: Batch) -> Tensor | None:
        labels = batch.get("labels")
        return None if labels is None else labels.flatten()


class TokenClassificationHead(PositionHead, LabelledHead):
    """One distribution per token, ``(batch, length, classes)``.

    Labels are usually on the first piece of each word: the teacher was not trained on the others.
    """

    task = "token-classification"
    auto_model = "AutoModelForTokenClassification"


class QuestionAnsweringHead(TaskHead):
    """Two distributions over the positions of a sequence, start and end.

    Rows are ``(batch, 2)``; the mean over rows is the average of both, as in Hugging Face's
    ``run_squad_w_distillation.py``. Padded positions are not classes. Labels beyond the sequence
    (a truncated answer) do not count and negative ones are 0, as in the models' own loss.
    """

    task = "question-answering"
    auto_model = "AutoModelForQuestionAnswering"
    needs_token_types = True
    label_names = ("start_positions", "end_positions")
    logit_names = ("start_logits", "end_logits")

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return start and end logits, ``(batch, 2, length)``."""
        return torch.stack((output(outputs, "start_logits"), output(outputs, "end_logits")), dim=1)

    def class_mask(self, batch: Batch) -> Tensor | None:
        """Return the attention mask, ``(batch, 1, length)``."""
        mask = attention_mask(batch)
        return None if mask is None else mask[:, None, :]

    def compared_positions(self, batch: Batch) -> Tensor:
        return not_padding(batch)

    def outputs(self, logits: Tensor) -> dict[str, Tensor]:
        return {"start_logits": logits[:, 0], "end_logits": logits[:, 1]}

    def count_rows(self, batch: Batch) -> int:
        return 2 * main_input(batch).shape[0]

    def count_labelled(self, batch: Batch) -> int | Tensor:
        """Halve the starts and ends inside the sequence: the models average both losses."""
        gold = self.gold(batch)
        return 0 if gold is None else (gold != IGNORED).sum() / 2

    def gold(self, batch: Batch) -> Tensor | None:
        """Return the positions of start and end, ``(batch, 2)``."""
        start, end = batch.get("start_positions"), batch.get("end_positions")
        if start is None or end is None:
            return None
        positions = torch.stack((start.flatten(), end.flatten()), dim=1).clamp(min=0)
        return positions.masked_fill(positions >= main_input(batch).shape[1], IGNORED)
