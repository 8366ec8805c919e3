"""Ridge regression on sums, against NumPy's least squares and what follows from the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_distill.least_squares import LeastSquares


def data(rows: int = 300, inputs: int = 7, outputs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    x = x @ torch.diag(torch.linspace(0.1, 3.0, inputs, dtype=torch.float64)) + 4.0
    noise = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    return x, x[:, :outputs].sin() + noise


def fitted(x: torch.Tensor, y: torch.Tensor, ridge: float, size: int = 64) -> list[np.ndarray]:
    squares = LeastSquares()
    for part_x, part_y in zip(x.split(size), y.split(size), strict=True):
        squares.add(part_x, part_y)
    assert squares.rows == len(x)
    return [part.numpy() for part in squares.solve(ridge)]


def test_without_a_ridge_it_is_least_squares() -> None:
    x, y = data()
    ones = np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1)
    expected = np.linalg.lstsq(ones, y.numpy(), rcond=None)[0]
    weight, bias = fitted(x, y, ridge=1e-14)
    np.testing.assert_allclose(weight, expected[:-1].T, atol=1e-9)
    np.testing.assert_allclose(bias, expected[-1], atol=1e-9)


def test_a_ridge_is_rows_that_ask_for_zero() -> None:
    """The bias is left alone, so those rows are added to centred data."""
    x, y = (part.numpy() for part in data())
    centred = x - x.mean(0)
    damping = 0.3 * np.square(centred).sum(0).mean()
    rows = np.concatenate([centred, np.sqrt(damping) * np.eye(x.shape[1])])
    targets = np.concatenate([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    weight, bias = fitted(*data(), ridge=0.3)
    np.testing.assert_allclose(weight, expected, atol=1e-10)
    np.testing.assert_allclose(bias, y.mean(0) - expected @ x.mean(0), atol=1e-9)


def test_without_an_intercept_and_with_weights() -> None:
    x, y = data()
    squares = LeastSquares()
    squares.add(x[:100], y[:100], weight=3.0)
    squares.add(x[100:], y[100:])
    assert squares.rows == 500
    rows = np.concatenate([x[:100], x[:100], x[:100], x[100:]])
    targets = np.concatenate([y[:100], y[:100], y[:100], y[100:]])
    weight, bias = squares.solve(1e-14, intercept=False)
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    np.testing.assert_allclose(weight, expected, atol=1e-9)
    np.testing.assert_array_equal(bias, 0.0)
    by_row = LeastSquares()
    by_row.add(x, y, weight=torch.where(torch.arange(len(x)) < 100, 3.0, 1.0)[:, None])
    assert by_row.rows == 500
    np.testing.assert_allclose(by_row.solve(1e-14, intercept=False)[0], weight, atol=1e-9)


def test_how_the_rows_are_split_does_not_matter() -> None:
    whole, split = (fitted(*data(), ridge=1e-3, size=size) for size in (300, 1))
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_fewer_rows_than_inputs_and_constant_inputs_have_a_finite_answer() -> None:
    x, y = data(rows=3)
    weight, bias = fitted(x, y, ridge=1e-6)
    np.testing.assert_allclose(x.numpy() @ weight.T + bias, y.numpy(), atol=1e-3)
    weight, bias = fitted(torch.full((9, 4), 2.0), torch.ones(9, 2), ridge=1e-6)
    np.testing.assert_array_equal(weight, 0.0)
    np.testing.assert_allclose(bias, 1.0)


def test_nothing_and_nan_are_refused() -> None:
    squares = LeastSquares()
    with pytest.raises(ValueError, match="no row"):
        squares.solve(1e-3)
    squares.add(torch.full((2, 2), torch.nan), torch.ones(2, 2))
    with pytest.raises(ValueError, match="NaN"):
        squares.solve(1e-3)
