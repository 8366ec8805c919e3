"""Runs an example, small, and what the tests compare its figures with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny import tokenizer
from torch import Tensor
from torch.nn import functional
from zoo import zoo_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEMPERATURE = 3.0
COMMON = {
    "max_steps": 12,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 5,
    "temperature": TEMPERATURE,
    "distillation_loss_weight": 0.7,
    "teacher_check_samples": 0,  # the teachers here are random
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}

RunScript = Callable[..., dict[str, Any]]


def saved_pair(
    folder: Path, task: str, architecture: str, names: Sequence[str] = (), **options: Any
) -> dict[str, str]:
    """A teacher, whose labels are in the order of ``names``, and a student that has none."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    options = {"pad_token_id": 0, **options}
    teacher = zoo_model(
        task, architecture, seed=1, layers=2, **options, **(labels if names else {})
    )
    student = zoo_model(task, architecture, seed=0, **options)
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(folder / name)
        if task != "image-classification":
            tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("teacher", "student")}


def soft_distance(student: Tensor, teacher: Tensor) -> float:
    """T² KL of rows of logits, written out."""
    p = functional.softmax(teacher / TEMPERATURE, dim=-1)
    q = functional.softmax(student / TEMPERATURE, dim=-1)
    return float((p * (p / q).log()).sum(-1).mean()) * TEMPERATURE**2


def reordered(logits: Tensor, teacher: Any, student: Any) -> Tensor:
    """The teacher's logits with its classes as the student has them, by name."""
    names = [student.config.id2label[i] for i in range(student.config.num_labels)]
    return logits[:, [teacher.config.label2id[name] for name in names]]
