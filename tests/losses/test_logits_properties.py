"""What must hold for the losses between logits whatever the numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.nn import functional as F

from hf_distill.losses import LOGITS_LOSSES, js_div, kl_div, mse

DIVERGENCES = ("kl_div", "reverse_kl", "js_div", "skew_kl")
ALL = (*DIVERGENCES, "mse")
NOT_NUMBERS = (math.nan, math.inf, -math.inf, 1e300, -1e300)

temperatures = st.floats(0.2, 20.0)
quick = settings(deadline=None, max_examples=30, derandomize=True)


@st.composite
def logit_pairs(draw: Any, largest: float = 30.0, min_classes: int = 1) -> tuple[Tensor, Tensor]:
    """Student and teacher logits, (rows, classes), float64."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(min_classes, 6)))
    numbers = hnp.arrays(np.float64, shape, elements=st.floats(-largest, largest))
    return torch.from_numpy(draw(numbers)), torch.from_numpy(draw(numbers))


@st.composite
def masks_for(draw: Any, logits: Tensor) -> Tensor:
    """At least one valid class a row."""
    mask = torch.from_numpy(draw(hnp.arrays(np.bool_, tuple(logits.shape))))
    mask[:, draw(st.integers(0, logits.shape[1] - 1))] = True
    return mask


def loss_and_gradient(
    name: str, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    loss = LOGITS_LOSSES[name](student, teacher, temperature=temperature, mask=mask)
    loss.sum().backward()
    assert student.grad is not None
    return loss.detach(), student.grad


# ---- the minimum -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@quick
@given(pair=logit_pairs(), temperature=temperatures)
def test_never_negative(name: str, pair: tuple[Tensor, Tensor], temperature: float) -> None:
    loss, _ = loss_and_gradient(name, *pair, temperature)
    assert (loss >= -1e-12 * temperature**2).all()


@pytest.mark.parametrize("name", ALL)
@quick
@given(pair=logit_pairs(), temperature=temperatures, data=st.data())
def test_zero_with_zero_gradient_at_equality(
    name: str, pair: tuple[Tensor, Tensor], temperature: float, data: Any
) -> None:
    mask = data.draw(st.none() | masks_for(pair[0]))
    loss, gradient = loss_and_gradient(name, pair[0], pair[0], temperature, mask)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12 * temperature**2)
    torch.testing.assert_close(
        gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12 * temperature
    )


@pytest.mark.parametrize("name", ALL)
@quick
# At lower temperatures a probability may be 1 in float64, and the loss nothing but rounding.
@given(pair=logit_pairs(largest=5.0, min_classes=2), temperature=st.floats(1.0, 20.0))
def test_positive_away_from_equality(
    name: str, pair: tuple[Tensor, Tensor], temperature: float
) -> None:
    student, teacher = pair
    student = teacher.clone()
    student[:, 0] += 1.0
    loss, gradient = loss_and_gradient(name, student, teacher, temperature)
    assert (loss > 0).all()
    assert (gradient[:, 0] > 0).all()


# ---- what must not matter ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
@quick
@given(pair=logit_pairs(), temperature=temperatures, data=st.data())
def test_masked_content_does_not_matter(
    name: str, dtype: torch.dtype, pair: tuple[Tensor, Tensor], temperature: float, data: Any
) -> None:
    student, teacher = (z.to(dtype) for z in pair)
    mask = data.draw(masks_for(student))
    mask[0] &= data.draw(st.booleans())  # an empty row, sometimes
    loss, gradient = loss_and_gradient(name, student, teacher, temperature, mask)
    junk = torch.tensor(data.draw(st.sampled_from(NOT_NUMBERS)), dtype=dtype)
    other = torch.tensor(data.draw(st.sampled_from(NOT_NUMBERS)), dtype=dtype)
    new_loss, new_gradient = loss_and_gradient(
        name, torch.where(mask, student, junk), torch.where(mask, teacher, other), temperature, mask
    )
    assert torch.equal(loss, new_loss)
    assert torch.equal(gradient, new_gradient)
    assert (new_gradient[~mask] == 0).all()
    assert torch.isfinite(new_loss).all() and torch.isfinite(new_gradient).all()


