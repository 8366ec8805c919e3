"""The demo trains in bfloat16 where that is faster, and only there."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_distill.cli import demo
from hf_distill.demo.precision import bfloat16_pays


@pytest.mark.parametrize(
    ("milliseconds", "pays"),
    [
        ({torch.bfloat16: 3, torch.float32: 30}, True),
        ({torch.bfloat16: 30, torch.float32: 3}, False),
        # Not clear enough for a second run to decide alike.
        ({torch.bfloat16: 28, torch.float32: 30}, False),
    ],
)
def test_a_cpu_is_measured(
    milliseconds: dict[torch.dtype, int], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_product(states: Tensor, weight: Tensor) -> None:
        assert states.dtype == weight.dtype
        time.sleep(milliseconds[states.dtype] / 1e3)

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(F, "linear", slow_product)
    assert bfloat16_pays() is pays


def test_an_accelerator_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(F, "linear", None)
    assert bfloat16_pays()


@pytest.mark.parametrize("pays", [True, False])
def test_the_trainings_use_what_pays(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.demo.precision.bfloat16_pays", lambda: pays)
    assert ("--bf16" in demo.common_options()) is pays
