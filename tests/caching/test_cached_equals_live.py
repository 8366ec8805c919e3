"""Training from cached outputs is training with the live teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import distil, logged
from transformers import default_data_collator
from zoo import PAIRS, zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs

ONE_OF_EACH = list(dict(PAIRS).items())
ROWS = 16


def cached(data: Dataset, teacher: Any, folder: Path, **options: Any) -> Dataset:
    return cache_teacher_outputs(
        teacher,
        data,
        output_dir=folder,
        data_collator=default_data_collator,
        **{"dtype": "float32", "batch_size": 3, "use_cpu": True, **options},
    )


def train(
    task: str, architecture: str, path: Path, data: Dataset, teacher: Any, **options: Any
) -> Any:
    trainer, _ = distil(
        task,
        path,
        student=zoo_model(task, architecture, seed=0),
        teacher=teacher,
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator, **options.pop("more", {})},
        **{
            "max_steps": 4,
            "distillation_loss_weight": 0.6,
            "temperature": 2.0,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "optim": "sgd",
            **options,
        },
    )
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(("task", "architecture"), PAIRS)
def test_every_architecture_learns_the_same(task: str, architecture: str, tmp_path: Path) -> None:
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    data = zoo_dataset(task, ROWS)
    live = train(task, architecture, tmp_path, data, teacher)
    stored = cached(data, teacher, tmp_path / "cache")
    from_cache = train(task, architecture, tmp_path, stored, None)
    assert from_cache.teacher_model is None
    for part in ("loss", "loss_task", "loss_prediction"):
        assert logged(from_cache, part) == pytest.approx(logged(live, part), rel=1e-4), part
    assert min(logged(live, "loss_prediction")) > 1e-3
    assert torch.allclose(weights(from_cache), weights(live), rtol=1e-3, atol=1e-4)
