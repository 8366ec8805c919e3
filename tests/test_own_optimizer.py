"""A caller's own optimizer trains the projections, too, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import arguments
from tiny import dataset_for, model_for
from torch.optim.lr_scheduler import LambdaLR, StepLR
from transformers import get_linear_schedule_with_warmup

from hf_distill import DistillationTrainer

TASK = "text-classification"
STEPS = 4


def trainer_for(path: Path, optimizers: Any = None, cls: Any = None, **options: Any) -> Any:
    """A narrower student, so that there are projections; ``optimizers`` makes a pair of them."""
    student = model_for(TASK, seed=0, layers=1, width=8)
    return (cls or DistillationTrainer)(
        student,
        arguments(
            path,
            **{
                "stage": "intermediate",
                "max_steps": STEPS,
                "learning_rate": 1e-2,
                "weight_decay": 0.0,
                "optim": "adamw_torch",
                **options,
            },
        ),
        teacher_model=model_for(TASK, seed=1, layers=2),
        train_dataset=dataset_for(TASK),
        optimizers=optimizers(student) if optimizers else (None, None),
    )


def adamw(student: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0, **options)


def with_scheduler(student: Any) -> tuple[torch.optim.Optimizer, LambdaLR]:
    optimizer = adamw(student)
    return optimizer, get_linear_schedule_with_warmup(optimizer, 0, STEPS)


def warmed_up(student: Any) -> tuple[torch.optim.Optimizer, LambdaLR]:
    optimizer = adamw(student)
    return optimizer, get_linear_schedule_with_warmup(optimizer, 2, STEPS)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    projections = trainer.distiller.layers._projections.state_dict()
    found = {**trainer.model.state_dict(), **{f"p.{k}": v for k, v in projections.items()}}
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize(
    ("optimizers", "options"),
    [
        (lambda student: (adamw(student), None), {}),
        (with_scheduler, {}),
        (warmed_up, {"warmup_steps": 2}),
    ],
    ids=["optimizer", "and scheduler", "with warmup"],
)
def test_projections_are_trained_as_by_trainers_optimizer(
    optimizers: Any, options: Any, tmp_path: Path
) -> None:
    runs = [trainer_for(tmp_path, o, **options) for o in (optimizers, None)]
    before = weights(runs[0])
    for run in runs:
        run.train()
    ours, expected = map(weights, runs)
    changed = {name for name, value in ours.items() if not torch.equal(value, before[name])}
    assert {name for name in ours if name.startswith("p.")} <= changed
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_a_second_training_and_a_resumed_one_add_nothing_twice(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2}
    unbroken = trainer_for(tmp_path, with_scheduler, **options)
    unbroken.train()
    resumed = trainer_for(tmp_path, with_scheduler, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(unbroken).items())
    groups = len(resumed.optimizer.param_groups)
    resumed.train()
    assert len(resumed.optimizer.param_groups) == groups == 2


def test_a_scheduler_that_cannot_be_extended_is_refused(tmp_path: Path) -> None:
    def with_steps(student: Any) -> Any:
        optimizer = adamw(student)
        return optimizer, StepLR(optimizer, 1)

    trainer = trainer_for(tmp_path, with_steps)
    with pytest.raises(ValueError, match=r"has a StepLR.*\(optimizer, None\)"):
        trainer.train()
    # Without projections there is nothing to extend.
    trainer_for(tmp_path, with_steps, stage="prediction").train()


class ByName(DistillationTrainer):
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        chosen = [p for name, p in self.model.named_parameters() if name.startswith("bert.")]
        self.optimizer = torch.optim.SGD(chosen, lr=0.1)
        return self.optimizer


def test_an_optimizer_of_chosen_parameters_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, cls=ByName)
    with pytest.raises(ValueError, match="does not train distillation_projections.*create_opt"):
        trainer.train()
    assert trainer.state.global_step == 0
