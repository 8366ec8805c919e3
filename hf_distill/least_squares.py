"""Ridge regression on sums: the data streams past, and nothing grows with its length."""

from __future__ import annotations

import torch
from torch import Tensor


class LeastSquares:
    r"""The linear map :math:`W x + b` that comes nearest to :math:`y` on all rows that were added.

    .. math:: W = Y_c^\top X_c \, (X_c^\top X_c + \lambda \, \bar{d} \, I)^{-1}, \qquad
              b = \bar{y} - W \bar{x}

    where the index c means "minus the mean" and :math:`\bar{d}` is the mean of the diagonal of
    :math:`X_c^\top X_c`. Only sums of products are kept, in float64.
    """

    def __init__(self) -> None:
        self.rows: float = 0
        """Rows that were added."""
        self._x: Tensor | None = None
        """``(inputs + 1, inputs + 1)``: products of the inputs and a column of ones."""
        self._y: Tensor | None = None
        """``(inputs + 1, outputs)``."""

    def add(self, x: Tensor, y: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add rows: inputs ``(rows, inputs)`` and what they are to be mapped to.

        Args:
            x: ``(rows, inputs)``.
            y: ``(rows, outputs)``.
            weight: how often each of these rows counts: a number, or one for each, ``(rows, 1)``.
        """
        x, y = as_float64(x), as_float64(y)
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        weighted = weight * x
        products = weighted.mT @ x, weighted.mT @ y
        self._x = products[0] if self._x is None else self._x + products[0]
        self._y = products[1] if self._y is None else self._y + products[1]
        self.rows += float(weighted[:, -1].sum())

    def solve(self, ridge: float, *, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Return weight ``(outputs, inputs)`` and bias ``(outputs,)``, float64 on the CPU.

        Args:
            ridge: λ, above 0; small values reproduce a map that exists exactly.
            intercept: without it the bias is 0, and no mean is subtracted in the formula.

        Raises:
            ValueError: no row was added, or a value is NaN or infinite.
        """
        if self._x is None or self._y is None or self.rows == 0:
            raise ValueError("no row was added: add more data.")
        sums, products = self._x.cpu(), self._y.cpu()
        if not (torch.isfinite(sums).all() and torch.isfinite(products).all()):
            raise ValueError("a value is NaN or infinite.")
        mean_x, mean_y = sums[-1, :-1] / self.rows, products[-1] / self.rows
        if not intercept:
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        xx = sums[:-1, :-1] - self.rows * mean_x[:, None] * mean_x
        xy = products[:-1] - self.rows * mean_x[:, None] * mean_y
        damping = ridge * xx.diagonal().mean()
        xx.diagonal().add_(damping.clamp(min=torch.finfo(xx.dtype).tiny))
        weight = torch.cholesky_solve(xy, torch.linalg.cholesky(xx)).mT
        return weight, mean_y - weight @ mean_x


def as_float64(values: Tensor) -> Tensor:
    """Return values in float64, without gradient, on the CPU where their device has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).detach().double()
