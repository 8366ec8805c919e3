"""Labels are matched by name: a teacher that numbers them otherwise teaches the same student."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import distil
from torch import nn
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

TASKS = [
    ("text-classification", "bert", {}),
    ("text-classification", "roberta", {"problem_type": "multi_label_classification"}),
    ("token-classification", "electra", {}),
    ("image-classification", "vit", {}),
    ("audio-classification", "wav2vec2", {}),
]


def renumbered(teacher: Any, order: list[int]) -> Any:
    """The same teacher with class i of the new numbering being class ``order[i]`` of the old."""
    teacher = copy.deepcopy(teacher)
    last = [module for module in teacher.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    old = teacher.config.id2label
    teacher.config.id2label = {i: old[j].upper() for i, j in enumerate(order)}
    teacher.config.label2id = {name: i for i, name in teacher.config.id2label.items()}
    return teacher


def data_for(task: str, options: dict[str, Any]) -> Dataset:
    data = zoo_dataset(task)
    if options:
        several = torch.randint(0, 2, (len(data), 3), generator=torch.Generator().manual_seed(0))
        return Dataset.from_dict({**data.to_dict(), "labels": several.float().tolist()})
    return data


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
@pytest.mark.parametrize(("task", "architecture", "options"), TASKS)
def test_a_teacher_with_another_order_gives_the_same_student_bit_for_bit(
    task: str,
    architecture: str,
    options: dict[str, Any],
    order: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = zoo_model(task, architecture, seed=1, layers=2, **options)
    students = []
    for one in (teacher, renumbered(teacher, order)):
        with caplog.at_level(logging.INFO, logger="hf_distill"):
            trainer, _ = distil(
                task,
                tmp_path,
                student=zoo_model(task, architecture, seed=0, **options),
                teacher=one,
                train_dataset=data_for(task, options),
                trainer_options={"data_collator": default_data_collator},
                distillation_loss_weight=0.8,
                max_steps=4,
                learning_rate=0.01,
            )
        students.append(trainer.model.state_dict())
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    assert "its logits are reordered by name" in caplog.text
    start = zoo_model(task, architecture, seed=0, **options).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in students[0].items())
