"""What the losses between logits promise to callers: formats, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_distill.losses import LOGITS_LOSSES, get_logits_loss, mse

ALL = tuple(LOGITS_LOSSES)
POSITIONS = (torch.arange(6) < torch.tensor([2, 6, 3, 4, 5])[:, None])[:, None, :]


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Student (wants a gradient) and teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(2)
    )
    return [student.requires_grad_(), teacher]


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tensors, retain_graph=True))


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_the_student_only(name: str) -> None:
    student, teacher = random_logits(3, 4)
    teacher.requires_grad_()
    LOGITS_LOSSES[name](student, teacher, temperature=2.0).sum().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", ALL)
def test_backward_twice_and_no_second_order(name: str) -> None:
    student, teacher = random_logits(3, 4)
    loss = LOGITS_LOSSES[name](student, teacher, temperature=2.0).sum()
    first = torch.autograd.grad(loss, student, retain_graph=True)
    second = torch.autograd.grad(loss, student, retain_graph=True)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, student, create_graph=True)


@pytest.mark.parametrize("name", ALL)
def test_no_gradient_where_none_is_wanted(name: str) -> None:
    student, teacher = random_logits(3, 4)
    assert not LOGITS_LOSSES[name](student.detach(), teacher, temperature=2.0).requires_grad
    with torch.no_grad():
        assert not LOGITS_LOSSES[name](student, teacher, temperature=2.0).requires_grad


# ---- number formats, devices, memory -----------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, name: str, masked: bool) -> None:
    student, teacher = random_logits(5, 2, 6, dtype=dtype)
    full = student.detach().float().requires_grad_()
    options = {"temperature": 3.0, "mask": POSITIONS if masked else None}
    loss = LOGITS_LOSSES[name](student, teacher, **options)
    expected = LOGITS_LOSSES[name](full, teacher.float(), **options)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    (gradient,), (expected_gradient,) = (
        gradients(loss.sum(), student),
        gradients(expected.sum(), full),
    )
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("student_dtype", "teacher_dtype", "result"),
    [
        (torch.float32, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_mixed_number_formats(
    name: str, student_dtype: torch.dtype, teacher_dtype: torch.dtype, result: torch.dtype
) -> None:
    student, teacher = random_logits(3, 4)
    student, teacher = (
        student.detach().to(student_dtype).requires_grad_(),
        teacher.to(teacher_dtype),
    )
    loss = LOGITS_LOSSES[name](student, teacher, temperature=0.7)
    assert loss.dtype == result
    expected = LOGITS_LOSSES[name](student.to(result), teacher.to(result), temperature=0.7)
    assert torch.equal(loss, expected)
    assert gradients(loss.sum(), student)[0].dtype == student_dtype


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name: str) -> None:
    student, teacher = random_logits(3, 40, dtype=torch.float32)
    expected = LOGITS_LOSSES[name](student, teacher, temperature=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOGITS_LOSSES[name](student, teacher, temperature=2.0)
    assert torch.equal(loss, expected)
    assert torch.equal(gradients(loss.sum(), student)[0], gradients(expected.sum(), student)[0])


@pytest.mark.parametrize("name", ALL)
def test_takes_logits_made_in_inference_mode(name: str) -> None:
    student, teacher = random_logits(3, 4)
    with torch.inference_mode():
        inferred = teacher * 1.0
    loss = LOGITS_LOSSES[name](student, inferred, temperature=2.0)
    assert torch.equal(loss, LOGITS_LOSSES[name](student, teacher, temperature=2.0))
    loss.sum().backward()
    assert student.grad is not None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_leaves_its_arguments_alone(name: str, masked: bool) -> None:
    student, teacher = random_logits(5, 2, 6)
    mask = POSITIONS if masked else None
    before = [x.detach().clone() for x in (student, teacher)] + ([mask.clone()] if masked else [])
    LOGITS_LOSSES[name](student, teacher, temperature=1.0, mask=mask).sum().backward()
    after = [student.detach(), teacher] + ([mask] if masked else [])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_never_waits_for_the_device(name: str, masked: bool) -> None:
    """Tensors on the meta device have no content: anything that looks at it raises."""
    student = torch.empty(5, 2, 6, device="meta", requires_grad=True)
    teacher = torch.empty(5, 2, 6, device="meta")
    mask = torch.empty(5, 1, 6, device="meta", dtype=torch.bool) if masked else None
    loss = LOGITS_LOSSES[name](student, teacher, temperature=2.0, mask=mask)
    assert loss.shape == (5, 2)
    loss.sum().backward()
    assert student.grad is not None and student.grad.shape == student.shape


@pytest.mark.parametrize("name", ALL)
def test_no_rows(name: str) -> None:
    student, teacher = random_logits(0, 4)
    loss = LOGITS_LOSSES[name](student, teacher, temperature=2.0)
    assert loss.shape == (0,)
    loss.sum().backward()


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ALL)
def test_bad_temperature(name: str, temperature: float) -> None:
    student, teacher = random_logits(3, 4)
    with pytest.raises(ValueError, match=rf"temperature .* {temperature}"):
        LOGITS_LOSSES[name](student, teacher, temperature=temperature)


@pytest.mark.parametrize("name", ALL)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    student, teacher = random_logits(3, 4)
    with pytest.raises(ValueError, match=r"same shape.*\(3, 4\) and \(1, 4\)"):
        LOGITS_LOSSES[name](student, teacher[:1], temperature=1.0)
    with pytest.raises(ValueError, match=r"\(\*rows, classes\)"):
        LOGITS_LOSSES[name](student[0, 0], teacher[0, 0], temperature=1.0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 4, dtype=torch.long), r"bool.*torch\.int64.*mask\.bool\(\)"),
        (torch.ones(3, 5, dtype=torch.bool), r"\(3, 5\).*broadcast.*\(3, 4\)"),
        (torch.ones(2, 3, 4, dtype=torch.bool), r"\(2, 3, 4\).*broadcast.*\(3, 4\)"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_bad_mask(name: str, mask: Tensor, message: str) -> None:
    student, teacher = random_logits(3, 4)
    with pytest.raises(ValueError, match=message):
        LOGITS_LOSSES[name](student, teacher, temperature=1.0, mask=mask)


def test_integer_logits_are_refused() -> None:
    student, teacher = random_logits(3, 4)
    with pytest.raises(ValueError, match=r"teacher_logits must be floating-point.*int64"):
        mse(student, teacher.long(), temperature=1.0)


def test_registry() -> None:
    assert set(LOGITS_LOSSES) == set(ALL)
    assert all(get_logits_loss(name) is LOGITS_LOSSES[name] for name in ALL)
    assert all(LOGITS_LOSSES[name].__name__ == name for name in ALL)
    with pytest.raises(ValueError, match=r"js_div, kl_div, mse, reverse_kl, skew_kl.*'kl'"):
        get_logits_loss("kl")
