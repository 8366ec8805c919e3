"""The losses between hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.attention import check_token_mask, compute_dtype
from hf_distill.losses.chunks import Group, chunks, groups, part, refuse_second_order


def hidden_states_loss(
    student: Tensor, teacher: Tensor, *, token_mask: Tensor | None = None, loss: str = "mse"
) -> Tensor:
    """The distance of hidden states, summed over the batch and its valid tokens.

    - "mse": ``Σ ‖s - t‖² / width`` (Jiao et al. 2020, *TinyBERT*, section 3.1, equations 8 and 9);
      the gradient is ``2 (s - t) / width``.
    - "cosine": ``Σ 1 - cos(s, t)`` (Sanh et al. 2019, *DistilBERT*, section 3), computed as
      ``½ ‖s/‖s‖ - t/‖t‖‖²``, which keeps its digits when student and teacher agree. A token with a
      vector of zeros on either side has the loss 1 and the gradient 0.

    Computed in float32 (float64 if a side is), from half-precision inputs too; the gradient is
    rounded once, to the student's type, and is first order: ``create_graph=True`` raises. Kept
    for the backward pass are references only.

    Args:
        student: ``(batch, length, width)``, after the projection where widths differ.
        teacher: the same shape; it gets no gradient.
        token_mask: ``(batch, length)`` bool, True = valid, or ``None``. The content of padded
            tokens does not matter, NaN and infinities included; their gradient is exactly 0.
        loss: "mse" or "cosine".

    Returns:
        A 0-dim tensor, float32 or float64. The division by the number of tokens is the caller's.

    Raises:
        ValueError: shapes or types do not fit together, or ``loss`` is unknown.
    """
    for name, tensor in (("student", student), ("teacher", teacher)):
        if tensor.dim() != 3 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating-point (batch, length, width), but it is {tensor.dtype} "
                f"{tuple(tensor.shape)}."
            )
    if student.shape != teacher.shape:
        raise ValueError(
            f"student has the shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}; "
            "where the widths differ, project the student to the teacher's width."
        )
    check_token_mask(token_mask, student.shape[0], student.shape[1])
    if loss not in HIDDEN_STATES_LOSSES:
        raise ValueError(
            f"loss must be one of {', '.join(sorted(HIDDEN_STATES_LOSSES))}, but it is {loss!r}."
        )
    functions = HIDDEN_STATES_LOSSES[loss]
    result: Tensor = _Distance.apply(student, teacher.detach(), token_mask, *functions)
    return result


Value = Callable[[Tensor, Tensor], Tensor]
"""Rows of student and teacher, ``(…, width)``, to the sum of their losses."""

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The same, and a 0-dim factor, to the gradient of that sum times the factor."""


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    difference = (student - teacher).reshape(-1)
    return torch.dot(difference, difference) / student.shape[-1]


def _mse_slope(student: Tensor, teacher: Tensor, factor: Tensor) -> Tensor:
    return torch.sub(student, teacher).mul_(factor * (2 / student.shape[-1]))


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    difference, _, _, nonzero = _directions(student, teacher)
    terms = 0.5 * difference.square().sum(dim=-1, keepdim=True)
    return torch.where(nonzero, terms, 1.0).sum()


def _cosine_slope(student: Tensor, teacher: Tensor, factor: Tensor) -> Tensor:
    difference, direction, size, nonzero = _directions(student, teacher)
    along = torch.linalg.vecdot(direction, difference).unsqueeze(-1)
    # The part of the difference that is orthogonal to the student
    return difference.addcmul_(direction, along, value=-1.0).mul_(nonzero * factor / size)


def _directions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``s/‖s‖ - t/‖t‖``, ``s/‖s‖``, ``‖s‖`` (1 where it is 0), and where neither is 0."""
    sizes = [x.norm(dim=-1, keepdim=True) for x in (student, teacher)]
    nonzero = (sizes[0] != 0) & (sizes[1] != 0)
    size, teacher_size = (x.masked_fill(x == 0, 1.0) for x in sizes)
    direction = student / size
    return direction - teacher / teacher_size, direction, size, nonzero


HIDDEN_STATES_LOSSES: dict[str, tuple[Value, Slope]] = {
    "mse": (_mse, _mse_slope),
    "cosine": (_cosine, _cosine_slope),
}
"""By the name that ``hidden_states_loss`` takes."""


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        token_mask: Tensor | None,
        value: Value,
        slope: Slope,
    ) -> Tensor:
        batch, length, _ = student.shape
        dtype = compute_dtype(student, teacher)
        ctx.save_for_backward(student)
        # Not saved with the student: autograd refuses tensors of inference mode.
        ctx.teacher, ctx.slope, ctx.dtype = teacher, slope, dtype
        ctx.masked = token_mask is not None
        ctx.groups = groups(token_mask, batch, length, student.device)
        loss = torch.zeros((), dtype=dtype, device=student.device)
        with torch.autocast(student.device.type, enabled=False):
            for group, rows in _pieces(ctx.groups, student):
                loss += value(*(_clean(x, group, rows, dtype) for x in (student, teacher)))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        (student,) = ctx.saved_tensors
        gradient = torch.zeros_like(student) if ctx.masked else torch.empty_like(student)
        with torch.autocast(student.device.type, enabled=False):
            for group, rows in _pieces(ctx.groups, student):
                sides = (_clean(x, group, rows, ctx.dtype) for x in (student, ctx.teacher))
                part(gradient.unsqueeze(1), group, rows).copy_(ctx.slope(*sides, grad_output))
        return gradient, None, None, None, None


def _pieces(found: list[Group], student: Tensor) -> Iterator[tuple[Group, slice]]:
    for group in found:
        for rows in chunks(group, student.shape[-1], student.device):
            yield group, rows


def _clean(states: Tensor, group: Group, rows: slice, dtype: torch.dtype) -> Tensor:
    """Some rows, ``(samples, 1, rows, width)``, with ones, on both sides, for padding."""
    piece = part(states.unsqueeze(1), group, rows).to(dtype)
    return piece if group.padding is None else piece.masked_fill(group.padding[:, :, rows], 1.0)
