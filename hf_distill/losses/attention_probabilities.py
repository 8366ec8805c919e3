"""The losses between attention probabilities: of Q and K, of Q-Q, K-K and V-V, or of full maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs, check_inputs, check_maps
from hf_distill.losses.attention_rows import Compare, Hide, Rows, loss_over_rows
from hf_distill.losses.chunks import Pairs

_HIDDEN = -1e30
"""The score of a hidden pair: finite, so that a row without any visible key has no NaN."""


def probabilities_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    *,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    causal: bool = False,
    pair_mask: Tensor | None = None,
    divergence: str = "kl_div",
) -> Tensor:
    """``Σ KL(P_t ‖ P_s)`` or ``Σ (P_s - P_t)²`` with ``P = softmax(scaling · Q Kᵀ + bias)``.

    The softmax is over the valid and visible keys of a query, before any dropout. Sum over the
    batch and the valid queries ("kl_div"), over all visible pairs ("mse"); mean over heads. A query
    that sees no key counts 0.

    The gradient with respect to the student's scores is ``(P_s - P_t) / heads`` for "kl_div"; see
    ``loss_over_rows``.

    Arguments and rules are those of the module ``attention``. Student and teacher need as many
    heads; another head_dim is fine. ``value`` is not used. ``divergence`` is "kl_div" or "mse".

    Raises:
        ValueError: the inputs do not fit together, the numbers of heads differ, or ``divergence``
            is unknown.
    """
    pairs = Pairs(token_mask, key_mask, causal, pair_mask)
    check_inputs(student, teacher, pairs)
    check_maps(student, teacher, pairs)
    if divergence not in _DIVERGENCES:
        raise ValueError(
            f"divergence must be one of {', '.join(_DIVERGENCES)}, but it is {divergence!r}."
        )
    return loss_over_rows(student, teacher, pairs, _over_softmax(_DIVERGENCES[divergence]))


def relations_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    *,
    relation_heads: int,
    token_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    causal: bool = False,
    pair_mask: Tensor | None = None,
) -> Tensor:
    """``Σ KL(R_t ‖ R_s)`` with ``R = softmax(X Xᵀ / √d_r)`` for X = Q, K and V (MiniLMv2).

    Each of Q, K and V has its heads put side by side and is split again in ``relation_heads`` heads
    of d_r, of its own width on each side, so that neither head counts nor widths must agree. Sum
    over the batch and the valid tokens, mean over relation heads and over the three kinds. Wang et
    al. 2021, *MiniLMv2: Multi-Head Self-Attention Relation Distillation*, section 3.1. They compare
    one layer of the teacher only, with 48 relation heads for BERT-base and 64 for BERT-large.

    Under grouped-query attention K and V are compared as they are, narrower than Q. ``scaling`` and
    ``bias`` are not used. Arguments and rules are those of the module ``attention``;
    ``relation_heads`` divides the widths (heads · head_dim) of Q, K and V of both. Where
    ``pair_mask`` differs between heads, those tokens are related that any head relates.

    Raises:
        ValueError: ``relation_heads`` does not divide a width, the inputs do not fit together, or
            there are not as many queries as keys.
    """
    if pair_mask is not None and pair_mask.shape[1] > 1:
        pair_mask = pair_mask.any(dim=1, keepdim=True)
    pairs = Pairs(token_mask, key_mask, causal, pair_mask)
    check_inputs(student, teacher, pairs)
    if student.query.shape[2] != student.key.shape[2]:
        raise ValueError(
            f"Relations are those of self-attention, but {student.query.shape[2]} queries see "
            f"{student.key.shape[2]} keys; choose attention_loss='scores' or 'probabilities'."
        )
    losses = []
    for name in ("query", "key", "value"):
        sides = (
            _relation(getattr(student, name), relation_heads, f"student.{name}"),
            _relation(getattr(teacher, name), relation_heads, f"teacher.{name}"),
        )
        losses.append(loss_over_rows(*sides, pairs, _over_softmax(_kl_div)))
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


def attention_maps_loss(
    student: Tensor, teacher: Tensor, *, token_mask: Tensor | None = None, divergence: str
) -> Tensor:
    r"""Compare attention probabilities that models computed in full.

    ``kl_div``: :math:`\sum_q \frac{1}{H} \sum_h KL(A^T_{hq} \| A^S_{hq})`; ``mse``:
    :math:`\sum_{qk} \frac{1}{H} \sum_h (A^S_{hqk} - A^T_{hqk})^2`, over valid queries q and keys k.

    Args:
        student: ``(batch, heads, length, length)``, probabilities.
        teacher: the same.
        token_mask: bool, ``(batch, length)``: False is padding.
        divergence: ``kl_div`` or ``mse``.

    Raises:
        ValueError: the numbers of heads differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's attention maps have the shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}; set attention_loss_weight=0."
        )
    ours, theirs = student.float(), teacher.detach().float()
    if token_mask is not None:
        padding = ~(token_mask[:, None, :, None] & token_mask[:, None, None, :])
        ours, theirs = ours.masked_fill(padding, 0.0), theirs.masked_fill(padding, 0.0)
    if divergence == "mse":
        return (ours - theirs).square().sum() / student.shape[1]
    # Dropout leaves zeros in both; the smallest normal number stands for them in the logarithm.
    smallest = torch.finfo(torch.float32).tiny
    logs = theirs.clamp(min=smallest).log() - ours.clamp(min=smallest).log()
    return (theirs * logs).sum() / student.shape[1]


Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores of student and teacher, ``(…, rows, keys)``, to the summed loss and to ∂loss/∂S_s.

It owns its arguments and may overwrite them.
"""


def _kl_div(scores: Tensor, teacher_scores: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ KL(P_t ‖ P_s)``."""
    log_q, log_p = scores.log_softmax(dim=-1), teacher_scores.log_softmax(dim=-1)
    p = torch.exp(log_p, out=teacher_scores)
    log_p -= log_q
    loss = torch.dot(p.view(-1), log_p.view(-1))
    return loss, log_q.exp_().sub_(p)


def _mse(scores: Tensor, teacher_scores: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ (P_s - P_t)²``."""
    q, p = scores.softmax(dim=-1), teacher_scores.softmax(dim=-1)
    difference = torch.sub(q, p, out=p)
    loss = torch.dot(difference.view(-1), difference.view(-1))
    slope = difference.mul_(q)
    return loss, slope.addcmul_(q, slope.sum(dim=-1, keepdim=True), value=-1.0).mul_(2.0)


_DIVERGENCES: dict[str, Divergence] = {"kl_div": _kl_div, "mse": _mse}
"""By the name that ``probabilities_loss`` takes."""


def _over_softmax(divergence: Divergence) -> Compare:
    def compare(student: Rows, teacher: Rows, hide: Hide) -> tuple[Tensor, Tensor]:
        # The same scores on both sides where a pair is hidden, so that it counts 0.
        return divergence(*(hide(rows.scores(), _HIDDEN) for rows in (student, teacher)))

    return compare
