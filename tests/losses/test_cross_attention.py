"""Attention between two texts, and with position biases, against full maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import (
    inputs,
    pair_mask,
    probabilities_reference,
    relative,
    scores_reference,
    token_mask,
    trained,
    visible,
)
from torch import Tensor

from hf_distill.losses import (
    AttentionInputs,
    probabilities_loss,
    relations_loss,
    scores_loss,
)
from hf_distill.losses.chunks import groups

QUERIES, KEYS = 9, 6
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "scores": (scores_loss, scores_reference),
    **{
        name: (
            lambda s, t, name=name, **options: probabilities_loss(s, t, divergence=name, **options),
            lambda s, t, seen, name=name: probabilities_reference(s, t, seen, name),
        )
        for name in ("kl_div", "mse")
    },
}


def crossed(keys: int = KEYS, **options: Any) -> AttentionInputs:
    """Nine queries that see six keys."""
    other = inputs(length=keys, **{**options, "seed": options.get("seed", 0) + 10})
    return inputs(**options)._replace(key=other.key, value=other.value)


def bias(batch: int, heads: int, queries: int, keys: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, queries, keys, generator=generator, dtype=torch.float64)


def found(loss: Callable[..., Tensor], student: AttentionInputs, *args: Any, **options: Any) -> Any:
    """Value, and the gradients of Q, K and the bias."""
    student = trained(student)
    value = loss(student, *args, **options)
    tensors = [x for x in (student.query, student.key, student.bias) if x is not None]
    return [value.detach(), *torch.autograd.grad(value, tensors)]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and relative(a, b) < 1e-12


@pytest.fixture(params=["cpu", "cuda"], autouse=True)
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample by sample as on a CPU, and all together as elsewhere."""
    if request.param != "cpu":
        monkeypatch.setattr(
            "hf_distill.losses.chunks.groups",
            lambda mask, batch, length, device: groups(
                mask, batch, length, torch.device(request.param)
            ),
        )


@pytest.mark.parametrize("few", [False, True], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("key_kind", ["right", "left", "holes", "empty"])
@pytest.mark.parametrize("kind", ["right", "left", "holes", "empty"])
@pytest.mark.parametrize("name", [*LOSSES, "scores, gram"])
def test_cross_attention_equals_full_maps(
    name: str, kind: str, key_kind: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if few:
        monkeypatch.setattr("hf_distill.losses.chunks._CPU_NUMBERS", 1)
        monkeypatch.setattr("hf_distill.losses.chunks._FEWEST_ROWS", 2)
    student, teacher = crossed(key_heads=2), crossed(head_dim=6, scaling=0.8, seed=1)
    valid, keys = token_mask(kind, QUERIES), token_mask(key_kind, KEYS)
    assert valid is not None and keys is not None
    if key_kind == "empty":
        keys = keys.flip(0)
        valid[1], keys[1] = True, False  # a sample whose queries see nothing
    seen = visible(student, valid, False, None, keys)
    loss, reference = LOSSES[name.partition(",")[0]]
    route = {} if name in LOSSES else {"route": "gram"}
    got = found(loss, student, teacher, token_mask=valid, key_mask=keys, **route)
    agree(got, found(reference, student, teacher, seen))
    fill = ~valid[:, None, :, None]
    assert (got[1].masked_select(fill) == 0).all()


@pytest.mark.parametrize("kind", ["right", "left", "holes"])
@pytest.mark.parametrize("key_kind", ["right", "left", "holes"])
@pytest.mark.parametrize("name", LOSSES)
def test_other_keys_than_queries_count_in_a_causal_layer(
    name: str, kind: str, key_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_distill.losses.chunks._CPU_NUMBERS", 1)
    monkeypatch.setattr("hf_distill.losses.chunks._FEWEST_ROWS", 2)
    student, teacher = inputs(), inputs(seed=1)
    valid, keys = token_mask(kind), token_mask(key_kind)
    assert keys is not None
    keys[0] = True
    loss, reference = LOSSES[name]
    got = found(loss, student, teacher, token_mask=valid, key_mask=keys, causal=True)
    agree(got, found(reference, student, teacher, visible(student, valid, True, None, keys)))


@pytest.mark.parametrize("sides", ["both", "student", "teacher"])
@pytest.mark.parametrize(("batch", "heads"), [(1, 4), (3, 1), (3, 4)])
@pytest.mark.parametrize("pairs", ["none", "random"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_biases_are_a_part_of_the_scores(
    name: str, causal: bool, pairs: str, batch: int, heads: int, sides: str
) -> None:
    student, teacher = inputs(), inputs(seed=1, head_dim=5)
    if sides != "teacher":
        student = student._replace(bias=bias(batch, heads, 9, 9, seed=2))
    if sides != "student":
        teacher = teacher._replace(bias=bias(batch, heads, 9, 9, seed=3))
    valid, allowed = token_mask("holes"), pair_mask(pairs)
    seen = visible(student, valid, causal, allowed)
    loss, reference = LOSSES[name]
    options: dict[str, Any] = {"token_mask": valid, "causal": causal, "pair_mask": allowed}
    agree(found(loss, student, teacher, **options), found(reference, student, teacher, seen))


@pytest.mark.parametrize("name", LOSSES)
def test_equal_biases_leave_nothing_of_equal_layers(name: str) -> None:
    layer = inputs(dtype=torch.float32)._replace(bias=bias(1, 4, 9, 9, seed=2).float() * 1e4)
    value, *gradients = found(LOSSES[name][0], layer, layer, token_mask=token_mask("holes"))
    assert value == 0 and all((gradient == 0).all() for gradient in gradients)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "keys": ({"token_mask": token_mask("right")}, "of 9 queries, and there are 6 keys: pass key_m"),
    "causal": ({"causal": True}, "causal=True needs as many queries as keys, .* 9 and 6"),
    "mask": (
        {"key_mask": torch.ones(3, 9, dtype=torch.bool)},
        r"key_mask must have .* \(3, 6\), but it has \(3, 9\)",
    ),
    "pairs": (
        {"pair_mask": torch.ones(1, 1, 9, 9, dtype=torch.bool)},
        r"pair_mask must have the shape \(3 or 1, 4 or 1, 9, 6\)",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", LOSSES)
def test_masks_that_do_not_fit_two_texts(name: str, bad: str) -> None:
    options, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        LOSSES[name][0](crossed(), crossed(seed=1), **options)


@pytest.mark.parametrize("name", LOSSES)
def test_keys_and_biases_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match=r"teacher.key has batch and length \(3, 5\), student.key"):
        LOSSES[name][0](crossed(), crossed(5, seed=1))
    wrong = crossed()._replace(bias=bias(1, 4, 9, 9, seed=2))
    with pytest.raises(ValueError, match=r"student.bias must have .*9, 6\), but it has \(1, 4, 9"):
        LOSSES[name][0](wrong, crossed(seed=1))
    with pytest.raises(ValueError, match="route='gram' needs .* a bias"):
        scores_loss(inputs()._replace(bias=bias(1, 4, 9, 9, seed=2)), inputs(), route="gram")


def test_relations_are_those_of_self_attention() -> None:
    with pytest.raises(ValueError, match="9 queries see 6 keys; choose attention_loss='scores'"):
        relations_loss(crossed(), crossed(seed=1), relation_heads=2)
