"""The loss between the probabilities of chunks, against float64 and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.losses import LOGITS_LOSSES, kl_div
from hf_distill.losses.aligned_chunks import binarised, chunk_sums, token_log_probs


def loss(student: Tensor, teacher: Tensor, temperature: float, name: str = "kl_div") -> Tensor:
    """As a training step computes it: per chunk, from log-probabilities."""
    sides = (binarised(side, temperature) for side in (student, teacher))
    return LOGITS_LOSSES[name](*sides, temperature=temperature) / temperature


def reference(student: float, teacher: float, temperature: float) -> float:
    """T KL between two coins, in float64."""
    q, p = math.exp(student / temperature), math.exp(teacher / temperature)
    return temperature * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


@given(st.floats(-60, -0.01), st.floats(-60, -0.01), st.sampled_from([0.5, 1.0, 2.0, 10.0, 100.0]))
def test_loss_is_that_of_two_coins(student: float, teacher: float, temperature: float) -> None:
    found = loss(torch.tensor([student]), torch.tensor([teacher]), temperature)
    expected = reference(student, teacher, temperature)
    assert found.item() == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("name", ["kl_div", "reverse_kl", "js_div", "skew_kl"])
def test_gradient_by_finite_differences(name: str) -> None:
    teacher = torch.tensor([-0.2, -3.0, -11.0, -0.01], dtype=torch.double)
    student = torch.tensor([-0.4, -2.0, -15.0, -0.05], dtype=torch.double, requires_grad=True)
    for temperature in (1.0, 3.0, 100.0):
        torch.autograd.gradcheck(lambda s, t=temperature: loss(s, teacher, t, name), student)


@pytest.mark.parametrize("name", ["kl_div", "reverse_kl", "js_div", "skew_kl"])
def test_equal_probabilities_have_no_loss_and_no_gradient(name: str) -> None:
    same = torch.tensor([-1e-9, 0.0, -0.3, -40.0, -500.0])
    student = same.clone().requires_grad_()
    losses = loss(student, same, 2.0, name)
    losses.sum().backward()
    # Those two add a mixture of both sides, equal to them up to rounding.
    rounding = 1e-6 if name in ("js_div", "skew_kl") else 0.0
    assert losses.tolist() == pytest.approx([0.0] * 5, rel=0, abs=rounding)
    assert student.grad is not None
    assert student.grad.tolist() == pytest.approx([0.0] * 5, rel=0, abs=rounding)


def test_limit_of_a_high_temperature_compares_surprisals() -> None:
    a, b = 7.0, 4.5
    found = loss(torch.tensor([-b], dtype=torch.double), torch.tensor([-a]).double(), 1e6)
    assert found.item() == pytest.approx(a * math.log(a / b) - a + b, rel=1e-5)


def test_what_is_certain_or_impossible_stays_finite() -> None:
    sides = torch.tensor([0.0, -1e-12, -math.inf, -0.5])
    student = sides.repeat_interleave(4).requires_grad_()
    losses = loss(student, sides.repeat(4), 1.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    assert binarised(torch.tensor([-1.0], dtype=torch.bfloat16), 2.0).dtype == torch.float32


def test_token_log_probs_are_those_of_the_softmax() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.manual_seed(0), dtype=torch.double) * 5
    ids = torch.randint(7, (2, 5), generator=torch.manual_seed(1))
    counts = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])
    broken = logits.masked_fill(~counts[..., None], math.nan).requires_grad_()
    found = token_log_probs(broken, ids.masked_fill(~counts, -100), counts)
    expected = np.log(np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True))
    for row, column in counts.nonzero().tolist():
        wanted = expected[row, column, ids[row, column]]
        assert found[row, column].item() == pytest.approx(wanted, abs=1e-12)
    assert found[~counts].tolist() == [0.0] * 3
    found.sum().backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()
    assert (broken.grad[~counts] == 0).all()


@given(st.lists(st.lists(st.integers(-1, 5), min_size=8, max_size=8), min_size=1, max_size=3))
def test_chunk_sums_add_up_what_belongs_together(chunks: list[list[int]]) -> None:
    values = torch.arange(8.0).repeat(len(chunks), 1) + 1
    found = chunk_sums(values, torch.tensor(chunks), 6)
    for row, numbers in enumerate(chunks):
        for chunk in range(6):
            wanted = sum(i + 1 for i, number in enumerate(numbers) if number == chunk)
            assert found[row, chunk] == wanted


def test_where_every_token_is_a_chunk_it_is_the_loss_of_the_labels_probabilities() -> None:
    generator = torch.manual_seed(3)
    logits = [torch.randn(1, 6, 9, generator=generator) for _ in range(2)]
    ids = torch.randint(9, (1, 6), generator=generator)
    counts, chunks = torch.ones(1, 6, dtype=torch.bool), torch.arange(6)[None]
    student, teacher = (chunk_sums(token_log_probs(z, ids, counts), chunks, 6) for z in logits)
    found = loss(student, teacher, 2.0)
    coins = [
        torch.stack((p.sqrt(), 1 - p.sqrt()), -1).log()
        for p in (z.softmax(-1).gather(-1, ids[..., None])[..., 0] for z in logits)
    ]
    expected = 2.0 * kl_div(*coins, temperature=1.0)
    assert torch.allclose(found, expected, atol=1e-5)
