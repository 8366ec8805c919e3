"""The losses between attention probabilities and relations against full maps, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import (
    MASKS,
    inputs,
    near,
    pair_mask,
    probabilities_reference,
    relations_reference,
    relative,
    token_mask,
    trained,
    visible,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.losses import (
    AttentionInputs,
    attention_maps_loss,
    probabilities_loss,
    relations_loss,
)

DIVERGENCES = ("kl_div", "mse")
PARTS = ("query", "key", "value")
EXACT = 1e-12


def with_gradients(
    loss: Callable[[AttentionInputs], Tensor], student: AttentionInputs, parts: int = 2
) -> list[Tensor]:
    """Value and gradients with respect to Q, K (and V)."""
    student = trained(student)
    value = loss(student)
    return [value.detach(), *torch.autograd.grad(value, student[:parts])]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) < EXACT


# ---- probabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pairs", ["none", "window", "random"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_probabilities_equal_full_maps(
    divergence: str, causal: bool, pairs: str, mask: str
) -> None:
    student = inputs(key_heads=2, scaling=1.1)
    teacher = inputs(head_dim=6, scaling=0.8, seed=1)
    valid, allowed = token_mask(mask), pair_mask(pairs)
    seen = visible(student, valid, causal, allowed)
    options: dict[str, Any] = {"token_mask": valid, "causal": causal, "pair_mask": allowed}
    agree(
        with_gradients(
            lambda s: probabilities_loss(s, teacher, divergence=divergence, **options), student
        ),
        with_gradients(lambda s: probabilities_reference(s, teacher, seen, divergence), student),
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("causal", [False, True])
def test_many_chunks_equal_one(
    causal: bool, divergence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = inputs(length=40), inputs(length=40, seed=1)
    options: dict[str, Any] = {
        "token_mask": token_mask("holes", 40),
        "pair_mask": pair_mask("random", length=40),
        "causal": causal,
        "divergence": divergence,
    }
    one = with_gradients(lambda s: probabilities_loss(s, teacher, **options), student)
    monkeypatch.setattr("hf_distill.losses.chunks._CPU_NUMBERS", 1)
    monkeypatch.setattr("hf_distill.losses.chunks._FEWEST_ROWS", 7)
    agree(with_gradients(lambda s: probabilities_loss(s, teacher, **options), student), one)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_of_probabilities_by_finite_differences(divergence: str) -> None:
    student, teacher = trained(inputs(2, 3, key_heads=1, length=5)), inputs(2, 2, length=5, seed=1)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        values = student._replace(query=query, key=key)
        return probabilities_loss(
            values, teacher, token_mask=token_mask("holes", 5), divergence=divergence
        )

    assert torch.autograd.gradcheck(loss, (student.query, student.key))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    length=st.integers(1, 12),
    scaling=st.floats(-30.0, 30.0).filter(lambda x: abs(x) > 1e-3),
    divergence=st.sampled_from(DIVERGENCES),
    causal=st.booleans(),
    data=st.data(),
)
def test_probabilities_are_never_negative_nor_too_large(
    length: int, scaling: float, divergence: str, causal: bool, data: Any
) -> None:
    student = inputs(batch=2, length=length, scaling=scaling, dtype=torch.float32)
    teacher = inputs(batch=2, length=length, seed=1, dtype=torch.float32)
    flags = data.draw(st.lists(st.booleans(), min_size=2 * length, max_size=2 * length))
    mask = torch.tensor(flags).view(2, length)
    value, *gradients = with_gradients(
        lambda s: probabilities_loss(
            s, teacher, token_mask=mask, causal=causal, divergence=divergence
        ),
        student,
    )
    queries = int(mask.sum())
    assert value >= -1e-5 * queries
    assert value <= (2 * queries if divergence == "mse" else float("inf"))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_precise_within_a_thousandth(dtype: torch.dtype, divergence: str) -> None:
    teacher = inputs(2, 64, length=96, scaling=0.125, dtype=dtype)
    student = near(teacher, 4e-3 if dtype == torch.bfloat16 else 1e-3)
    exact = [
        AttentionInputs(*(x.double() for x in values[:3]), values.scaling)
        for values in (student, teacher)
    ]
    seen = visible(exact[0], None, False, None)
    wanted = with_gradients(
        lambda s: probabilities_reference(s, exact[1], seen, divergence), exact[0]
    )
    single = AttentionInputs(*(x.float() for x in student[:3]), student.scaling)
    got = with_gradients(lambda s: probabilities_loss(s, teacher, divergence=divergence), single)
    for ours, theirs in zip(got[1:], wanted[1:], strict=True):
        assert relative(ours, theirs) < 1e-3


def test_a_head_that_ignores_position_has_no_scores_to_learn() -> None:
    # Adding a vector to all keys moves the scores of a row alike: the softmax does not see it.
    student, teacher = inputs(), inputs(seed=1)
    moved = student._replace(key=student.key + 3.0)
    torch.testing.assert_close(
        probabilities_loss(moved, teacher), probabilities_loss(student, teacher)
    )


def test_unknown_divergence() -> None:
    with pytest.raises(ValueError, match="divergence must be one of kl_div, mse, but it is 'kl'"):
        probabilities_loss(inputs(), inputs(), divergence="kl")


# ---- relations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("relation_heads", [1, 3, 6])
def test_relations_equal_minilm(relation_heads: int, causal: bool, mask: str) -> None:
    # 4 heads of 3 against 6 heads of 5, two heads of the student's keys and values
    student, teacher = inputs(4, 3, key_heads=2), inputs(6, 5, seed=1)
    valid = token_mask(mask)
    seen = visible(student, valid, causal, None)
    agree(
        with_gradients(
            lambda s: relations_loss(
                s, teacher, relation_heads=relation_heads, token_mask=valid, causal=causal
            ),
            student,
            parts=3,
        ),
        with_gradients(
            lambda s: relations_reference(s, teacher, relation_heads, seen), student, parts=3
        ),
    )


def test_tokens_are_related_that_any_head_relates() -> None:
    student, teacher, allowed = inputs(), inputs(head_dim=3, seed=1), pair_mask("random")
    assert allowed is not None
    seen = visible(student, None, False, allowed.any(dim=1)[:, None])
    agree(
        with_gradients(
            lambda s: relations_loss(s, teacher, relation_heads=4, pair_mask=allowed), student, 3
        ),
        with_gradients(lambda s: relations_reference(s, teacher, 4, seen), student, 3),
    )


def test_gradient_of_relations_by_finite_differences() -> None:
    student, teacher = trained(inputs(2, 2, length=5)), inputs(1, 6, length=5, seed=1)

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return relations_loss(
            AttentionInputs(query, key, value, 1.0),
            teacher,
            relation_heads=2,
            token_mask=token_mask("holes", 5),
        )

    assert torch.autograd.gradcheck(loss, student[:3])


@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_relation_counts(part: str) -> None:
    teacher = inputs()
    student = teacher._replace(**{part: inputs(seed=1).query})
    value, *gradients = with_gradients(
        lambda s: relations_loss(s, teacher, relation_heads=4), student, parts=3
    )
    assert value > 0.1
    for name, gradient in zip(PARTS, gradients, strict=True):
        assert (gradient.abs().max() > 1e-3) == (name == part)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (5, "relation_heads must divide the width of student.query, 16, but it is 5"),
        (8, "relation_heads must divide the width of teacher.query, 12, but it is 8"),
        (0, "relation_heads must divide the width of student.query, 16, but it is 0"),
    ],
)
def test_relation_heads_that_do_not_divide(heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relations_loss(inputs(), inputs(4, 3), relation_heads=heads)


# ---- maps that models computed -----------------------------------------------------------------


def maps(seed: int) -> Tensor:
    """Probabilities of 3 rows, 2 heads and 5 positions, with zeros as dropout leaves them."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(3, 2, 5, 5, generator=generator).softmax(dim=-1)
    return found.masked_fill(torch.rand(found.shape, generator=generator) < 0.2, 0.0)


