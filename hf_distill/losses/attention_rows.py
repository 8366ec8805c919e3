"""Losses over the attention maps of student and teacher, made in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs, compute_dtype
from hf_distill.losses.chunks import (
    Block,
    Group,
    Pairs,
    empty_gradient,
    fill_padding,
    part,
    shared_heads,
    store,
    wants_gradient,
    with_gradients,
)


class Rows(NamedTuple):
    """What makes the scores of some rows in one model: ``Q Kᵀ``, and its bias if it has one."""

    query: Tensor
    """``(samples · heads, rows, head_dim)``, multiplied by the scaling."""
    key: Tensor
    """``(samples · heads, keys, head_dim)``."""
    bias: Tensor | None
    """``(samples · heads, rows, keys)``."""

    def scores(self) -> Tensor:
        """Return new ``(samples · heads, rows, keys)``."""
        product = torch.bmm(self.query, self.key.mT)
        return product if self.bias is None else product.add_(self.bias)


Hide = Callable[[Tensor, float], Tensor]
"""Puts a value, in place, where scores belong to pairs that do not count."""

Compare = Callable[[Rows, Rows, Hide], tuple[Tensor, Tensor]]
"""Rows of student and teacher to the sum of their losses and to ∂loss/∂S_s."""


def loss_over_rows(
    student: AttentionInputs, teacher: AttentionInputs, pairs: Pairs, compare: Compare
) -> Tensor:
    """Return the sum over rows, mean over heads, of a comparison of scores.

    With G = ∂loss/∂S_s, the gradients with respect to the student's Q, K and bias are
    ``scaling_s G K_s``, ``scaling_s Gᵀ Q_s`` and G. They are computed with the loss, chunk by
    chunk, and kept in float32 (float64) until the backward pass. Q and K may be one tensor.
    """
    query, key, bias = student.query, student.key, student.bias
    trained = [x for x in (query, key, bias) if x is not None]
    wanted = wants_gradient(*trained)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        loss, gradients = _loss_and_gradients(student, teacher, pairs, compare, wanted)
    if not wanted:
        return loss
    if query is key:
        return with_gradients(loss, (query, gradients[0].add_(gradients[1])))
    return with_gradients(loss, *zip(trained, gradients, strict=True))


def _loss_and_gradients(
    student: AttentionInputs,
    teacher: AttentionInputs,
    pairs: Pairs,
    compare: Compare,
    wanted: bool,
) -> tuple[Tensor, list[Tensor]]:
    query, key, bias = student.query, student.key, student.bias
    heads, device = query.shape[1], query.device
    dtype = compute_dtype(query, key, teacher.query, teacher.key)
    found = pairs.groups(query, key)
    gradients: list[Tensor] = []
    if wanted:
        gradients.append(empty_gradient(query, [queries for queries, _ in found], dtype))
        gradients.append(empty_gradient(key, [keys for _, keys in found], dtype))
        if bias is not None:
            gradients.append(torch.zeros_like(bias, dtype=dtype))
    loss = torch.zeros((), dtype=dtype, device=device)
    for queries, keys in found:
        whole = slice(0, keys.length)
        k, teacher_k = (_clean(x.key, keys, whole, heads, dtype) for x in (student, teacher))
        key_gradient = torch.zeros_like(k) if wanted else None
        for block in pairs.blocks(queries, keys, heads, device):
            ours, theirs = (
                Rows(
                    _clean(x.query, queries, block.rows, heads, dtype).mul_(x.scaling),
                    all_keys[:, block.columns],
                    None if x.bias is None else _bias(x.bias, block, heads, dtype),
                )
                for x, all_keys in ((student, k), (teacher, teacher_k))
            )
            term, slope = compare(ours, theirs, partial(pairs.hide, block))
            loss += term / heads
            if key_gradient is None:
                continue
            slope *= 1 / heads
            of_query = torch.bmm(slope, ours.key).mul_(student.scaling)
            store(gradients[0], queries, block.rows, of_query)
            key_gradient[:, block.columns].baddbmm_(slope.mT, ours.query)
            if bias is not None:
                target = block.part(gradients[2])
                target += slope.unflatten(0, (-1, heads)).sum_to_size(target.shape)
        if key_gradient is not None:
            store(gradients[1], keys, whole, key_gradient)
    return loss, gradients


def _clean(tensor: Tensor, group: Group, rows: slice, heads: int, dtype: torch.dtype) -> Tensor:
    """Copy some rows, ``(samples · heads, rows, head_dim)``, with zeros for padding."""
    copy = shared_heads(part(tensor, group, rows), heads).to(
        dtype, copy=True, memory_format=torch.contiguous_format
    )
    return fill_padding(copy, group, rows).flatten(0, 1)


def _bias(bias: Tensor, block: Block, heads: int, dtype: torch.dtype) -> Tensor:
    samples = block.queries.samples.stop - block.queries.samples.start
    found = block.part(bias).to(dtype)
    return found.expand(samples, heads, -1, -1).flatten(0, 1)
