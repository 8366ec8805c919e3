"""What the workers of tools that take transformers' models, or are built on its Trainer, share."""

from __future__ import annotations

from pathlib import Path
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
LABELS = ("labels", "start_positions", "end_positions")


def load_models(setting: Setting, **options: Any) -> tuple[Any, Any]:
    """Load the frozen teacher and the student, with options of ``from_pretrained``."""
    if setting.implementation:
        options["attn_implementation"] = setting.implementation
    auto_class = CLASSES.get(setting.task, AutoModelForQuestionAnswering)
    teacher = auto_class.from_pretrained(setting.teacher, **options)
    student = auto_class.from_pretrained(setting.student, **options)
    return teacher.eval().requires_grad_(False), student


def dataset(setting: Setting) -> Dataset:
    """Return the rows, without labels unless they are asked for."""
    rows = setting.load_rows()
    names = (*INPUTS, *LABELS) if setting.labelled else INPUTS
    return Dataset.from_dict({name: rows[name].tolist() for name in names if name in rows})


def trainer_options(setting: Setting) -> dict[str, Any]:
    """Return what all ``TrainingArguments`` have in common."""
    optimizer: dict[str, Any] = {"learning_rate": LEARNING_RATE, "max_grad_norm": MAX_GRAD_NORM}
    if setting.sgd:
        optimizer = {
            "optim": "sgd",
            "learning_rate": setting.sgd,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
        }
    return {
        **optimizer,
        "output_dir": setting.output,
        "per_device_train_batch_size": setting.batch_size,
        "gradient_accumulation_steps": setting.accumulation,
        "max_steps": setting.steps,
        "use_cpu": True,
        "save_strategy": "steps" if setting.save_at else "no",
        "save_steps": setting.save_at or setting.steps,
        "logging_steps": 10,
        "disable_tqdm": True,
        "report_to": "none",
    }


def train(trainer: Any, gate: Gate, setting: Setting) -> None:
    """Train with any subclass of ``Trainer``, held at each step."""
    gate.hold(trainer, "training_step", trainer.model)
    checkpoint = Path(setting.output) / f"checkpoint-{setting.save_at}"
    trainer.train(resume_from_checkpoint=str(checkpoint) if setting.resume else None)
    gate.end()
