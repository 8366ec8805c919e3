"""The difference between two models' attention scores as a product of two thin matrices.

    E = S_s - S_t = scaling_s · X Yᵀ

in chunks of rows, in the type that is computed in, padding replaced by zeros. With equal head_dims,
and r = scaling_t / scaling_s,

    X = [Q_s - r Q_t, r Q_t],   Y = [K_s, K_s - K_t]

side by side along the head dimension. Every product in X Yᵀ, and in the Gram matrices made of X and
Y, is then as small as the difference between the models: near convergence nothing cancels, and
float32 is enough. With different head_dims there is no difference to take, and the factors are
``X = [Q_s, r Q_t]`` and ``Y = [K_s, -K_t]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_distill.losses.attention import AttentionInputs, compute_dtype
from hf_distill.losses.chunks import Group, fill_padding, part, shared_heads


@dataclass(frozen=True)
class Factors:
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
    def of(cls, query: Tensor, key: Tensor, scaling: float, teacher: AttentionInputs) -> Factors:
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

    def student_query(self, x: Tensor) -> Tensor:
        """Q_s, padding replaced by zeros, from X (or from its Gram matrix, what it becomes)."""
        left, right = x[..., : self.head_dim], x[..., self.head_dim :]
        return left + right if self.comparable else left

    def student_key(self, y: Tensor) -> Tensor:
        """K_s, padding replaced by zeros, from Y (or from its Gram matrix, what it becomes)."""
        return y[..., : self.head_dim]

    def _empty(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor = like.new_empty((*like.shape[:-1], self.width), dtype=self.dtype)
        return factor[..., : self.head_dim], factor[..., self.head_dim :], factor
