"""Means over a whole optimizer step, whatever its micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_distill.heads import Batch, TaskHead


def count_step(
    head: TaskHead, batches: Sequence[Batch], accelerator: Accelerator
) -> tuple[int | Tensor, int | Tensor]:
    """Labelled items and compared rows of a step, over its micro-batches and all processes.

    Args:
        head: the student's head.
        batches: the micro-batches of this process.
        accelerator: knows the other processes.
    """
    labelled: int | Tensor = sum(head.count_labelled(batch) for batch in batches)
    rows: int | Tensor = sum(head.count_rows(batch) for batch in batches)
    if accelerator.num_processes > 1:
        counts = torch.zeros(2, device=accelerator.device)
        counts[0], counts[1] = labelled, rows
        labelled, rows = accelerator.reduce(counts, reduction="sum")
    return labelled, rows


def weighted_mean(loss: Tensor, count: Any, factor: int = 1, total: Any = 1) -> Tensor:
    """``loss * count * factor / total``; 0 if nothing counts, for a mean over nothing is NaN.

    Args:
        loss: the mean over ``count`` items.
        count: how many they are.
        factor: what the sum over micro-batches and processes is divided by later.
        total: items of the whole step.
    """
    if not isinstance(count, Tensor):
        return loss * (count * factor / total)
    total = total.clamp(min=1) if isinstance(total, Tensor) else max(total, 1)
    loss = torch.where(count > 0, loss, torch.zeros_like(loss))
    return loss * (count * factor / total)


def mixed(task: Tensor | None, prediction: Tensor | None, weight: float) -> Tensor:
    """``(1 - w) * task + w * prediction``; one of them alone where the other does not count.

    Args:
        task: the label loss; may be missing with w = 1.
        prediction: the distillation loss; may be missing with w = 0.
        weight: w.
    """
    if weight == 0 and task is not None:
        return task
    if weight == 1 and prediction is not None:
        return prediction
    assert task is not None and prediction is not None  # the first batch was checked
    return (1 - weight) * task + weight * prediction
