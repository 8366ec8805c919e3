"""State that is set for a while is afterwards as it was."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_distill.restoring import evaluating, preserve_rng_state, temporarily_set


class Limits:
    rows = 7  # of the class


def test_attributes_come_back_after_an_error() -> None:
    target = SimpleNamespace(first=1, second=2)
    with pytest.raises(KeyError), temporarily_set(target, first=10, third=3):
        assert vars(target) == {"first": 10, "second": 2, "third": 3}
        raise KeyError
    assert vars(target) == {"first": 1, "second": 2}


def test_what_a_class_defines_is_seen_again() -> None:
    limits = Limits()
    with temporarily_set(limits, rows=1):
        assert limits.rows == 1
    assert limits.rows == 7 and vars(limits) == {}


def test_entries_of_a_mapping() -> None:
    variables = {"KEPT": "1", "CHANGED": "2"}
    with temporarily_set(variables, CHANGED="3", NEW="4"):
        assert variables == {"KEPT": "1", "CHANGED": "3", "NEW": "4"}
    assert variables == {"KEPT": "1", "CHANGED": "2"}


def test_random_numbers_are_drawn_as_if_none_had_been() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    with preserve_rng_state():
        expected = draw()
    with pytest.raises(KeyError), preserve_rng_state():
        draw()
        raise KeyError
    assert draw() == expected


def test_each_module_gets_its_own_mode_back_also_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(ValueError, match="stop"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ValueError("stop")
    assert [module.training for module in model.modules()] == [True, True, False]
