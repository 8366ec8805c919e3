"""What the tests of checkpoints share: a run with all that a checkpoint can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from runs import arguments
from tiny import dataset_for, model_for

from hf_distill import DistillationTrainer

TASK = "question-answering"


def teacher(change: float = 0.0) -> Any:
    """A teacher, or one that differs from it in one number."""
    model = model_for(TASK, seed=1, layers=4)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7, 3] += change
    return model


def trainer_for(folder: Path | str, **options: Any) -> DistillationTrainer:
    """Three steps with dropout, mixed losses and a narrower student, a checkpoint after each."""
    callbacks = options.pop("callbacks", [])
    teacher_model = options.pop("teacher_model", None) or teacher()
    distillation_loss = options.pop("custom_loss", None)
    eval_dataset = options.pop("eval_dataset", None)
    train_dataset = options.pop("train_dataset", None)
    student = model_for(TASK, seed=0, layers=2, width=8, hidden_dropout_prob=0.1)
    return DistillationTrainer(
        model=student,
        teacher_model=teacher_model,
        args=arguments(
            folder,
            **{
                "hidden_states_loss_weight": 1.0,
                "save_strategy": "steps",
                "save_steps": 1,
                **options,
            },
        ),
        train_dataset=dataset_for(TASK) if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        distillation_loss=distillation_loss,
    )


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    """Those of the student and of the projections."""
    student: Any = trainer.model
    projections = trainer.distiller.layers._projections
    own = {k: v for k, v in student.state_dict().items() if "projections" not in k}
    return {**own, **{f"p.{k}": v for k, v in projections.state_dict().items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())
