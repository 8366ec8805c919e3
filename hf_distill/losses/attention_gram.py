"""The score loss without any attention map, in time linear in the length.

With the factors X and Y of ``attention_factors``, over all pairs of valid tokens,

    ‖X Yᵀ‖² = ⟨XᵀX, YᵀY⟩,   X Yᵀ K_s = X (Yᵀ K_s),   Y Xᵀ Q_s = Y (Xᵀ Q_s)

where everything in brackets has the size head_dim × head_dim or twice that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs
from hf_distill.losses.attention_factors import Factors
from hf_distill.losses.chunks import (
    Group,
    chunks,
    empty_gradient,
    groups,
    refuse_second_order,
    store,
)

_CANCELLED = 1e-4
"""The share of its positive terms below which a float32 sum has lost its digits."""


def gram_scores_loss(
    student: AttentionInputs, teacher: AttentionInputs, token_mask: Tensor | None
) -> Tensor:
    """``scores_loss`` where all pairs of valid tokens are visible.

    Kept for the backward pass are references to Q and K of both sides and two blocks a head.

    The sum ``⟨XᵀX, YᵀY⟩`` has positive terms and terms of any sign. They cancel where student and
    teacher have nearly the same scores from different Q and K (rotated, or of another head_dim).
    A CPU then repeats the sample in float64. Other devices, which would have to stop for that,
    go on in float32: with scores within 0.1 % of the teacher's, the gradient is right to 1e-3,
    while the loss, never below 0, is not.
    """
    loss: Tensor = _Gram.apply(student.query, student.key, student.scaling, teacher, token_mask)
    return loss


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scaling: float,
        teacher: AttentionInputs,
        token_mask: Tensor | None,
    ) -> Tensor:
        factors = Factors.of(query, key, scaling, teacher)
        found = groups(token_mask, query.shape[0], query.shape[2], query.device)
        loss = torch.zeros((), dtype=factors.dtype, device=query.device)
        blocks: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for group in found:
                term, *products = _loss_and_products(factors, group)
                loss += term
                blocks += products
        ctx.save_for_backward(query, key, *blocks)
        # Not saved with the others: autograd refuses tensors of inference mode.
        ctx.factors = replace(factors, query=query.new_empty(0), key=key.new_empty(0))
        ctx.groups = found
        ctx.scale = scaling**2 / factors.heads
        return loss * ctx.scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        query, key, *blocks = ctx.saved_tensors
        of_query, of_key = empty_gradient(query, ctx.groups), empty_gradient(key, ctx.groups)
        scale = grad_output * (2 * ctx.scale)
        with torch.autocast(query.device.type, enabled=False):
            for group, x_query, y_key in zip(ctx.groups, blocks[::2], blocks[1::2], strict=True):
                factors = replace(ctx.factors, query=query, key=key, dtype=x_query.dtype)
                x_query, y_key = x_query * scale, y_key * scale
                for rows in _chunks(factors, group):
                    store(of_query, group, rows, torch.bmm(factors.x(group, rows), y_key))
                    store(of_key, group, rows, torch.bmm(factors.y(group, rows), x_query))
        return of_query, of_key, None, None, None


def _loss_and_products(factors: Factors, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """``‖X Yᵀ‖²``, ``Xᵀ Q_s`` and ``Yᵀ K_s``."""
    of_x, of_y = _gram(factors, factors.x, group), _gram(factors, factors.y, group)
    inner = [torch.dot(a.view(-1), b.view(-1)) for a, b in zip(of_x, of_y, strict=True)]
    positive = inner[0] + inner[2]
    loss = positive + 2 * inner[1]
    can_repeat = factors.dtype == torch.float32 and factors.query.device.type == "cpu"
    if can_repeat and bool(loss < _CANCELLED * positive):
        return _loss_and_products(replace(factors, dtype=torch.float64), group)
    x_query = torch.cat([of_x[0], of_x[1].transpose(1, 2)], dim=1)
    if factors.comparable:
        x_query += torch.cat([of_x[1], of_x[2]], dim=1)
    y_key = torch.cat([of_y[0], of_y[1].transpose(1, 2)], dim=1)
    return loss.clamp(min=0.0), x_query, y_key


def _gram(factors: Factors, factor: Callable[[Group, slice], Tensor], group: Group) -> list[Tensor]:
    """``XᵀX`` by its upper left, upper right and lower right block, a head each."""
    split = factors.head_dim
    sums: list[Tensor] = []
    for rows in _chunks(factors, group):
        x = factor(group, rows)
        left, right = x[..., :split], x[..., split:]
        upper = torch.bmm(left.transpose(1, 2), x)
        lower = torch.bmm(right.transpose(1, 2), right)
        blocks = [upper[..., :split].contiguous(), upper[..., split:].contiguous(), lower]
        sums = [a.add_(b) for a, b in zip(sums, blocks, strict=True)] if sums else blocks
    return sums


def _chunks(factors: Factors, group: Group) -> list[slice]:
    return list(chunks(group, factors.heads * factors.width, factors.query.device))