@pytest.mark.parametrize("name", ALL)
@quick
@given(pair=logit_pairs(), temperature=temperatures, more=st.integers(1, 40))
def test_more_padding_does_not_matter(
    name: str, pair: tuple[Tensor, Tensor], temperature: float, more: int
) -> None:
    student, teacher = pair
    loss, gradient = loss_and_gradient(name, student, teacher, temperature)
    mask = F.pad(torch.ones_like(student, dtype=torch.bool), (0, more))
    padded = (F.pad(student, (0, more), value=7.0), F.pad(teacher, (0, more), value=-9.0))
    new_loss, new_gradient = loss_and_gradient(name, *padded, temperature, mask)
    classes = student.shape[-1]
    torch.testing.assert_close(new_loss, loss, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(new_gradient[:, :classes], gradient, rtol=1e-10, atol=1e-11)
    assert (new_gradient[:, classes:] == 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_row_without_a_class(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, generator=generator).to(dtype).unbind()
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1:3] = False
    student[2], teacher[2] = -torch.inf, torch.nan
    loss, gradient = loss_and_gradient(name, student, teacher, 3.0, mask)
    assert (loss[1:3] == 0).all() and (gradient[1:3] == 0).all()
    assert (loss[[0, 3]] > 0).all() and (gradient[[0, 3]] != 0).any()


@pytest.mark.parametrize("name", DIVERGENCES)
@quick
@given(
    pair=logit_pairs(), temperature=temperatures, shift=st.floats(-50, 50), other=st.floats(-50, 50)
)
def test_a_constant_added_to_the_logits_does_not_matter(
    name: str, pair: tuple[Tensor, Tensor], temperature: float, shift: float, other: float
) -> None:
    loss, gradient = loss_and_gradient(name, *pair, temperature)
    shifted = loss_and_gradient(name, pair[0] + shift, pair[1] + other, temperature)
    scale = temperature**2 * 1e-11 + 1e-10
    torch.testing.assert_close(shifted, (loss, gradient), rtol=1e-9, atol=scale)
    total = gradient.sum(-1)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=scale)


@quick
@given(pair=logit_pairs(), temperature=temperatures)
def test_mse_ignores_the_temperature_but_not_an_offset(
    pair: tuple[Tensor, Tensor], temperature: float
) -> None:
    loss = mse(*pair, temperature=temperature)
    assert torch.equal(loss, mse(*pair, temperature=1.0))
    offset = mse(pair[0] + 1.0, pair[0], temperature=temperature)
    torch.testing.assert_close(offset, torch.ones_like(offset))


@quick
@given(pair=logit_pairs(), temperature=temperatures)
def test_js_div_is_symmetric(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    torch.testing.assert_close(
        js_div(student, teacher, temperature=temperature),
        js_div(teacher, student, temperature=temperature),
        rtol=1e-10,
        atol=1e-12 * temperature**2,
    )


# ---- impossible classes ------------------------------------------------------------------------


@st.composite
def with_impossible(draw: Any, logits: Tensor) -> Tensor:
    impossible = torch.from_numpy(draw(hnp.arrays(np.bool_, tuple(logits.shape))))
    return logits.masked_fill(impossible, draw(st.sampled_from((-math.inf, -1e38, -3e38))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
@quick
@given(pair=logit_pairs(), temperature=temperatures, data=st.data())
def test_impossible_classes_never_make_nan(
    name: str, dtype: torch.dtype, pair: tuple[Tensor, Tensor], temperature: float, data: Any
) -> None:
    """On either side, on both, or in all classes of a row."""
    student, teacher = (data.draw(with_impossible(z)).to(dtype) for z in pair)
    mask = data.draw(st.none() | masks_for(student))
    loss, gradient = loss_and_gradient(name, student, teacher, temperature, mask)
    assert not loss.isnan().any()
    assert torch.isfinite(gradient).all()
    bound = {"js_div": math.log(2), "skew_kl": math.log(10)}.get(name, math.inf)
    assert (loss <= temperature**2 * bound * (1 + 1e-5)).all()
    if name == "kl_div":
        assert (gradient.abs() <= temperature * (1 + 1e-2)).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@quick
@given(pair=logit_pairs(), temperature=temperatures, data=st.data())
def test_impossible_on_both_sides_is_masked(
    name: str, pair: tuple[Tensor, Tensor], temperature: float, data: Any
) -> None:
    student, teacher = pair
    mask = data.draw(masks_for(student))
    expected = loss_and_gradient(name, student, teacher, temperature, mask)
    impossible = [z.masked_fill(~mask, -math.inf) for z in pair]
    result = loss_and_gradient(name, *impossible, temperature)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("kl_div", [0.0, -math.inf], [0.0, 0.0]),
        ("reverse_kl", [0.0, 0.0], [0.0, -math.inf]),
        ("mse", [0.0, -math.inf], [0.0, 0.0]),
    ],
)
def test_ruling_out_what_the_other_finds_possible_is_loud(
    name: str, student: list[float], teacher: list[float]
) -> None:
    logits = torch.tensor(student), torch.tensor(teacher)
    assert (LOGITS_LOSSES[name](*logits, temperature=2.0) > 1e29).all()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_classes_impossible_is_uniform(name: str, padding: int) -> None:
    """The limit of logits that are all equal; padding has no share in it."""
    teacher = torch.tensor([[1.0, 2.0, -1.0]])
    mask = F.pad(torch.ones(1, 3, dtype=torch.bool), (0, padding))
    losses = [
        LOGITS_LOSSES[name](
            *(F.pad(z, (0, padding)) for z in (student, teacher)), temperature=2.0, mask=mask
        )
        for student in (torch.full((1, 3), -math.inf), torch.zeros(1, 3))
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", ALL)
def test_broken_logits_are_not_hidden(name: str, side: int, wrong: float) -> None:
    """NaN and +inf where they count make their row, and only theirs, NaN or infinite."""
    logits = list(torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1)).unbind())
    logits[side][0, 1] = wrong
    loss = LOGITS_LOSSES[name](*logits, temperature=1.0, mask=torch.ones(4, dtype=torch.bool))
    assert not torch.isfinite(loss[0])
    assert torch.isfinite(loss[1])


