"""The losses between hidden states against their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_cases import MASKS, relative, token_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hf_distill.losses import hidden_states_loss

LOSSES = ("mse", "cosine")


def states(
    width: int = 6, batch: int = 3, length: int = 9, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(
        2, batch, length, width, generator=generator, dtype=torch.float64
    ).to(dtype)
    return student, teacher


def reference(student: Tensor, teacher: Tensor, mask: Tensor | None, loss: str) -> Tensor:
    """Token by token."""
    total = student.new_zeros(())
    for b in range(student.shape[0]):
        for i in range(student.shape[1]):
            if mask is None or mask[b, i]:
                s, t = student[b, i], teacher[b, i]
                if loss == "mse":
                    total = total + ((s - t) ** 2).mean()
                else:
                    total = total + 1 - (s @ t) / (s.norm() * t.norm())
    return total


def value_and_gradient(student: Tensor, teacher: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = hidden_states_loss(student, teacher, **options)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_definition(loss: str, mask: str) -> None:
    student, teacher = states()
    valid = token_mask(mask)
    leaf = student.clone().requires_grad_()
    wanted = reference(leaf, teacher, valid, loss)
    (gradient,) = torch.autograd.grad(wanted, leaf)
    got = value_and_gradient(student, teacher, token_mask=valid, loss=loss)
    assert relative(got[0], wanted.detach()) < 1e-13
    assert relative(got[1], gradient) < 1e-13


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_by_finite_differences(loss: str) -> None:
    student, teacher = states(width=3, length=5)
    mask = token_mask("holes", 5)
    assert torch.autograd.gradcheck(
        lambda s: hidden_states_loss(s, teacher, token_mask=mask, loss=loss),
        student.requires_grad_(),
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_many_chunks_equal_one(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = states(length=40)
    options: dict[str, Any] = {"token_mask": token_mask("holes", 40), "loss": loss}
    one = value_and_gradient(student, teacher, **options)
    monkeypatch.setattr("hf_distill.losses.chunks._CPU_NUMBERS", 1)
    monkeypatch.setattr("hf_distill.losses.chunks._FEWEST_ROWS", 7)
    for ours, theirs in zip(value_and_gradient(student, teacher, **options), one, strict=True):
        assert relative(ours, theirs) < 1e-13


@pytest.mark.parametrize("loss", LOSSES)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(batch=st.integers(1, 3), length=st.integers(1, 6), width=st.integers(1, 5), data=st.data())
def test_any_shape(loss: str, batch: int, length: int, width: int, data: Any) -> None:
    student, teacher = states(width, batch, length)
    flags = data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    mask = torch.tensor(flags).view(batch, length)
    value, gradient = value_and_gradient(student, teacher, token_mask=mask, loss=loss)
    torch.testing.assert_close(value, reference(student, teacher, mask, loss), rtol=1e-9, atol=1e-9)
    assert (gradient[~mask] == 0).all()
    if mask.any() and (width > 1 or loss == "mse"):
        assert (gradient[mask] != 0).any()


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(
    loss: str, student_dtype: torch.dtype, teacher_dtype: torch.dtype
) -> None:
    teacher = states(64)[1]
    noise = states(64)[0]
    student, teacher = (teacher * (1 + 4e-3 * noise)).to(student_dtype), teacher.to(teacher_dtype)
    exact = value_and_gradient(student.double(), teacher.double(), loss=loss)
    value, gradient = value_and_gradient(student, teacher, loss=loss)
    assert value.dtype == torch.float32 and gradient.dtype == student_dtype
    assert relative(value, exact[0]) < 1e-4
    assert relative(gradient, exact[1].to(student_dtype)) < 1e-3


def test_mse_is_pytorchs_per_token() -> None:
    student, teacher = states()
    torch.testing.assert_close(
        hidden_states_loss(student, teacher) / 27, F.mse_loss(student, teacher)
    )


def test_cosine_keeps_its_digits_near_the_teacher() -> None:
    _, teacher = states(32)
    student = teacher + 1e-4 * states(32)[0]
    exact = value_and_gradient(student, teacher, loss="cosine")
    single = value_and_gradient(student.float(), teacher.float(), loss="cosine")
    rounded = value_and_gradient(student.float().double(), teacher.float().double(), loss="cosine")
    assert float(exact[0]) < 1e-6
    assert relative(single[0], rounded[0]) < 2e-3
    assert relative(single[1], rounded[1]) < 2e-3


def test_cosine_of_zero_vectors() -> None:
    student, teacher = states(length=2, batch=1)
    student[0, 0] = 0.0
    value, gradient = value_and_gradient(student, teacher, loss="cosine")
    alone = value_and_gradient(student[:, 1:], teacher[:, 1:], loss="cosine")
    torch.testing.assert_close(value, alone[0] + 1)
    assert (gradient[0, 0] == 0).all()
    zero = value_and_gradient(student[:, 1:], torch.zeros(1, 1, 6).double(), loss="cosine")
    assert zero[0] == 1 and (zero[1] == 0).all()


def test_cosine_ignores_length_and_mse_does_not() -> None:
    student, teacher = states()
    cosine, mse = (
        hidden_states_loss(7 * student, teacher, loss=loss) for loss in ("cosine", "mse")
    )
    torch.testing.assert_close(cosine, hidden_states_loss(student, teacher, loss="cosine"))
    assert mse > 5 * hidden_states_loss(student, teacher)


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        ((2, 3, 4), (2, 3, 5), {}, "project the student to the teacher's width"),
        ((2, 3, 4), (2, 4, 4), {}, r"student has the shape \(2, 3, 4\) and teacher \(2, 4, 4\)"),
        ((2, 3), (2, 3), {}, r"student must be floating-point \(batch, length, width\)"),
        ((2, 3, 4), (2, 3, 4), {"loss": "l1"}, "loss must be one of cosine, mse, but it is 'l1'"),
        (
            (2, 3, 4),
            (2, 3, 4),
            {"token_mask": torch.ones(2, 4, dtype=torch.bool)},
            r"token_mask must have the shape \(batch, length\) = \(2, 3\)",
        ),
        (
            (2, 3, 4),
            (2, 3, 4),
            {"token_mask": torch.ones(2, 3)},
            "token_mask must be bool, but it is torch.float32; pass token_mask.bool",
        ),
    ],
)
def test_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hidden_states_loss(torch.zeros(student), torch.zeros(teacher), **options)


def test_not_a_number_in_a_valid_token_shows() -> None:
    student, teacher = states()
    student[0, 0, 0] = math.nan
    assert hidden_states_loss(student, teacher).isnan()
