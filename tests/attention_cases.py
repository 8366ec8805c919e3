"""Inputs of attention for the tests of objectives, and plain references over full maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses import (
    AttentionInputs,
    hidden_states_loss,
    probabilities_loss,
    relations_loss,
    scores_loss,
)

BATCH, LENGTH = 3, 9
LENGTHS = (9, 5, 7)


def inputs(
    heads: int = 4,
    head_dim: int = 4,
    *,
    key_heads: int | None = None,
    batch: int = BATCH,
    length: int = LENGTH,
    scaling: float = 0.4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> AttentionInputs:
    """Laid out in memory as models do it: heads side by side."""
    generator = torch.Generator().manual_seed(seed)

    def one(count: int) -> Tensor:
        shape = (batch, length, count, head_dim)
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(dtype).transpose(1, 2)

    key_heads = key_heads or heads
    return AttentionInputs(one(heads), one(key_heads), one(key_heads), scaling)


def trained(values: AttentionInputs) -> AttentionInputs:
    """A copy whose tensors want gradients."""
    tensors = (x.detach().clone().requires_grad_() for x in values[:3])
    bias = None if values.bias is None else values.bias.detach().clone().requires_grad_()
    return AttentionInputs(*tensors, values.scaling, bias)


def near(teacher: AttentionInputs, distance: float, seed: int = 5) -> AttentionInputs:
    """A student whose Q, K and V are the teacher's but for a relative distance."""
    generator = torch.Generator().manual_seed(seed)

    def moved(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return (x.double() * (1 + distance * noise)).to(x.dtype)

    return AttentionInputs(*(moved(x) for x in teacher[:3]), teacher.scaling)


def token_mask(kind: str, length: int = LENGTH) -> Tensor | None:
    """A mask for three samples: padded right, left, with holes, or with an empty sample."""
    if kind == "none":
        return None
    mask = torch.ones(3, length, dtype=torch.bool)
    for row, valid in enumerate((length, length - 4, length - 2)):
        mask[row, valid:] = False
    if kind == "left":
        mask = mask.flip(1)
    elif kind == "holes":
        mask[0, 2] = mask[1, 0] = mask[2, 3:5] = False
    elif kind == "empty":
        mask[1] = False
    return mask


MASKS = ("none", "right", "left", "holes", "empty")


def pair_mask(kind: str, heads: int = 4, length: int = LENGTH) -> Tensor | None:
    """Which key a query sees; "window" lets some queries see no valid key."""
    if kind == "none":
        return None
    if kind == "window":
        distance = torch.arange(length)[:, None] - torch.arange(length)
        return ((distance > 0) & (distance < 4))[None, None]
    generator = torch.Generator().manual_seed(3)
    return torch.rand(3, heads, length, length, generator=generator) > 0.4


def visible(
    values: AttentionInputs,
    mask: Tensor | None,
    causal: bool,
    pairs: Tensor | None,
    key_mask: Tensor | None = None,
) -> Any:
    """(batch, heads, queries, keys), pair by pair."""
    (batch, heads, queries, _), keys = values.query.shape, values.key.shape[2]
    key_mask = mask if key_mask is None else key_mask
    seen = torch.zeros(batch, heads, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                for j in range(keys):
                    ok = mask is None or bool(mask[b, i])
                    ok = ok and (key_mask is None or bool(key_mask[b, j]))
                    ok = ok and (not causal or j <= i)
                    if pairs is not None:
                        ok = ok and bool(pairs[b % pairs.shape[0], h % pairs.shape[1], i, j])
                    seen[b, h, i, j] = ok
    return seen


def scores(values: AttentionInputs) -> Tensor:
    """Full maps before the softmax, head by head."""
    query, key, _, scaling, bias = values
    shared = query.shape[1] // key.shape[1]
    maps = [
        torch.einsum("bid,bjd->bij", query[:, h], key[:, h // shared]) * scaling
        for h in range(query.shape[1])
    ]
    found = torch.stack(maps, dim=1)
    return found if bias is None else found + bias


def kl_of_rows(student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
    """``Σ KL(softmax(teacher) ‖ softmax(student))`` over rows, each over its visible keys only."""
    total = student.new_zeros(())
    for s, t, keys in zip(
        student.flatten(0, -2), teacher.flatten(0, -2), seen.flatten(0, -2), strict=True
    ):
        if keys.any():
            log_q, log_p = s[keys].log_softmax(0), t[keys].log_softmax(0)
            total = total + (log_p.exp() * (log_p - log_q)).sum()
    return total


def scores_reference(student: AttentionInputs, teacher: AttentionInputs, seen: Tensor) -> Tensor:
    difference = scores(student) - scores(teacher)
    return difference[seen].square().sum() / student.query.shape[1]


def probabilities_reference(
    student: AttentionInputs, teacher: AttentionInputs, seen: Tensor, divergence: str
) -> Tensor:
    s, t, heads = scores(student), scores(teacher), student.query.shape[1]
    if divergence == "kl_div":
        return kl_of_rows(s, t, seen) / heads
    total = s.new_zeros(())
    for a, b, keys in zip(s.flatten(0, 2), t.flatten(0, 2), seen.flatten(0, 2), strict=True):
        total = total + (a[keys].softmax(0) - b[keys].softmax(0)).square().sum()
    return total / heads


def relations_reference(
    student: AttentionInputs, teacher: AttentionInputs, relation_heads: int, seen: Tensor
) -> Tensor:
    """MiniLMv2, from vectors that are cut with plain slices."""
    total = student.query.new_zeros(())
    for s, t in zip(student[:3], teacher[:3], strict=True):
        joined = [torch.cat(list(x.unbind(1)), dim=-1) for x in (s, t)]
        for r in range(relation_heads):
            maps = []
            for x in joined:
                size = x.shape[-1] // relation_heads
                piece = x[..., r * size : (r + 1) * size]
                maps.append(piece @ piece.transpose(1, 2) / math.sqrt(size))
            total = total + kl_of_rows(*maps, seen[:, 0])
    return total / (3 * relation_heads)


def relative(got: Tensor, wanted: Tensor) -> float:
    """The distance over the size of what is wanted."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


Loss = Callable[..., Tensor]


def _hidden(kind: str) -> Loss:
    """From the same inputs: the values as hidden states."""

    def loss(student: AttentionInputs, teacher: AttentionInputs, **options: Any) -> Tensor:
        values = (x.value.transpose(1, 2).flatten(2) for x in (student, teacher))
        return hidden_states_loss(*values, loss=kind, **options)

    return loss


def _attention(function: Loss, **fixed: Any) -> Loss:
    def loss(student: AttentionInputs, teacher: AttentionInputs, **options: Any) -> Tensor:
        return function(student, teacher, **fixed, **options)

    return loss


LOSSES: dict[str, Loss] = {
    "scores, gram": _attention(scores_loss, route="gram"),
    "scores, rows": _attention(scores_loss, route="rows"),
    "scores, causal": _attention(scores_loss, causal=True),
    "probabilities": _attention(probabilities_loss),
    "probabilities, mse": _attention(probabilities_loss, divergence="mse", causal=True),
    "relations": _attention(relations_loss, relation_heads=2),
    "hidden states": _hidden("mse"),
    "hidden states, cosine": _hidden("cosine"),
}
MAPS = [name for name in LOSSES if not name.startswith("hidden")]
