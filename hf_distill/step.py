"""One optimizer step: the logits that are compared, means over the whole step, the loss log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

Batch = Mapping[str, Any]

ItemCounter = Callable[[Batch], int | Tensor]
"""Counts the items of a batch that a loss is the mean of."""


class WholeSteps:
    """Micro-batches for whole steps, also where the length of an epoch is not known.

    ``Trainer`` would add what is left at the end of such an epoch to the next one's first step, as
    a mean of its own. Here it is a part of that step.
    """

    def __init__(self) -> None:
        self._left: list[Any] = []
        self._source: Iterator[Any] | None = None

    def draw(
        self,
        source: Iterator[Any],
        size: int,
        take: Callable[[Iterator[Any]], tuple[list[Any], Any]],
        *,
        steps_done: int,
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step and the number of their items; none at an epoch's end.

        Args:
            source: the batches of an epoch.
            size: how many a step has.
            take: draws them, and counts their items.
            steps_done: how many steps there were.

        Raises:
            ValueError: the first epoch is shorter than a step.
        """
        if self._left and source is self._source:
            return [], None
        self._source, earlier = source, self._left
        batches, items = take(chain(earlier, source))
        self._left = batches if len(batches) < size else []
        if self._left and not steps_done:
            raise ValueError(
                f"An epoch of train_dataset has {len(batches)} batches, fewer than the "
                f"gradient_accumulation_steps={size} of one step; lower them, or repeat the data."
            )
        return ([], None) if self._left else (batches, items)


class BatchPlan(NamedTuple):
    """The losses of one batch, settled before a model runs."""

    training: bool
    step: int
    """Steps done."""
    counts: dict[str, Any]
    """By loss, the items that it is the mean of."""
    weights: dict[str, float]
    """By loss, what it is multiplied by; those that do not count are left out."""
    temperature: float
    compares_layers: bool = False
    """Also where they are only recorded."""
    compares_logits: bool = False

    @property
    def uses_teacher(self) -> bool:
        """Tell if a part of the loss needs the teacher."""
        return self.compares_logits or self.compares_layers

    @property
    def training_step(self) -> int:
        """The training step that the batch belongs to, from 1; 0 in an evaluation."""
        return self.step + 1 if self.training else 0


class AlignedLogits(NamedTuple):
    """The logits of student and teacher for a batch, with the same classes in the same order."""

    student: Tensor
    """``(*rows, classes)``."""
    teacher: Tensor
    """``(*rows, classes)``."""
    class_mask: Tensor | None
    """Bool, broadcastable to the logits: False where a class of a row is padding."""
    row_mask: Tensor | None
    """Bool, ``(*rows)``: False where a row does not count."""
    rows: int | Tensor
    """The number of rows that count."""
    factor: float = 1.0
    """The loss of a row is multiplied by it."""


def prediction_loss(
    logits: AlignedLogits, loss_function: Callable[..., Any], *, temperature: float
) -> Tensor:
    """Compute the mean of a loss function over the rows of a batch that count; 0 if none does.

    Args:
        logits: those of student and teacher.
        loss_function: as in ``hf_distill.losses``.
        temperature: T > 0.

    Raises:
        ValueError: the function does not return one loss per row.
    """
    mask = logits.class_mask
    if logits.row_mask is not None:
        counts = logits.row_mask[..., None]
        mask = counts if mask is None else counts & mask
    losses = loss_function(logits.student, logits.teacher, temperature=temperature, mask=mask)
    shape = logits.student.shape[:-1]
    if not isinstance(losses, Tensor) or losses.shape != shape:
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"distillation_loss must return one loss per row, shape {tuple(shape)}, but it "
            f"returned {found}."
        )
    losses = losses * logits.factor
    if logits.row_mask is None:
        return losses.sum() / logits.rows
    total = losses.masked_fill(~logits.row_mask, 0.0).sum()
    return total / (logits.rows.clamp(min=1) if isinstance(logits.rows, Tensor) else logits.rows)


def weighted_mean(loss: Tensor, count: Any, factor: int = 1, total: Any = 1) -> Tensor:
    """Return ``loss * count * factor / total``; 0 if nothing counts, for a mean over none is NaN.

    Args:
        loss: the mean over ``count`` items.
        count: the number of items.
        factor: the sum over micro-batches and processes is divided by it later.
        total: the items of the whole step.
    """
    if not isinstance(count, Tensor):
        return loss * (count * factor / total)
    total = total.clamp(min=1) if isinstance(total, Tensor) else max(total, 1)
    loss = torch.where(count > 0, loss, torch.zeros_like(loss))
    return loss * (count * factor / total)


def count_items(
    counters: Mapping[str, ItemCounter], label_names: Sequence[str], batch: Batch
) -> dict[str, int | Tensor]:
    """Count the items of a batch of any model, and leave out those that cannot be counted."""
    counts: dict[str, int | Tensor] = {}
    for name, counter in counters.items():
        if name == "task" and any(batch.get(label) is None for label in label_names):
            continue
        # Any error: a model of one's own may have other inputs or labels, or no configuration.
        with suppress(Exception):
            counts[name] = counter(batch)
    return counts


