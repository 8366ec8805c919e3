from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_lms import TOKENIZERS, masked_lm
from torch import nn

from hf_distill.augmentation.forward import LogitsAtPlaces

ROWS = [[2, 9, 4, 30, 31, 4, 40, 3], [2, 4, 22, 3], [2, 11, 12, 13, 4, 3]]
PLACES = [(0, 2), (0, 5), (1, 1), (2, 4)]


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_the_logits_are_those_of_each_row_alone(architecture: str) -> None:
    model, _ = masked_lm(architecture)
    expected = []
    with torch.no_grad():
        for row, place in PLACES:
            expected.append(model(input_ids=torch.tensor([ROWS[row]])).logits[0, place])
    logits = LogitsAtPlaces(model, 0, ROWS[0])
    assert logits.head_at_places
    torch.testing.assert_close(logits(ROWS, PLACES), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_the_head_sees_only_the_places() -> None:
    model, _ = masked_lm()
    shapes: list[Any] = []
    model.cls.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    logits = LogitsAtPlaces(model, 0, ROWS[0])
    shapes.clear()
    logits(ROWS, PLACES)
    assert [tuple(shape[:2]) for shape in shapes] == [(1, len(PLACES))]


class _Neighbours(nn.Module):
    """A head that looks at the token before, too."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden + hidden.roll(1, dims=1))


class _Whole(nn.Module):
    """A head that fails if it does not get a batch."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if len(hidden) != 2:
            raise RuntimeError("where is the other row?")
        return self.head(hidden)


@pytest.mark.parametrize("head", [_Neighbours, _Whole])
def test_a_head_that_needs_all_tokens_gets_them(head: Any) -> None:
    model, _ = masked_lm()
    model.cls = head(model.cls)
    rows, places = ROWS[:2], PLACES[:3]
    logits = LogitsAtPlaces(model, 0, ROWS[0])
    assert not logits.head_at_places
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
    expected = torch.stack([whole[place] for place in places])
    torch.testing.assert_close(logits(rows, places), expected)
