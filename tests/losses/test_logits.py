"""The losses between logits against independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.losses import LOGITS_LOSSES, js_div, kl_div, skew_kl

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
    return list(torch.autograd.grad(loss, tensors, retain_graph=True))


def squad_batch(seed: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Start and end logits of student and teacher, and the label loss of QA models."""
    start_s, start_t = random_logits(4, 9, seed=seed)
    end_s, end_t = random_logits(4, 9, seed=seed + 1)
    labels = [torch.tensor([0, 3, 8, 5]), torch.tensor([2, 3, 8, 7])]
    task = (F.cross_entropy(start_s, labels[0]) + F.cross_entropy(end_s, labels[1])) / 2
    return [start_s, end_s], [start_t, end_t], task


# ---- other people's formulas -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5, 5.0])
def test_kl_div_is_run_squad_w_distillation(temperature: float) -> None:
    """Hugging Face's script: T² (KL_start + KL_end) / 2, each a mean over the batch."""
    student, teacher, _ = squad_batch()
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
    student, teacher, task = squad_batch(seed=3)
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
    """p is the smallest float32 above 0: as a number 0.1 p is 0, and its logarithm -inf."""
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
