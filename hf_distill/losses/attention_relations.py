"""The loss between self-attention relations: for layers whose heads or widths differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs, check_inputs
from hf_distill.losses.attention_probabilities import kl_div, softmax_loss
from hf_distill.losses.chunks import Pairs


def relations_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    *,
    relation_heads: int,
    token_mask: Tensor | None = None,
    causal: bool = False,
    pair_mask: Tensor | None = None,
) -> Tensor:
    """``Σ KL(R_t ‖ R_s)`` with ``R = softmax(X Xᵀ / √d_r)`` for X = Q, K and V (MiniLMv2).

    Each of Q, K and V has its heads put side by side and is split again in ``relation_heads`` heads
    of d_r, of its own width on each side, so that neither head counts nor widths must agree. Sum
    over the batch and the valid tokens, mean over relation heads and over the three kinds. Wang et
    al. 2021, *MiniLMv2: Multi-Head Self-Attention Relation Distillation*, section 3.1. They compare
    one layer of the teacher only, with 48 relation heads for BERT-base and 64 for BERT-large.

    Under grouped-query attention K and V are compared as they are, narrower than Q. ``scaling`` is
    not used.

    Args:
        student: of any widths.
        teacher: of any widths; its tensors get no gradient.
        relation_heads: how many; it divides the widths (heads · head_dim) of Q, K and V of both.
        token_mask: see the module ``attention``.
        causal: a token is related to no later one.
        pair_mask: which token is related to which, if not to all; where it differs between heads,
            those are related that any head relates.

    Returns:
        A 0-dim tensor, float32 or float64.

    Raises:
        ValueError: if ``relation_heads`` does not divide a width, or the inputs do not fit
            together.
    """
    check_inputs(student, teacher, token_mask)
    if pair_mask is not None and pair_mask.shape[1] > 1:
        pair_mask = pair_mask.any(dim=1, keepdim=True)
    losses = []
    for name in ("query", "key", "value"):
        sides = (
            _relation(getattr(student, name), relation_heads, f"student.{name}"),
            _relation(getattr(teacher, name), relation_heads, f"teacher.{name}"),
        )
        losses.append(softmax_loss(*sides, token_mask, Pairs(causal, pair_mask), kl_div))
    return torch.stack(losses).mean()


def _relation(tensor: Tensor, relation_heads: int, name: str) -> AttentionInputs:
    width = tensor.shape[1] * tensor.shape[3]
    if relation_heads < 1 or width % relation_heads:
        raise ValueError(
            f"relation_heads must divide the width of {name}, {width}, but it is {relation_heads}."
        )
    joined = tensor.transpose(1, 2).flatten(2)
    split = joined.unflatten(2, (relation_heads, -1)).transpose(1, 2)
    return AttentionInputs(split, split, split, 1 / math.sqrt(split.shape[3]))
