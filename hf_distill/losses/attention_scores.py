"""The loss between attention scores before the softmax: TinyBERT's, by the cheaper exact route.

The difference between two models' scores is a product of two thin matrices,

    E = S_s - S_t = scaling_s · X Yᵀ

made in chunks of rows, in the type that is computed in, padding replaced by zeros. With equal
head_dims, and r = scaling_t / scaling_s,

    X = [Q_s - r Q_t, r Q_t],   Y = [K_s, K_s - K_t]

side by side along the head dimension. Every product in X Yᵀ, and in the Gram matrices made of X and
Y, is then as small as the difference between the models: near convergence nothing cancels, and
float32 is enough. With different head_dims there is no difference to take, and the factors are
``X = [Q_s, r Q_t]`` and ``Y = [K_s, -K_t]``.

Over all pairs of valid tokens no attention map is needed, and time is linear in the length:

    ‖X Yᵀ‖² = ⟨XᵀX, YᵀY⟩,   X Yᵀ K_s = X (Yᵀ K_s),   Y Xᵀ Q_s = Y (Xᵀ Q_s)

where everything in brackets has the size head_dim × head_dim or twice that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs, check_inputs, check_maps, compute_dtype
from hf_distill.losses.attention_rows import Hide, Rows, loss_over_rows
from hf_distill.losses.chunks import (
    Group,
    Pairs,
    chunks,
    empty_gradient,
    fill_padding,
    part,
    refuse_second_order,
    shared_heads,
    store,
)

ROUTES = ("auto", "gram", "rows")

_CANCELLED = 1e-4
"""The share of its positive terms below which a float32 sum has lost its digits."""

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
    key_mask: Tensor | None = None,
    causal: bool = False,
    pair_mask: Tensor | None = None,
    route: str = "auto",
) -> Tensor:
    """``Σ (S_s - S_t)²`` with ``S = scaling · Q Kᵀ + bias``: attention scores before the softmax.

    Sum over the batch and all visible pairs of a valid query and a valid key, mean over heads. This
    is the attention loss of TinyBERT (Jiao et al. 2020, section 3.1, equation 7), whose code leaves
    out padded keys, but not padded queries.

    The gradients with respect to the student's Q and K are ``2 scaling_s E K_s / heads`` and
    ``2 scaling_s Eᵀ Q_s / heads``, where E is S_s - S_t in visible pairs and 0 elsewhere. They are
    right to about 1e-6 however close the student has come to the teacher; where Q and K differ and
    only the scores are close (to 0.1 %), to 1e-3.

    The routes compute the same:

    - "gram" takes time linear in the length, but needs all pairs to be visible, and no bias. It is
      computed again in the backward pass, from references to Q and K.
    - "rows" computes attention maps in chunks of rows and takes any pairs. It keeps its gradients,
      in float32 (float64), for the backward pass.
    - "auto" is "rows" with ``causal``, ``pair_mask`` or a bias, else what ``faster_route`` says.

    Other arguments and rules are those of the module ``attention``. Student and teacher need as
    many heads; another head_dim is fine. ``value`` is not used.

    Raises:
        ValueError: the inputs do not fit together, the numbers of heads differ, ``route`` is
            unknown, or "gram" is asked for where not all pairs are visible.
    """
    pairs = Pairs(token_mask, key_mask, causal, pair_mask)
    check_inputs(student, teacher, pairs)
    check_maps(student, teacher, pairs)
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, but it is {route!r}.")
    biased = student.bias is not None or teacher.bias is not None
    partial = causal or pair_mask is not None or biased
    if route == "gram" and partial:
        raise ValueError(
            "route='gram' needs all pairs to be visible and scores without bias; with causal, "
            "pair_mask or a bias choose route='rows' or 'auto'."
        )
    if route == "auto" and not partial:
        query, keys = student.query, student.key.shape[2]
        # The harmonic mean: rows take queries · keys, and gram queries + keys.
        length = 2 * query.shape[2] * keys // max(query.shape[2] + keys, 1)
        route = faster_route(length, query.shape[3], teacher.query.shape[3], query.device.type)
    if route == "gram":
        return _by_gram(student, teacher, pairs)
    return loss_over_rows(student, teacher, pairs, _difference)


def faster_route(
    length: int, student_head_dim: int, teacher_head_dim: int, device_type: str = "cpu"
) -> str:
    """Return the route, "gram" or "rows", that takes less time where all pairs are visible.

    Counts multiplications and additions, forward and backward, and adds what passes over memory
    cost. The type of the inputs does not matter: all is computed in float32. About 220 tokens are
    where "gram" begins to win on a CPU with head_dims of 64, 130 with 32.

    Args:
        length: tokens of a sample, padding included.
        student_head_dim: of Q and K.
        teacher_head_dim: of Q and K.
        device_type: "cpu", "cuda", …
    """
    s, t = student_head_dim, teacher_head_dim
    width = s + t
    factor = _PER_FACTOR_ENTRY.get(device_type, _PER_FACTOR_ENTRY_ELSEWHERE)
    pair = _PER_PAIR.get(device_type, _PER_PAIR_ELSEWHERE)
    gram = 4 * (s * s + s * t + t * t) + 4 * width * s + factor * width
    rows = length * (2 * width + 4 * s + pair)
    return "gram" if gram < rows else "rows"


def _difference(student: Rows, teacher: Rows, hide: Hide) -> tuple[Tensor, Tensor]:
    """``Σ E²`` and ``2 E``, without differences of large numbers where head_dims are equal."""
    if student.key.shape[2] == teacher.key.shape[2]:
        error = torch.bmm(student.query - teacher.query, student.key.mT)
        error.baddbmm_(teacher.query, (student.key - teacher.key).mT)
    else:
        error = torch.bmm(student.query, student.key.mT)
        error.baddbmm_(teacher.query, teacher.key.mT, alpha=-1)
    if student.bias is not None and teacher.bias is not None:
        error += student.bias - teacher.bias
    elif student.bias is not None:
        error += student.bias
    elif teacher.bias is not None:
        error -= teacher.bias
    hide(error, 0.0)
    return torch.dot(error.view(-1), error.view(-1)), error.mul_(2.0)


def _by_gram(student: AttentionInputs, teacher: AttentionInputs, pairs: Pairs) -> Tensor:
    """``scores_loss`` where all pairs of valid tokens are visible.

    Kept for the backward pass are references to Q and K of both sides and two blocks a head.

    The sum ``⟨XᵀX, YᵀY⟩`` has positive terms and terms of any sign. They cancel where student and
    teacher have nearly the same scores from different Q and K (rotated, or of another head_dim).
    A CPU then repeats the sample in float64. Other devices, which would have to stop for that,
    go on in float32: with scores within 0.1 % of the teacher's, the gradient is right to 1e-3,
    while the loss, never below 0, is not.
    """
    loss: Tensor = _Gram.apply(student.query, student.key, student.scaling, teacher, pairs)
    return loss


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scaling: float,
        teacher: AttentionInputs,
        pairs: Pairs,
    ) -> Tensor:
        factors = _Factors.of(query, key, scaling, teacher)
        found = pairs.groups(query, key)
        loss = torch.zeros((), dtype=factors.dtype, device=query.device)
        blocks: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for queries, keys in found:
                term, *products = _loss_and_products(factors, queries, keys)
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
        of_query = empty_gradient(query, [queries for queries, _ in ctx.groups])
        of_key = empty_gradient(key, [keys for _, keys in ctx.groups])
        scale = grad_output * (2 * ctx.scale)
        products = zip(ctx.groups, blocks[::2], blocks[1::2], strict=True)
        with torch.autocast(query.device.type, enabled=False):
            for (queries, keys), x_query, y_key in products:
                factors = replace(ctx.factors, query=query, key=key, dtype=x_query.dtype)
                x_query, y_key = x_query * scale, y_key * scale
                for rows in _chunks(factors, queries):
                    store(of_query, queries, rows, torch.bmm(factors.x(queries, rows), y_key))
                for rows in _chunks(factors, keys):
                    store(of_key, keys, rows, torch.bmm(factors.y(keys, rows), x_query))
        return of_query, of_key, None, None, None


def _loss_and_products(
    factors: _Factors, queries: Group, keys: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """``‖X Yᵀ‖²``, ``Xᵀ Q_s`` and ``Yᵀ K_s``."""
    of_x, of_y = _gram(factors, factors.x, queries), _gram(factors, factors.y, keys)
    inner = [torch.dot(a.view(-1), b.view(-1)) for a, b in zip(of_x, of_y, strict=True)]
    positive = inner[0] + inner[2]
    loss = positive + 2 * inner[1]
    can_repeat = factors.dtype == torch.float32 and factors.query.device.type == "cpu"
    if can_repeat and bool(loss < _CANCELLED * positive):
        return _loss_and_products(replace(factors, dtype=torch.float64), queries, keys)
    x_query = torch.cat([of_x[0], of_x[1].transpose(1, 2)], dim=1)
    if factors.comparable:
        x_query += torch.cat([of_x[1], of_x[2]], dim=1)
    y_key = torch.cat([of_y[0], of_y[1].transpose(1, 2)], dim=1)
    return loss.clamp(min=0.0), x_query, y_key


def _gram(
    factors: _Factors, factor: Callable[[Group, slice], Tensor], group: Group
) -> list[Tensor]:
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


def _chunks(factors: _Factors, group: Group) -> list[slice]:
    return list(chunks(group, factors.heads * factors.width, factors.query.device))


@dataclass(frozen=True)
class _Factors:
    """Makes X and Y, ``(samples · heads, rows, width)``, for rows of a group."""

    query: Tensor
    key: Tensor
    scaling: float
    teacher_query: Tensor
    teacher_key: Tensor
    teacher_scaling: float
    dtype: torch.dtype
    """What is computed in."""

    @classmethod
    def of(cls, query: Tensor, key: Tensor, scaling: float, teacher: AttentionInputs) -> _Factors:
        """In float32, or float64 if a side is."""
        others = (teacher.query, teacher.key)
        dtype = compute_dtype(query, key, *others)
        return cls(query, key, scaling, *others, teacher.scaling, dtype)

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.query.shape[1]

    @property
    def head_dim(self) -> int:
        """The student's."""
        return self.query.shape[3]

    @property
    def width(self) -> int:
        """Columns of X and Y: the student's head_dim and the teacher's."""
        return self.head_dim + self.teacher_query.shape[3]

    @property
    def comparable(self) -> bool:
        """Whether differences can be taken."""
        return 2 * self.head_dim == self.width

    def x(self, group: Group, rows: slice) -> Tensor:
        """X, of the queries."""
        query = part(self.query, group, rows)
        left, right, factor = self._empty(query)
        right.copy_(part(self.teacher_query, group, rows))
        ratio = self.teacher_scaling / self.scaling
        if ratio != 1.0:
            right.mul_(ratio)
        if self.comparable:
            torch.sub(query, right, out=left)
        else:
            left.copy_(query)
        return fill_padding(factor, group, rows).flatten(0, 1)

    def y(self, group: Group, rows: slice) -> Tensor:
        """Y, of the keys."""
        key = shared_heads(part(self.key, group, rows), self.heads)
        left, right, factor = self._empty(key)
        left.copy_(key)
        other = shared_heads(part(self.teacher_key, group, rows), self.heads)
        if self.comparable:
            torch.sub(left, other, out=right)
        else:
            right.copy_(other).neg_()
        return fill_padding(factor, group, rows).flatten(0, 1)

    def _empty(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor = like.new_empty((*like.shape[:-1], self.width), dtype=self.dtype)
        return factor[..., : self.head_dim], factor[..., self.head_dim :], factor