def count_step(
    counts: Sequence[Mapping[str, int | Tensor]], accelerator: Accelerator
) -> dict[str, int | Tensor]:
    """Add up the counts of a step over its micro-batches (of this process) and all processes.

    The order of ``counts`` may differ between processes.
    """
    names = sorted(name for name in counts[0] if all(name in batch for batch in counts))
    totals: dict[str, int | Tensor] = {name: sum(batch[name] for batch in counts) for name in names}
    if accelerator.num_processes > 1:
        # In double precision, because some heads count halves.
        sums = torch.zeros(len(totals), device=accelerator.device, dtype=torch.double)
        for i, count in enumerate(totals.values()):
            sums[i] = count
        totals = dict(zip(totals, accelerator.reduce(sums, reduction="sum").float(), strict=True))
    return totals


class LossLog:
    """Adds up the parts of the loss by name, without waiting for the device.

    Every process must add the same names between two ``pop``s.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was added."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, value: Tensor, count: Tensor | float) -> None:
        """Add ``value``, a sum over ``count`` items of this process."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over everything that all processes added since the last call.

        Parts of a loss, called ``loss.part``, are added up.

        One reduction and one wait for the device, whatever the number of parts.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        first = self._sums[names[0]]
        pairs = first.new_tensor([[0.0, 0.0]] * len(names))
        for row, name in zip(pairs, names, strict=True):
            row[0] = self._sums[name]
            row[1] = self._counts[name]
        self.clear()
        pairs = accelerator.reduce(pairs, reduction="sum")
        means: dict[str, float] = {}
        for name, (total, count) in zip(names, pairs.tolist(), strict=True):
            if count:
                loss = f"loss_{name.partition('.')[0]}"
                means[loss] = means.get(loss, 0.0) + total / count
        return means


class StepLosses:
    """Weights the losses of a batch by its share of an optimizer step, and logs them.

    Args:
        own_label_loss: whether a function of the caller computes the label loss. It may divide by
            the number of items of the whole step, and ``Trainer`` leaves what it returns as it is.
    """

    def __init__(self, *, own_label_loss: bool) -> None:
        self.train_log, self.eval_log = LossLog(), LossLog()
        self._own_label_loss = own_label_loss
        self._totals: Mapping[str, int | Tensor] = {}
        self._micro_batches = self._processes = 1

    def begin_step(
        self, counts: Sequence[Mapping[str, int | Tensor]], accelerator: Accelerator
    ) -> None:
        """Add up the counts of a step over its micro-batches (of this process) and processes."""
        self._totals = count_step(counts, accelerator)
        self._micro_batches, self._processes = len(counts), accelerator.num_processes

    def end_training(self) -> None:
        """Take no further batch for a part of a step."""
        self._totals = {}

    def total(
        self, losses: Mapping[str, Tensor], plan: BatchPlan, num_items: Any, parts: int
    ) -> Tensor:
        """Log the losses of a batch, and add them up, each by its weight.

        In training each is weighted by the batch's share of the step first. In an evaluation it
        is the task loss alone, or the prediction loss if the data has no labels.

        Args:
            losses: the means over this batch, by name.
            plan: the plan of it.
            num_items: the items that a label loss of the caller is divided by; ``None`` if it is a
                mean over the batch as well.
            parts: how many processes share them in an evaluation.
        """
        if plan.training:
            losses = self._shares(losses, plan.counts, num_items)
        else:
            counts = plan.counts
            if self._own_label_loss and num_items is not None and "task" in counts:
                # What the function divided by, of which Trainer gives each process its part.
                counts = {**counts, "task": num_items / parts}
            for name, value in losses.items():
                if name in counts:
                    self.eval_log.add(name, weighted_mean(value, counts[name]), counts[name])
            for name in ("task", "prediction"):
                if name in losses:
                    return losses[name]
        first, *others = (
            loss * weight
            for kind, weight in plan.weights.items()
            for name, loss in losses.items()
            if name.partition(".")[0] == kind
        )
        return sum(others, start=first)

    def _shares(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, Any], num_items: Any
    ) -> dict[str, Tensor]:
        """Weight the means over a micro-batch by its share of the step, and log them.

        ``Trainer`` divides by the number of micro-batches (unless ``own_label_loss``) and DDP by
        the number of processes; what they make of it is the mean over the step. Outside of a step
        the means stay as they are.
        """
        shares: dict[str, Tensor] = {}
        for name, loss in losses.items():
            if name not in self._totals:
                shares[name] = loss
                continue
            share = loss
            if name != "task" or not self._own_label_loss or num_items is None:
                # Exactly 1 when all shares are equal: bit for bit the loss of Trainer.
                processes, total = self._processes, self._totals[name]
                loss = weighted_mean(loss, counts[name], processes * self._micro_batches, total)
                share = loss / self._micro_batches
            self.train_log.add(name, share, 1 / self._micro_batches)
            shares[name] = share if self._own_label_loss else loss
        return shares
