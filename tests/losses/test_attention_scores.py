"""The loss between attention scores against full maps, by both routes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import (
    MASKS,
    inputs,
    near,
    pair_mask,
    relative,
    scores,
    scores_reference,
    token_mask,
    trained,
    visible,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hf_distill.losses import AttentionInputs, scores_loss
from hf_distill.losses.attention_scores import faster_route
from hf_distill.losses.chunks import Group, chunks

HEADS = {
    "equal": ({}, {}),
    "other scaling": ({}, {"scaling": 0.9}),
    "grouped keys": ({"key_heads": 2}, {}),
    "grouped keys, other groups": ({"key_heads": 1}, {"key_heads": 2}),
    "wider teacher": ({}, {"head_dim": 6}),
    "narrower teacher": ({"key_heads": 2}, {"head_dim": 3, "scaling": 0.7}),
}
EXACT = 1e-13


def value_and_gradients(
    student: AttentionInputs, teacher: AttentionInputs, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    student = trained(student)
    loss = scores_loss(student, teacher, **options)
    return loss.detach(), *torch.autograd.grad(loss, (student.query, student.key))


def wanted(
    student: AttentionInputs,
    teacher: AttentionInputs,
    mask: Tensor | None = None,
    causal: bool = False,
    pairs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    student = trained(student)
    loss = scores_reference(student, teacher, visible(student, mask, causal, pairs))
    return loss.detach(), *torch.autograd.grad(loss, (student.query, student.key))


# ---- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("route", ["gram", "rows"])
def test_both_routes_equal_full_maps(route: str, heads: str, mask: str) -> None:
    student, teacher = inputs(**HEADS[heads][0]), inputs(**HEADS[heads][1], seed=1)
    valid = token_mask(mask)
    got = value_and_gradients(student, teacher, token_mask=valid, route=route)
    for ours, theirs in zip(got, wanted(student, teacher, valid), strict=True):
        assert relative(ours, theirs) < EXACT


@pytest.mark.parametrize("mask", ["none", "holes", "empty"])
@pytest.mark.parametrize("heads", ["equal", "narrower teacher"])
@pytest.mark.parametrize("pairs", ["none", "window", "random"])
@pytest.mark.parametrize("causal", [False, True])
def test_hidden_pairs(causal: bool, pairs: str, heads: str, mask: str) -> None:
    student, teacher = inputs(**HEADS[heads][0]), inputs(**HEADS[heads][1], seed=1)
    valid, seen = token_mask(mask), pair_mask(pairs)
    got = value_and_gradients(student, teacher, token_mask=valid, causal=causal, pair_mask=seen)
    for ours, theirs in zip(got, wanted(student, teacher, valid, causal, seen), strict=True):
        assert relative(ours, theirs) < EXACT


@pytest.mark.parametrize(("route", "causal"), [("gram", False), ("rows", False), ("rows", True)])
def test_many_chunks_equal_one(route: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = inputs(length=40), inputs(length=40, head_dim=3, seed=1)
    mask = token_mask("holes", 40)
    options = {"token_mask": mask, "causal": causal, "route": route}
    one = value_and_gradients(student, teacher, **options)
    monkeypatch.setattr("hf_distill.losses.chunks._CPU_NUMBERS", 1)
    monkeypatch.setattr("hf_distill.losses.chunks._FEWEST_ROWS", 7)
    cut = [
        rows.stop - rows.start
        for rows in chunks(Group(slice(0, 1), slice(0, 40), None), 1, student.query.device)
    ]
    assert len(cut) == 6 and sum(cut) == 40
    for ours, theirs in zip(value_and_gradients(student, teacher, **options), one, strict=True):
        assert relative(ours, theirs) < EXACT


@pytest.mark.parametrize("route", ["gram", "rows"])
def test_gradient_by_finite_differences(route: str) -> None:
    student, teacher = trained(inputs(2, 3, key_heads=1, length=5)), inputs(2, 2, length=5, seed=1)
    mask = token_mask("holes", 5)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        values = student._replace(query=query, key=key)
        return scores_loss(values, teacher, token_mask=mask, route=route)

    assert torch.autograd.gradcheck(loss, (student.query, student.key))


def test_equals_tinybert_without_padded_queries() -> None:
    # TinyBERT's own loss: scores with -10000 added for padding, small ones set to 0, F.mse_loss.
    student, teacher = inputs(), inputs(seed=1)

    def block(mask: Tensor, queries: Tensor) -> Tensor:
        maps = []
        for values in (student, teacher):
            map_ = scores(values) + (1.0 - mask[:, None, None, :].double()) * -10000.0
            map_ = torch.where(map_ <= -1e2, torch.zeros_like(map_), map_)
            # Padded queries count in TinyBERT; not here.
            maps.append(map_ * queries[:, None, :, None])
        return F.mse_loss(*maps)

    for kind in ("none", "right", "holes"):
        mask = token_mask(kind)
        valid = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask
        theirs = block(valid, valid)
        ours = scores_loss(student, teacher, token_mask=mask) / (3 * 9 * 9)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 12),
    key_heads=st.sampled_from([1, 2, 4]),
    dims=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
)
def test_routes_agree_whatever_the_shape(
    batch: int, length: int, key_heads: int, dims: tuple[int, int], data: Any
) -> None:
    shape = {"batch": batch, "length": length}
    student = inputs(4, dims[0], key_heads=key_heads, **shape)
    teacher = inputs(4, dims[1], seed=1, **shape)
    flags = data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    mask = torch.tensor(flags).view(batch, length)
    gram, rows = (
        value_and_gradients(student, teacher, token_mask=mask, route=route)
        for route in ("gram", "rows")
    )
    for ours, theirs in zip(gram, rows, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# ---- near convergence --------------------------------------------------------------------------


def rotated(values: AttentionInputs) -> AttentionInputs:
    """Other Q and K with the same scores."""
    generator = torch.Generator().manual_seed(9)
    size = values.query.shape[-1]
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return AttentionInputs(*((x.double() @ turn).to(x.dtype) for x in values[:3]), values.scaling)


def widened(values: AttentionInputs) -> AttentionInputs:
    """Other Q and K with the same scores, and twice the head_dim."""
    generator = torch.Generator().manual_seed(9)
    size = values.query.shape[-1]
    turn = torch.linalg.qr(torch.randn(2 * size, size, generator=generator, dtype=torch.float64))[0]
    return AttentionInputs(*((x.double() @ turn.T).to(x.dtype) for x in values[:3]), values.scaling)


@pytest.mark.parametrize("route", ["gram", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["same basis", "rotated", "wider teacher"])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_precise_within_a_thousandth(
    kind: str, dtype: torch.dtype, route: str, offset: float
) -> None:
    teacher = inputs(2, 64, batch=2, length=160, scaling=0.125)
    shift = inputs(2, 64, batch=1, length=1, seed=4)
    moved = (x + offset * y for x, y in zip(teacher[:3], shift[:3], strict=True))
    teacher = AttentionInputs(*moved, teacher.scaling)
    student = near(teacher, 1e-3)
    teacher = {"same basis": lambda x: x, "rotated": rotated, "wider teacher": widened}[kind](
        teacher
    )
    student, teacher = (
        AttentionInputs(*(x.to(dtype) for x in values[:3]), values.scaling)
        for values in (student, teacher)
    )
    exact_student, exact_teacher = (
        AttentionInputs(*(x.double() for x in values[:3]), values.scaling)
        for values in (student, teacher)
    )
    target = trained(exact_student)
    map_error = scores(target) - scores(exact_teacher)
    exact = map_error.square().sum() / 2
    assert 1e-4 < relative(scores(exact_student), scores(exact_teacher)) < 5e-3
    gradients = torch.autograd.grad(exact, (target.query, target.key))
    # In float32 leaves the same numbers get a gradient that is not rounded to half precision.
    single = AttentionInputs(*(x.float() for x in student[:3]), student.scaling)
    value, *got = value_and_gradients(single, teacher, route=route)
    assert relative(value, exact.detach()) < 1e-3
    for ours, theirs in zip(got, gradients, strict=True):
        assert relative(ours, theirs) < (1e-5 if kind == "same basis" else 3e-4)
    _, *rounded = value_and_gradients(student, teacher, route=route)
    for ours, theirs in zip(rounded, gradients, strict=True):
        assert ours.dtype == dtype
        assert relative(ours, theirs.to(dtype)) < 1e-3


@pytest.mark.parametrize("route", ["gram", "rows"])
def test_zero_at_equality(route: str) -> None:
    teacher = inputs(dtype=torch.float32)
    loss, *gradients = value_and_gradients(teacher, teacher, route=route)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_never_negative_at_equal_scores_from_other_vectors() -> None:
    teacher = inputs(head_dim=32, length=50, dtype=torch.float32)
    loss, *_ = value_and_gradients(teacher, rotated(teacher), route="gram")
    size = scores(teacher).square().sum()
    assert 0 <= loss < 1e-10 * size


# ---- the choice of the route -------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["cpu", "cuda", "xpu"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_rows_for_short_and_gram_for_long(head_dim: int, device_type: str) -> None:
    routes = [faster_route(length, head_dim, head_dim, device_type) for length in range(8, 2048, 8)]
    assert routes[0] == "rows" and routes[-1] == "gram"
    change = routes.index("gram")
    assert set(routes[change:]) == {"gram"}
    assert head_dim < 8 * change < 5 * head_dim


def test_measured_crossing_on_a_cpu() -> None:
    assert faster_route(128, 64, 64) == "rows"
    assert faster_route(256, 64, 64) == "gram"
    assert faster_route(96, 32, 32) == "rows"
    assert faster_route(192, 32, 32) == "gram"


def test_auto_takes_the_route_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("loss_over_rows", "_by_gram"):
        monkeypatch.setattr(
            f"hf_distill.losses.attention_scores.{name}",
            lambda *arguments, name=name: taken.append(name),
        )
    short, long = inputs(length=4), inputs(length=400)
    scores_loss(short, short)
    scores_loss(long, long)
    scores_loss(long, long, causal=True)
    scores_loss(long, long, pair_mask=torch.ones(1, 1, 400, 400, dtype=torch.bool))
    scores_loss(long._replace(bias=torch.zeros(1, 1, 400, 400)), long)
    assert taken == ["loss_over_rows", "_by_gram", *["loss_over_rows"] * 3]


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route": "fast"}, "route must be one of auto, gram, rows, but it is 'fast'"),
        ({"route": "gram", "causal": True}, "route='gram' needs all pairs"),
        (
            {"route": "gram", "pair_mask": torch.ones(1, 1, 9, 9, dtype=torch.bool)},
            "route='gram' needs all pairs",
        ),
    ],
)
def test_bad_routes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores_loss(inputs(), inputs(), **options)