def one_map(student: float, teacher: float, divergence: str) -> float:
    tiny = float(torch.finfo(torch.float32).tiny)
    if divergence == "mse":
        return (student - teacher) ** 2
    return teacher * (math.log(max(teacher, tiny)) - math.log(max(student, tiny)))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_maps_are_summed_over_valid_pairs(divergence: str, mask: str) -> None:
    student, teacher = maps(0), maps(1)
    valid = token_mask(mask, 5)
    found = attention_maps_loss(student, teacher, token_mask=valid, divergence=divergence)
    counted = torch.ones(3, 5, dtype=torch.bool) if valid is None else valid
    wanted = sum(
        one_map(float(student[row, head, q, k]), float(teacher[row, head, q, k]), divergence) / 2
        for row in range(3)
        for head in range(2)
        for q in range(5)
        for k in range(5)
        if counted[row, q] and counted[row, k]
    )
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_only_the_student_learns_from_maps() -> None:
    student, teacher = maps(0).requires_grad_(), maps(1).requires_grad_()
    attention_maps_loss(student, teacher, divergence="mse").backward()
    assert student.grad is not None and teacher.grad is None


def test_maps_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="attention_loss_weight=0"):
        attention_maps_loss(maps(0), maps(0)[:, :1], divergence="mse")