# ---- limits in T, and two classes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [("kl_div", 1.0), ("reverse_kl", 1.0), ("js_div", 0.25), ("skew_kl", 0.9**2)],
)
@quick
@given(pair=logit_pairs(largest=5.0))
def test_high_temperature_compares_centred_logits(
    name: str, factor: float, pair: tuple[Tensor, Tensor]
) -> None:
    """Hinton et al. 2015, section 2.1: 1/(2C) of the squared distance, with its gradient."""
    student, teacher = (z - z.mean(-1, keepdim=True) for z in pair)
    classes = student.shape[-1]
    loss, gradient = loss_and_gradient(name, *pair, temperature=1e4)
    expected = factor * (student - teacher).square().sum(-1) / (2 * classes)
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(
        gradient, factor * (student - teacher) / classes, rtol=5e-3, atol=5e-3
    )
    if name == "kl_div":
        half_mse = mse(student, teacher, temperature=1.0) / 2
        torch.testing.assert_close(loss, half_mse, rtol=5e-3, atol=1e-4)


@quick
@given(pair=logit_pairs(largest=5.0), data=st.data())
def test_low_temperature_is_cross_entropy_with_the_teachers_best(
    pair: tuple[Tensor, Tensor], data: Any
) -> None:
    student, teacher = pair
    best = data.draw(st.integers(0, teacher.shape[-1] - 1))
    teacher = teacher.clone()
    teacher[:, best] = teacher.max() + 1.0
    temperature = 0.01
    loss = kl_div(student, teacher, temperature=temperature)
    target = torch.full((len(student),), best)
    cross_entropy = F.cross_entropy(student / temperature, target, reduction="none")
    torch.testing.assert_close(loss, temperature**2 * cross_entropy, rtol=1e-9, atol=1e-12)
    margin = student.max(-1).values - student[:, best]
    torch.testing.assert_close(loss / temperature, margin, rtol=0, atol=temperature * math.log(6))


@pytest.mark.parametrize("name", DIVERGENCES)
@quick
@given(pair=logit_pairs(largest=20.0), temperature=temperatures)
def test_two_class_rows_are_binary(
    name: str, pair: tuple[Tensor, Tensor], temperature: float
) -> None:
    """Rows [z, 0], as a multi-label head makes them, compare sigmoid(z / T)."""
    stacked = [torch.stack((z, torch.zeros_like(z)), dim=-1) for z in pair]
    loss = LOGITS_LOSSES[name](*stacked, temperature=temperature)
    assert loss.shape == pair[0].shape

    def binary_kl(a: Tensor, b: Tensor) -> Tensor:
        """Between probabilities of (yes, no)."""
        return (torch.xlogy(a, a) - torch.xlogy(a, b)).sum(0)

    q, p = (
        torch.stack((torch.sigmoid(z), torch.sigmoid(-z))) for z in (z / temperature for z in pair)
    )
    expected = {
        "kl_div": binary_kl(p, q),
        "reverse_kl": binary_kl(q, p),
        "js_div": (binary_kl(p, (p + q) / 2) + binary_kl(q, (p + q) / 2)) / 2,
        "skew_kl": binary_kl(p, 0.1 * p + 0.9 * q),
    }[name]
    torch.testing.assert_close(
        loss, temperature**2 * expected, rtol=1e-9, atol=1e-12 * temperature**2
    )
    if name == "kl_div":
        z_s, z_t = (z / temperature for z in pair)
        cross_entropy, entropy = (
            F.binary_cross_entropy_with_logits(z, torch.sigmoid(z_t), reduction="none")
            for z in (z_s, z_t)
        )
        torch.testing.assert_close(
            loss,
            temperature**2 * (cross_entropy - entropy),
            rtol=1e-9,
            atol=1e-12 * temperature**2,
        )
