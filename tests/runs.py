"""Short training runs that the tests compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import dataset_for, model_for
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_distill import DistillationTrainer, DistillationTrainingArguments

TASKS = ("question-answering", "text-classification")


class GradientNorms(TrainerCallback):
    """Records, on this process, the gradient that each optimizer step used."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = kwargs["model"].parameters()
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).double().norm()))


class CountingTeacher(nn.Module):
    """Wraps a model to count its forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.wrapped, self.config, self.calls = model, model.config, 0
        self.training_during_calls: list[bool] = []

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Any:
        self.calls += 1
        self.training_during_calls.append(self.wrapped.training)
        assert not torch.is_grad_enabled()
        return self.wrapped(input_ids, attention_mask, token_type_ids)


def arguments(output_dir: Path | str, **options: Any) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(
        str(output_dir),
        **{
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            **options,
        },
    )


def distil(
    task: str,
    output_dir: Path | str,
    *,
    student: nn.Module | None = None,
    teacher: Any = "random",
    trainer_class: type[Trainer] = DistillationTrainer,
    train_dataset: Any = None,
    trainer_options: dict[str, Any] | None = None,
    record_gradients: bool = True,
    **options: Any,
) -> tuple[Trainer, GradientNorms]:
    """Train a tiny student for a few steps; the teacher is a random model of the same kind."""
    norms = GradientNorms()
    extra = dict(trainer_options or {})
    if trainer_class is not Trainer and teacher is not None:
        extra["teacher_model"] = model_for(task, seed=1) if teacher == "random" else teacher
    trainer = trainer_class(
        model=model_for(task, seed=0, layers=1) if student is None else student,
        args=arguments(output_dir, **options),
        train_dataset=dataset_for(task) if train_dataset is None else train_dataset,
        callbacks=[*extra.pop("callbacks", ()), *([norms] if record_gradients else [])],
        **extra,
    )
    trainer.train()
    return trainer, norms


def logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
