"""Distillation with ``Seq2SeqTrainer``, which can write texts during an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distill.trainer import DistillationTrainer
from hf_distill.training_args import DistillationTrainingArguments


@dataclass
class Seq2SeqDistillationTrainingArguments(DistillationTrainingArguments, Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` with the options of distillation."""


class Seq2SeqDistillationTrainer(DistillationTrainer, Seq2SeqTrainer):
    """A drop-in ``Seq2SeqTrainer`` whose student also learns from a teacher.

    Everything of ``DistillationTrainer``, with ``predict_with_generate`` and the arguments of
    ``generate`` in ``evaluate`` and ``predict``. (While texts are written, an evaluation has no
    ``eval_loss_prediction``.) ``DistillationTrainer`` trains the same student.

    Args:
        model: the student.
        args: a ``Seq2SeqDistillationTrainingArguments``.
        teacher_model: as for ``DistillationTrainer``.
        **kwargs: everything else that ``Seq2SeqTrainer`` takes.
    """

    args: Seq2SeqDistillationTrainingArguments

    def prediction_step(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As ``Seq2SeqTrainer``'s: texts are written from what the student reads, and no more."""
        if self.args.predict_with_generate and not prediction_loss_only:
            inputs = self.distiller.student_inputs(inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
