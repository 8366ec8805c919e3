"""What the workers of tools that take transformers' models, or are built on its Trainer, share."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)
from worker import LEARNING_RATE, MAX_GRAD_NORM, Gate, Setting

CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "scores_cached": AutoModelForSequenceClassification,
    "lm": AutoModelForCausalLM,
}
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def load_models(setting: Setting, **options: Any) -> tuple[Any, Any]:
    """Load the frozen teacher and the student, with options of ``from_pretrained``."""
    auto_class = CLASSES.get(setting.task, AutoModelForQuestionAnswering)
    teacher = auto_class.from_pretrained(setting.teacher, **options)
    student = auto_class.from_pretrained(setting.student, **options)
    return teacher.eval().requires_grad_(False), student


def unlabelled(setting: Setting) -> Dataset:
    """Return the rows without labels: nobody computes a label loss."""
    rows = setting.load_rows()
    return Dataset.from_dict({name: rows[name].tolist() for name in INPUTS if name in rows})


def trainer_options(setting: Setting) -> dict[str, Any]:
    """Return what all ``TrainingArguments`` have in common."""
    return {
        "output_dir": setting.output,
        "per_device_train_batch_size": setting.batch_size,
        "max_steps": setting.steps,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": MAX_GRAD_NORM,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "report_to": "none",
    }


def train(trainer: Any, gate: Gate) -> None:
    """Train with any subclass of ``Trainer``, held at each step."""
    gate.hold(trainer, "training_step")
    trainer.train()
