"""The losses between logits against independent references, and their contract with callers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.objectives import LOGITS_LOSSES, get_logits_loss, js_div, kl_div, mse, skew_kl

DIVERGENCES = ("kl_div", "reverse_kl", "js_div", "skew_kl")
ALL = (*DIVERGENCES, "mse")
MASKS = ("none", "positions", "last_axis", "every_class", "some_rows", "some_empty")
TEMPERATURES = (0.7, 1.0, 5.0)
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Student (wants a gradient) and teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(2)
    )
    return [student.requires_grad_(), teacher]


def mask_of_kind(kind: str, batch: int, classes: int) -> Tensor | None:
    """A mask for logits of shape (batch, 2, classes)."""
    lengths = torch.arange(batch) % (classes - 1) + 2
    positions = torch.arange(classes) < lengths[:, None]
    if kind == "none":
        return None
    if kind == "positions":
        return positions[:, None, :]
    if kind == "last_axis":
        return positions[0]
    if kind == "every_class":
        return positions[:, None, :].expand(batch, 2, classes).clone()
    if kind == "some_rows":
        return (torch.arange(batch) % 2 == 0)[:, None, None]
    positions[1] = False
    return positions[:, None, :]


def reference(name: str, z_s: np.ndarray, z_t: np.ndarray, temperature: float) -> float:
    """One row, its valid classes only, straight from the definitions."""
    if name == "mse":
        return float(np.mean((z_s - z_t) ** 2))

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z / temperature - np.max(z / temperature))
        return e / e.sum()

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))

    q, p = softmax(z_s), softmax(z_t)
    value = {
        "kl_div": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "js_div": lambda: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
        "skew_kl": lambda: kl(p, 0.1 * p + 0.9 * q),
    }[name]()
    return temperature**2 * value


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tensors))


def squad_batch(seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Start and end logits of student and teacher, labels and the label loss of QA models."""
    start_s, start_t = random_logits(4, 9, seed=seed)
    end_s, end_t = random_logits(4, 9, seed=seed + 1)
    labels = [torch.tensor([0, 3, 8, 5]), torch.tensor([2, 3, 8, 7])]
    task = (F.cross_entropy(start_s, labels[0]) + F.cross_entropy(end_s, labels[1])) / 2
    return [start_s, end_s], [start_t, end_t], labels, task


# ---- other people's formulas -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5, 5.0])
def test_kl_div_is_run_squad_w_distillation(temperature: float) -> None:
    """Hugging Face's script: T² (KL_start + KL_end) / 2, each a mean over the batch."""
    student, teacher, _, _ = squad_batch()
    criterion = nn.KLDivLoss(reduction="batchmean")
    parts = [
        criterion(F.log_softmax(s / temperature, dim=-1), F.softmax(t / temperature, dim=-1))
        * temperature**2
        for s, t in zip(student, teacher, strict=True)
    ]
    expected = sum(parts) / 2
    rows = kl_div(torch.stack(student, 1), torch.stack(teacher, 1), temperature=temperature)
    assert rows.shape == (4, 2)
    torch.testing.assert_close(rows.mean(), expected, **EXACT)
    torch.testing.assert_close(
        gradients(rows.mean(), *student), gradients(expected, *student), **EXACT
    )


@pytest.mark.parametrize(
    ("temperature", "weight"), [(5.0, 1.0), (1.5, 0.75), (3.0, 0.75), (1.0, 0.5), (2.0, 0.0)]
)
def test_haystack_is_ours_with_another_weight_and_scale(temperature: float, weight: float) -> None:
    """Haystack 1 sums start and end: its (T, w) is (1 + w) times ours at w' = 2w / (1 + w)."""
    student, teacher, labels, task = squad_batch(seed=3)
    # Haystack: logits (batch, length, 2), softmax over dim -2, "batchmean" over the batch only.
    logits_s, logits_t = torch.stack(student, -1), torch.stack(teacher, -1)
    divergence = F.kl_div(
        F.log_softmax(logits_s / temperature, dim=-2),
        F.softmax(logits_t / temperature, dim=-2),
        reduction="batchmean",
    )
    haystack = weight * temperature**2 * divergence + (1 - weight) * task

    ours_weight = 2 * weight / (1 + weight)
    rows = kl_div(torch.stack(student, 1), torch.stack(teacher, 1), temperature=temperature)
    ours = (1 - ours_weight) * task + ours_weight * rows.mean()
    torch.testing.assert_close(haystack, (1 + weight) * ours, **EXACT)
    torch.testing.assert_close(
        gradients(haystack, *student),
        gradients((1 + weight) * ours, *student),
        **EXACT,
    )


