"""Means over a whole optimizer step, whatever its micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

ItemCounter = Callable[[Mapping[str, Any]], int | Tensor]
"""How many items of a batch a loss is the mean of."""


def count_what_can_be(
    counters: Mapping[str, ItemCounter], label_names: Sequence[str], batch: Mapping[str, Any]
) -> dict[str, int | Tensor]:
    """Count the items of a batch of any model, and leave out what cannot be counted.

    Args:
        counters: one a loss, by its name.
        label_names: what the label loss of a model for this task is computed from.
        batch: a batch.
    """
    counts: dict[str, int | Tensor] = {}
    for name, counter in counters.items():
        if name == "task" and any(batch.get(label) is None for label in label_names):
            continue
        # Whatever it is: a model of one's own may have other inputs, labels or no configuration.
        with suppress(Exception):
            counts[name] = counter(batch)
    return counts


def count_step(
    counts: Sequence[Mapping[str, int | Tensor]], accelerator: Accelerator
) -> dict[str, int | Tensor]:
    """Return what the losses of a step are means of, over its micro-batches and all processes.

    Args:
        counts: those of the micro-batches of this process, by the names of the losses.
        accelerator: knows the other processes.
    """
    names = [name for name in counts[0] if all(name in batch for batch in counts)]
    totals: dict[str, int | Tensor] = {name: sum(batch[name] for batch in counts) for name in names}
    if accelerator.num_processes > 1:
        sums = torch.zeros(
            len(totals), device=accelerator.device, dtype=torch.double
        )  # halves count
        for i, count in enumerate(totals.values()):
            sums[i] = count
        totals = dict(zip(totals, accelerator.reduce(sums, reduction="sum").float(), strict=True))
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
    assert task is not None and prediction is not None  # labels were checked
    return (1 - weight) * task + weight * prediction
