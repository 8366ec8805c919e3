"""The worker of NVIDIA Model Optimizer.

Language models: its ``KDTrainer``, which compares their logits only. All else: its ``mtd.convert``,
whose model runs the teacher and keeps what is compared, in a ``Trainer``.
"""

from __future__ import annotations

import inspect
from typing import Any

import modelopt.torch.distill as mtd
from hugging_face import dataset, load_models, train, trainer_options
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, default_data_collator
from worker import Gate, Setting, serve

NOTES = {
    "qa": "mtd.convert, in a `Trainer`",
    "classification": "mtd.convert, in a `Trainer`",
    "attention": "mtd.convert, in a `Trainer`; a loss of the second output of attention modules",
    "hidden": "mtd.convert, in a `Trainer`; the mean over the layers",
    "lm": "KDTrainer",
}


class SpanLogitsLoss(mtd.LogitsDistillationLoss):
    """Its own loss of logits, of start and end, as its ``LMLogitsLoss`` takes them from outputs."""

    def forward(self, out_student: Any, out_teacher: Any) -> Tensor:
        """Return the mean of both."""
        start = super().forward(out_student.start_logits, out_teacher.start_logits)
        end = super().forward(out_student.end_logits, out_teacher.end_logits)
        return (start + end) / 2


class ClassLogitsLoss(mtd.LogitsDistillationLoss):
    """Its own loss of logits, taken from outputs."""

    def forward(self, out_student: Any, out_teacher: Any) -> Tensor:
        """Return the loss of one row of logits per example."""
        loss: Tensor = super().forward(out_student.logits, out_teacher.logits)
        return loss


class AttentionLoss(nn.MSELoss):
    """The distance of the attentions that a module returns next to its states."""

    def forward(self, out_student: Any, out_teacher: Any) -> Tensor:
        """Return the loss of the second of two outputs."""
        return super().forward(out_student[1], out_teacher[1])


class ConvertedModelTrainer(Trainer):
    """``Trainer`` of a converted model."""

    loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run both models, and compare what was kept."""
        model(**inputs)
        loss: Tensor = self.accelerator.unwrap_model(model).compute_kd_loss()
        return loss


def criterion(setting: Setting) -> dict[str, Any]:
    """Return what is compared, as ``mtd.convert`` takes it."""
    if setting.task in ("qa", "classification"):
        kind = SpanLogitsLoss if setting.task == "qa" else ClassLogitsLoss
        return {"criterion": kind(temperature=setting.temperature, reduction="batchmean")}
    pairs = [("bert.embeddings", "bert.embeddings")] + [
        (f"bert.encoder.layer.{student - 1}", f"bert.encoder.layer.{teacher - 1}")
        for teacher, student in setting.layer_pairs[1:]
    ]
    criteria: dict[tuple[str, str], nn.Module] = {pair: nn.MSELoss() for pair in pairs}
    if setting.task == "attention":
        criteria |= {
            (f"{student}.attention.self", f"{teacher}.attention.self"): AttentionLoss()
            for student, teacher in pairs[1:]
        }
    weights = [1 / len(criteria)] * len(criteria)
    return {
        "criterion": criteria,
        "loss_balancer": mtd.StaticLossBalancer(weights),
    }


def language_model_trainer(teacher: Any, setting: Setting, common: dict[str, Any]) -> Any:
    """Make a ``KDTrainer``, whose arguments have changed between releases."""
    from modelopt.torch.distill.plugins import huggingface  # patches transformers: only for this

    trainer_class = huggingface.KDTrainer
    if "distill_args" in inspect.signature(trainer_class.__init__).parameters:
        settings = {"teacher_model": teacher, "temperature": setting.temperature}
        return trainer_class(distill_args=settings, **common)
    loss = huggingface.LMLogitsLoss(temperature=setting.temperature)
    config = {"teacher_model": teacher, "criterion": loss}
    return trainer_class(distill_config=config, **common)


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "nvidia-modelopt", NOTES[setting.task])
    teacher, student = load_models(setting)
    common: dict[str, Any] = {
        "model": student,
        "args": TrainingArguments(**trainer_options(setting)),
        "train_dataset": dataset(setting),
        "data_collator": default_data_collator,
    }
    if setting.task == "lm":
        trainer = language_model_trainer(teacher, setting, common)
    else:
        config = {"teacher_model": teacher, **criterion(setting)}
        common["model"] = mtd.convert(student, mode=[("kd_loss", config)])
        trainer = ConvertedModelTrainer(**common)
    train(trainer, gate, setting)


if __name__ == "__main__":
    serve(distil)
