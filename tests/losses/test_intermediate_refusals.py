"""What the losses on intermediate layers refuse, and what they say."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import LOSSES, MAPS, Loss, inputs, pair_mask
from torch import Tensor

from hf_distill.losses import AttentionInputs, probabilities_loss, scores_loss

COMPARED = [name for name in MAPS if name != "relations"]


@pytest.mark.parametrize("name", COMPARED)
def test_other_heads_are_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match="4 attention heads, the teacher's 6.*'relations'"):
        LOSSES[name](inputs(), inputs(6))


BAD_INPUTS: dict[str, tuple[AttentionInputs, str]] = {
    "length": (inputs(length=8), "teacher.query has batch and length .3, 8., student.query .3, 9."),
    "batch": (inputs(batch=2), "teacher.query has batch and length .2, 9., student.query .3, 9."),
    "integers": (
        inputs()._replace(key=torch.zeros(3, 4, 9, 4, dtype=torch.long)),
        "teacher.key must be floating-point",
    ),
    "axes": (
        inputs()._replace(value=torch.zeros(3, 9, 16)),
        r"teacher.value must be floating-point .* \(3, 9, 16\)",
    ),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("bad", BAD_INPUTS)
def test_inputs_that_do_not_fit(bad: str, name: str) -> None:
    teacher, message = BAD_INPUTS[bad]
    with pytest.raises(ValueError, match=message):
        LOSSES[name](inputs(), teacher)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (inputs(key_heads=3), "teacher.key has 3 heads, which do not divide the 4 heads"),
        (inputs()._replace(key=inputs(head_dim=5).key), "teacher.query has the head_dim 4"),
        (inputs(scaling=0.0), "teacher.scaling must be a number other than 0, but it is 0.0"),
        (inputs(scaling=math.nan), "teacher.scaling must be a number"),
    ],
)
def test_heads_that_do_not_fit(teacher: AttentionInputs, message: str, name: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOSSES[name](inputs(), teacher)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 9), "token_mask must be bool, but it is torch.float32"),
        (torch.ones(3, 8, dtype=torch.bool), r"= \(3, 9\), but it has \(3, 8\)"),
        (torch.ones(9, dtype=torch.bool), r"= \(3, 9\), but it has \(9,\)"),
    ],
)
def test_bad_token_masks(mask: Tensor, message: str, name: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOSSES[name](inputs(), inputs(), token_mask=mask)


@pytest.mark.parametrize("loss", [scores_loss, probabilities_loss])
def test_bad_pair_masks(loss: Loss) -> None:
    mask = pair_mask("random")
    assert mask is not None
    with pytest.raises(ValueError, match="pair_mask must be bool, but it is torch.float32"):
        loss(inputs(), inputs(), pair_mask=mask.float())
    for wrong in (mask[0, 0], mask[:2], mask[:, :2], mask[..., :8]):
        with pytest.raises(ValueError, match=r"\(3 or 1, 4 or 1, 9, 9\)"):
            loss(inputs(), inputs(), pair_mask=wrong)
