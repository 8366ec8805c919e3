"""The loss between attention scores before the softmax: TinyBERT's, by the cheaper exact route."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs, check_inputs, check_maps
from hf_distill.losses.attention_factors import Factors
from hf_distill.losses.attention_gram import gram_scores_loss
from hf_distill.losses.chunks import (
    Pairs,
    chunks,
    empty_gradient,
    groups,
    store,
    wants_gradient,
    with_gradients,
)

ROUTES = ("auto", "gram", "rows")

_PER_PAIR = {"cpu": 100.0}
_PER_FACTOR_ENTRY = {"cpu": 400.0}
"""What passes over memory cost in ``faster_route``, as multiplications and additions that the
processor does meanwhile: for a pair of tokens, and for an entry of X and Y. Measured on a CPU with
AVX-512; see benchmarks/attention_kernels.py."""

_PER_PAIR_ELSEWHERE = 400.0
_PER_FACTOR_ENTRY_ELSEWHERE = 500.0
"""The same for a GPU, from its data sheet: about 20 float32 operations for a byte of memory."""


def scores_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    *,
    token_mask: Tensor | None = None,
    causal: bool = False,
    pair_mask: Tensor | None = None,
    route: str = "auto",
) -> Tensor:
    """``Σ (S_s - S_t)²`` with ``S = scaling · Q Kᵀ``: attention scores before the softmax.

    Sum over the batch and all visible pairs of a valid query and a valid key, mean over heads. This
    is the attention loss of TinyBERT (Jiao et al. 2020, section 3.1, equation 7), whose code leaves
    out padded keys, but not padded queries.

    The gradients with respect to the student's Q and K are ``2 scaling_s E K_s / heads`` and
    ``2 scaling_s Eᵀ Q_s / heads``, where E is S_s - S_t in visible pairs and 0 elsewhere. They are
    right to about 1e-6 however close the student has come to the teacher; where Q and K differ and
    only the scores are close (to 0.1 %), to 1e-3.

    The routes compute the same:

    - "gram" takes time linear in the length, but needs all pairs to be visible. It is computed
      again in the backward pass, from references to Q and K.
    - "rows" computes attention maps in chunks of rows and takes any pairs. It keeps its gradients,
      in float32 (float64), for the backward pass.
    - "auto" is "rows" with ``causal`` or ``pair_mask``, else what ``faster_route`` says.

    Args:
        student: as many heads as the teacher; another head_dim is fine.
        teacher: its tensors get no gradient. ``value`` is not used, on both sides.
        token_mask: see the module ``attention``, as for the next two.
        causal: a query sees no later key.
        pair_mask: which key a query sees.
        route: "auto", "gram" or "rows".

    Returns:
        A 0-dim tensor, float32 or float64.

    Raises:
        ValueError: if the inputs do not fit together, the numbers of heads differ, ``route`` is
            unknown, or "gram" is asked for where not all pairs are visible.
    """
    check_inputs(student, teacher, token_mask)
    check_maps(student, teacher, pair_mask)
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, but it is {route!r}.")
    partial = causal or pair_mask is not None
    if route == "gram" and partial:
        raise ValueError(
            "route='gram' needs all pairs to be visible; with causal or pair_mask choose "
            "route='rows' or 'auto'."
        )
    if route == "auto" and not partial:
        query = student.query
        route = faster_route(
            query.shape[2], query.shape[3], teacher.query.shape[3], query.device.type
        )
    if route == "gram":
        return gram_scores_loss(student, teacher, token_mask)
    return _by_rows(student, teacher, token_mask, Pairs(causal, pair_mask))


def faster_route(
    length: int, student_head_dim: int, teacher_head_dim: int, device_type: str = "cpu"
) -> str:
    """The route of ``scores_loss`` that takes less time where all pairs are visible.

    Counts multiplications and additions, forward and backward, and adds what passes over memory
    cost. The type of the inputs does not matter: all is computed in float32. About 220 tokens are
    where "gram" begins to win on a CPU with head_dims of 64, 130 with 32.

    Args:
        length: tokens of a sample, padding included.
        student_head_dim: of Q and K.
        teacher_head_dim: of Q and K.
        device_type: "cpu", "cuda", …

    Returns:
        "gram" or "rows".
    """
    s, t = student_head_dim, teacher_head_dim
    width = s + t
    factor = _PER_FACTOR_ENTRY.get(device_type, _PER_FACTOR_ENTRY_ELSEWHERE)
    pair = _PER_PAIR.get(device_type, _PER_PAIR_ELSEWHERE)
    gram = 4 * (s * s + s * t + t * t) + 4 * width * s + factor * width
    rows = length * (2 * width + 4 * s + pair)
    return "gram" if gram < rows else "rows"


def _by_rows(
    student: AttentionInputs, teacher: AttentionInputs, token_mask: Tensor | None, pairs: Pairs
) -> Tensor:
    gradients = wants_gradient(student.query, student.key)
    query, key = student.query.detach(), student.key.detach()
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        factors = Factors.of(query, key, student.scaling, teacher)
        dtype, scale = factors.dtype, student.scaling**2 / factors.heads
        found = groups(token_mask, query.shape[0], query.shape[2], query.device)
        of_query = empty_gradient(query, found, dtype) if gradients else None
        of_key = empty_gradient(key, found, dtype) if gradients else None
        loss = torch.zeros((), dtype=dtype, device=query.device)
        for group in found:
            whole = slice(0, group.length)
            y = factors.y(group, whole)
            k = factors.student_key(y)
            key_gradient = torch.zeros_like(k) if gradients else None
            for rows in chunks(group, factors.heads * group.length, query.device):
                x = factors.x(group, rows)
                keys = pairs.keys(group, rows)
                error = torch.bmm(x, y[:, keys].transpose(1, 2))
                pairs.hide(error, group, rows, 0.0)
                loss += torch.dot(error.view(-1), error.view(-1))
                if of_query is None or key_gradient is None:
                    continue
                store(of_query, group, rows, torch.bmm(error, k[:, keys]).mul_(2 * scale))
                key_gradient[:, keys].baddbmm_(error.transpose(1, 2), factors.student_query(x))
            if of_key is not None and key_gradient is not None:
                store(of_key, group, whole, key_gradient.mul_(2 * scale))
        loss *= scale
    if of_query is None or of_key is None:
        return loss
    return with_gradients(loss, (student.query, of_query), (student.key, of_key))
