"""The losses between attention probabilities: of Q and K, of Q-Q, K-K and V-V, or of full maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_distill.losses.attention import (
    AttentionInputs,
    check_inputs,
    check_maps,
    compute_dtype,
)
from hf_distill.losses.chunks import (
    Group,
    Pairs,
    chunks,
    empty_gradient,
    fill_padding,
    groups,
    part,
    shared_heads,
    store,
    wants_gradient,
    with_gradients,
)

_HIDDEN = -1e30
"""The score of a hidden pair: finite, so that a row without any visible key has no NaN."""


def probabilities_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    *,
    token_mask: Tensor | None = None,
    causal: bool = False,
    pair_mask: Tensor | None = None,
    divergence: str = "kl_div",
) -> Tensor:
    """``Σ KL(P_t ‖ P_s)`` or ``Σ (P_s - P_t)²`` with ``P = softmax(scaling · Q Kᵀ)``.

    The softmax is over the valid and visible keys of a query, before any dropout. Sum over the
    batch and the valid queries ("kl_div"), over all visible pairs ("mse"); mean over heads. A query
    that sees no key counts 0.

    With G = ∂loss/∂S, which is ``(P_s - P_t) / heads`` for "kl_div", the gradients with respect to
    the student's Q and K are ``scaling_s G K_s`` and ``scaling_s Gᵀ Q_s``. They are computed with
    the loss, chunk by chunk, and kept in float32 (float64) until the backward pass.

    Arguments and rules are those of the module ``attention``. Student and teacher need as many
    heads; another head_dim is fine. ``value`` is not used. ``divergence`` is "kl_div" or "mse".

    Raises:
        ValueError: the inputs do not fit together, the numbers of heads differ, or ``divergence``
            is unknown.
    """
    check_inputs(student, teacher, token_mask)
    check_maps(student, teacher, pair_mask)
    if divergence not in _DIVERGENCES:
        raise ValueError(
            f"divergence must be one of {', '.join(_DIVERGENCES)}, but it is {divergence!r}."
        )
    return _softmax_loss(
        student, teacher, token_mask, Pairs(causal, pair_mask), _DIVERGENCES[divergence]
    )


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
    not used. Arguments and rules are those of the module ``attention``; ``relation_heads`` divides
    the widths (heads · head_dim) of Q, K and V of both. Where ``pair_mask`` differs between heads,
    those tokens are related that any head relates.

    Raises:
        ValueError: ``relation_heads`` does not divide a width, or the inputs do not fit together.
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
        losses.append(_softmax_loss(*sides, token_mask, Pairs(causal, pair_mask), _kl_div))
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


def _softmax_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    token_mask: Tensor | None,
    pairs: Pairs,
    divergence: Divergence,
) -> Tensor:
    """The sum over rows, mean over heads, of a divergence between attention probabilities.

    The student's query and key may be the same tensor.
    """
    gradients = wants_gradient(student.query, student.key)
    with torch.no_grad(), torch.autocast(student.query.device.type, enabled=False):
        loss, of_query, of_key = _loss_and_gradients(
            student, teacher, token_mask, pairs, divergence, gradients
        )
    if of_query is None or of_key is None:
        return loss
    if student.query is student.key:
        return with_gradients(loss, (student.query, of_query.add_(of_key)))
    return with_gradients(loss, (student.query, of_query), (student.key, of_key))


def _loss_and_gradients(
    student: AttentionInputs,
    teacher: AttentionInputs,
    token_mask: Tensor | None,
    pairs: Pairs,
    divergence: Divergence,
    gradients: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    query, key = student.query, student.key
    batch, heads, length, _ = query.shape
    dtype = compute_dtype(query, key, teacher.query, teacher.key)
    found = groups(token_mask, batch, length, query.device)
    of_query = empty_gradient(query, found, dtype) if gradients else None
    of_key = empty_gradient(key, found, dtype) if gradients else None
    loss = torch.zeros((), dtype=dtype, device=query.device)
    for group in found:
        whole = slice(0, group.length)
        k = _clean(key, group, whole, heads, dtype)
        teacher_k = _clean(teacher.key, group, whole, heads, dtype)
        key_gradient = torch.zeros_like(k) if gradients else None
        for rows in chunks(group, heads * group.length, query.device):
            keys = pairs.keys(group, rows)
            q = _clean(query, group, rows, heads, dtype).mul_(student.scaling)
            teacher_q = _clean(teacher.query, group, rows, heads, dtype).mul_(teacher.scaling)
            maps = []
            for a, b in ((q, k), (teacher_q, teacher_k)):
                scores = torch.bmm(a, b[:, keys].transpose(1, 2))
                _hide(scores, group, rows, pairs)
                maps.append(scores)
            term, slope = divergence(*maps)
            loss += term / heads
            if of_query is None or key_gradient is None:
                continue
            slope *= 1 / heads
            gradient = torch.bmm(slope, k[:, keys]).mul_(student.scaling)
            store(of_query, group, rows, gradient)
            key_gradient[:, keys].baddbmm_(slope.transpose(1, 2), q)
        if of_key is not None and key_gradient is not None:
            store(of_key, group, whole, key_gradient)
    return loss, of_query, of_key


def _clean(tensor: Tensor, group: Group, rows: slice, heads: int, dtype: torch.dtype) -> Tensor:
    """A copy of some rows, ``(samples · heads, rows, head_dim)``, with zeros for padding."""
    copy = shared_heads(part(tensor, group, rows), heads).to(
        dtype, copy=True, memory_format=torch.contiguous_format
    )
    return fill_padding(copy, group, rows).flatten(0, 1)


def _hide(scores: Tensor, group: Group, rows: slice, pairs: Pairs) -> None:
    """Give hidden pairs the same score on both sides.

    Padded queries, zeros on both sides, have the same probabilities anyway: they count 0.
    """
    pairs.hide(scores, group, rows, _HIDDEN)
    if group.padding is not None:
        keys = pairs.keys(group, rows)
        by_sample = scores.unflatten(0, (group.padding.shape[0], -1))
        by_sample.masked_fill_(group.padding[:, :, keys].transpose(2, 3), _HIDDEN)
