"""Means over a whole optimizer step, whatever its micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

Counter = Callable[[Mapping[str, Any]], int | Tensor]
"""How many items of a batch a loss is the mean of."""


def count_step(
    counters: Mapping[str, Counter], batches: Sequence[Mapping[str, Any]], accelerator: Accelerator
) -> dict[str, int | Tensor]:
    """What the losses of a step are means of, over its micro-batches and all processes.

    Args:
        counters: one a loss, by its name.
        batches: the micro-batches of this process.
        accelerator: knows the other processes.
    """
    totals: dict[str, int | Tensor] = {
        name: sum(counter(batch) for batch in batches) for name, counter in counters.items()
    }
    if accelerator.num_processes > 1:
        counts = torch.zeros(len(totals), device=accelerator.device, dtype=torch.long)
        for i, count in enumerate(totals.values()):
            counts[i] = count
        totals = dict(zip(totals, accelerator.reduce(counts, reduction="sum"), strict=True))
    return totals


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
