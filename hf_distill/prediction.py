"""The prediction-layer loss of a batch: the rows that count, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from hf_distill.heads import Batch, TaskHead


class AlignedLogits(NamedTuple):
    """What is compared in a batch."""

    student: Tensor
    """``(*rows, classes)``."""
    teacher: Tensor
    """The same shape, with the classes in the student's order."""
    class_mask: Tensor | None
    """Bool, broadcastable to the logits: False where a class of a row is padding."""
    row_mask: Tensor | None
    """Bool, ``(*rows)``: False where a row does not count."""
    rows: int | Tensor
    """How many rows count."""


def compared_logits(
    head: TaskHead,
    outputs: Mapping[str, Tensor],
    teacher_outputs: Mapping[str, Tensor],
    batch: Batch,
) -> AlignedLogits:
    """The logits of student and teacher, made comparable.

    Raises:
        ValueError: their shapes differ.
    """
    student, teacher = head.align(head.logits(outputs, batch), head.logits(teacher_outputs, batch))
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} for the same batch; choose a teacher and a student of "
            "the same task, with the same labels."
        )
    return AlignedLogits(
        student, teacher, head.class_mask(batch), head.row_mask(batch), head.count_rows(batch)
    )


def prediction_loss(
    pair: AlignedLogits, loss_function: Callable[..., Any], *, temperature: float
) -> Tensor:
    """The mean of ``loss_function`` over the rows of a batch that count; 0 if none does.

    Args:
        pair: student and teacher.
        loss_function: as in ``hf_distill.losses``.
        temperature: T > 0.

    Raises:
        ValueError: the function does not return one loss a row.
    """
    mask = pair.class_mask
    if pair.row_mask is not None:
        counts = pair.row_mask[..., None]
        mask = counts if mask is None else counts & mask
    losses = loss_function(pair.student, pair.teacher, temperature=temperature, mask=mask)
    shape = pair.student.shape[:-1]
    if not isinstance(losses, Tensor) or losses.shape != shape:
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"distillation_loss must return one loss a row, shape {tuple(shape)}, but it returned "
            f"{found}."
        )
    if pair.row_mask is None:
        return losses.sum() / pair.rows
    total = losses.masked_fill(~pair.row_mask, 0.0).sum()
    return total / (pair.rows.clamp(min=1) if isinstance(pair.rows, Tensor) else pair.rows)