def test_tinybert_soft_cross_entropy() -> None:
    """Its mean runs over batch x classes and keeps the teacher's entropy: C · sCE - H = KL."""
    batch, classes = 6, 5
    student, teacher = random_logits(batch, classes, seed=5)
    soft_cross_entropy = (-F.softmax(teacher, -1) * F.log_softmax(student, -1)).mean()
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    ours = kl_div(student, teacher, temperature=1.0).mean()
    torch.testing.assert_close(classes * soft_cross_entropy - entropy, ours, **EXACT)
    (theirs,), (mine,) = gradients(soft_cross_entropy, student), gradients(ours, student)
    torch.testing.assert_close(theirs * classes, mine, **EXACT)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 7), (4, 1)])
def test_kl_div_is_torchs_own(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = random_logits(*shape, seed=7)
    expected = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher / temperature, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    ours = kl_div(student, teacher, temperature=temperature)
    torch.testing.assert_close(ours, expected, **EXACT)
    weights = torch.linspace(-1, 2, max(1, ours.numel()), dtype=torch.float64).view(ours.shape)
    torch.testing.assert_close(
        gradients((weights * ours).sum(), student),
        gradients((weights * expected).sum(), student),
        **EXACT,
    )


def test_kl_and_reverse_kl_are_torch_distributions() -> None:
    student, teacher = random_logits(8, 5, seed=9)
    q, p = (torch.distributions.Categorical(logits=z / 3) for z in (student, teacher))
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(kl_div(student, teacher, temperature=3.0), 9 * kl(p, q), **EXACT)
    reverse = LOGITS_LOSSES["reverse_kl"](student, teacher, temperature=3.0)
    torch.testing.assert_close(reverse, 9 * kl(q, p), **EXACT)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ALL)
def test_definition_row_by_row(name: str, temperature: float, kind: str) -> None:
    student, teacher = random_logits(5, 2, 6, seed=11)
    mask = mask_of_kind(kind, 5, 6)
    loss = LOGITS_LOSSES[name](student, teacher, temperature=temperature, mask=mask)
    assert loss.shape == (5, 2)
    assert loss.dtype == torch.float64
    full = np.ones((5, 2, 6), bool) if mask is None else mask.expand(5, 2, 6).numpy()
    z_s, z_t = student.detach().numpy(), teacher.numpy()
    expected = [
        [
            reference(name, z_s[i, j][full[i, j]], z_t[i, j][full[i, j]], temperature)
            if full[i, j].any()
            else 0.0
            for j in range(2)
        ]
        for i in range(5)
    ]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8), mixture = 0.1 p + 0.9 q = (.525, .475)
        ("kl_div", 0.75 * math.log(1.5) - 0.25 * math.log(2)),
        ("reverse_kl", 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        (
            "js_div",
            (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) / 2
            + (0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)) / 2,
        ),
        ("skew_kl", 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475)),
        ("mse", math.log(3) ** 2 / 2),
    ],
)
def test_by_hand(name: str, expected: float) -> None:
    student = torch.tensor([0.0, 0.0], dtype=torch.float64)
    teacher = torch.tensor([math.log(3), 0.0], dtype=torch.float64)
    loss = LOGITS_LOSSES[name](student, teacher, temperature=1.0)
    assert loss.item() == pytest.approx(expected, abs=1e-14)


def test_bounded_divergences_reach_their_bounds() -> None:
    certain = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    other = certain.flip(-1)
    two = torch.full((2,), 4.0)
    torch.testing.assert_close(js_div(certain, other, temperature=2.0), two * math.log(2))
    torch.testing.assert_close(skew_kl(certain, other, temperature=2.0), two * math.log(10))


def test_skew_kl_does_not_underflow_to_infinity() -> None:
    """p is the smallest float32 above 0, so that 0.1 p as a number would be 0 and log 0.1 p -inf."""
    smallest = math.log(2.0**-149)
    teacher, student = torch.tensor([0.0, smallest]), torch.tensor([0.0, -torch.inf])
    for loss in (skew_kl, js_div):
        assert abs(loss(student, teacher, temperature=1.0).item()) < 1e-6


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("temperature", [0.7, 3.0])
@pytest.mark.parametrize("name", ALL)
def test_gradient_by_finite_differences(name: str, temperature: float, kind: str) -> None:
    student, teacher = random_logits(3, 2, 5, seed=13)
    mask = mask_of_kind(kind, 3, 5)

    def loss(logits: Tensor) -> Tensor:
        return LOGITS_LOSSES[name](logits, teacher, temperature=temperature, mask=mask)

    # Forward values of one row must not depend on other rows either: the whole Jacobian is checked.
    assert torch.autograd.gradcheck(loss, student, eps=1e-6, atol=1e-7, rtol=1e-6)


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
    second = torch.autograd.grad(loss, student, create_graph=True)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second[0].sum().backward()


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
    options = {"temperature": 3.0, "mask": mask_of_kind("positions", 5, 6) if masked else None}
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
    mask = mask_of_kind("positions", 5, 6) if masked else None
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
