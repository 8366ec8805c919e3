"""Regressions that correct a first guess: of linear maps, and of the scales and shifts of norms.

With little data little changes, and a student as large as its teacher is its teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_distill.least_squares import LeastSquares

RIDGE = 0.1


class Ridge:
    """A linear map between states that corrects a first guess."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight.double()
        self._bias = self._weight.new_zeros(len(weight)) if bias is None else bias.double()
        self._squares = LeastSquares()

    def add(self, x: Tensor, y: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add rows."""
        x, y = x.double(), y.double()
        self._squares.add(x, y - x @ self._weight.T - self._bias, weight)

    def solve(self, *, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Return weight and bias; without an intercept the bias is that of the guess."""
        weight, bias = self._squares.solve(RIDGE, intercept=intercept)
        return self._weight + weight, self._bias + bias

    @property
    def rows(self) -> float:
        """The weight of the rows that were added."""
        return self._squares.rows


class NormFit:
    """Scale and shift of each unit of a norm, by a regression on what it normalises to."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm
        self._norm.weight.fill_(1.0)
        if getattr(norm, "bias", None) is not None:
            self._norm.bias.zero_()
        self._rows, self._sums = 0, torch.zeros(4, dtype=torch.float64)

    def add(self, total: Tensor, target: Tensor) -> None:
        """Add rows of sums, and of what the norm should make of them."""
        weight = self._norm.weight
        x, y = self._norm(total.to(weight.dtype)).double(), target.double()
        sums = torch.stack([x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)])
        self._sums = sums if self._sums.dim() == 1 else self._sums + sums
        self._rows += len(x)

    def write(self) -> None:
        """Write scale and shift to the norm."""
        x, y, xx, xy = self._sums / self._rows
        has_bias = getattr(self._norm, "bias", None) is not None
        if has_bias:
            scale = (xy - x * y) / (xx - x * x).clamp(min=1e-12)
            self._norm.bias.copy_(y - scale * x)
        else:
            scale = xy / xx.clamp(min=1e-12)
        self._norm.weight.copy_(scale)
