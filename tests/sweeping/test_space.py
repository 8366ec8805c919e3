from __future__ import annotations

import itertools
import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hf_distill.sweeping import SearchSpace, read_search_space


def as_float(name: str, raw: Any) -> Any:
    """What an option with numbers does."""
    return None if raw is None else float(raw)


def as_written(name: str, raw: Any) -> Any:
    return raw


def values(space: SearchSpace, name: str) -> list[Any]:
    """All values of one option."""
    return [one[name] for one in SearchSpace({name: space.options[name]}).combinations()]


def test_lists_and_ranges_are_read_in_their_order() -> None:
    space = read_search_space(
        {
            "temperature": ["2", 1],
            "learning-rate": {"low": "1e-5", "high": 1e-3, "log": True},
            "weight": {"low": 0, "high": 1, "step": 0.25},
        },
        as_float,
    )
    assert list(space.options) == ["temperature", "learning_rate", "weight"]
    assert space.options["temperature"] == CategoricalDistribution((2.0, 1.0))
    assert space.options["learning_rate"] == FloatDistribution(1e-5, 1e-3, log=True)
    assert space.options["weight"] == FloatDistribution(0.0, 1.0, step=0.25)
    assert values(space, "weight") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert space.size is None
    with pytest.raises(ValueError, match="learning_rate is a range without a step"):
        space.combinations()
    assert space.to_dict() == {
        "temperature": [2.0, 1.0],
        "learning_rate": {"low": 1e-5, "high": 1e-3, "step": None, "log": True},
        "weight": {"low": 0.0, "high": 1.0, "step": 0.25, "log": False},
    }


def test_whole_numbers_have_a_step() -> None:
    space = read_search_space({"steps": {"low": 2, "high": 5}}, as_written)
    assert values(space, "steps") == [2, 3, 4, 5]
    drawn = read_search_space({"steps": {"low": 2, "high": 8, "log": True}}, as_written)
    assert drawn.options["steps"] == IntDistribution(2, 8, log=True) and drawn.size is None
    assert drawn.to_dict() == {"steps": {"low": 2, "high": 8, "step": None, "log": True}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "must be a mapping of options"),
        ({}, "must be a mapping of options"),
        ([1], "must be a mapping of options"),
        ({"t": []}, "t is an empty list"),
        ({"t": 3}, "t must be a list of values or a mapping"),
        ({"t": [[1, 2]]}, "t has the value [1, 2]"),
        ({"t": [1, "1.0"]}, "t has the value 1.0 twice"),
        ({"a-b": [1], "a_b": [1]}, "a_b is there twice"),
        ({"t": {"low": 2, "high": 1}}, "low 2.0 and high 1.0"),
        ({"t": {"low": 1, "high": 1}}, "low 1.0 and high 1.0"),
        ({"t": {"low": 1}}, "t lacks 'high'"),
        ({"t": {"high": 1}}, "t lacks 'low'"),
        ({"t": {"low": 0, "high": 1, "log": True}}, "t has {'low': 0, 'high': 1, 'log': True}"),
        ({"t": {"low": 1, "high": 2, "log": 3}}, "log=3"),
        (
            {"t": {"low": 1, "high": 2, "log": True, "step": 1}},
            "'log': True, 'step': 1}: ",
        ),
        ({"t": {"low": 1, "high": 2, "step": 0}}, "the step 0.0; it must be a number above 0"),
        ({"t": {"low": 1, "high": 2, "step": -1}}, "the step -1.0"),
        ({"t": {"low": 0, "high": 1, "step": 0.3}}, "set high to 0.9"),
        ({"t": {"low": 1, "high": 2, "steps": 1}}, "t has 'steps'; a range has low, high"),
        ({"t": {"low": 1, "high": float("inf")}}, "t has inf in a range"),
    ],
)
def test_mistakes_are_named(content: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_search_space(content, as_float)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"t": {"low": "a", "high": "b"}}, "t has 'a' in a range"),
        ({"t": {"low": False, "high": True}}, "t has False in a range"),
        ({"t": {"low": 1, "high": 4, "step": 1.5}}, "it must be a whole number above 0"),
    ],
)
def test_ranges_are_of_numbers(content: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_search_space(content, as_written)


@given(
    low=st.integers(-50, 50), steps=st.integers(1, 40), step=st.sampled_from([0.1, 0.25, 0.3, 2.0])
)
def test_a_stepped_range_goes_from_low_to_high(low: int, steps: int, step: float) -> None:
    high = low + steps * step
    entry = {"low": low, "high": high, "step": step}
    space = read_search_space({"t": entry}, as_float)
    listed = values(space, "t")
    assert space.size == len(listed) == steps + 1
    assert listed[0] == low and listed[-1] == pytest.approx(high)
    gaps = {round(b - a, 9) for a, b in itertools.pairwise(listed)}
    assert gaps == {step}
    # What a sampler draws, rounding errors included, is one of them.
    assert [space.clean({"t": low + i * step})["t"] for i in range(steps + 1)] == listed


@given(
    st.lists(st.lists(st.integers(), min_size=1, max_size=4, unique=True), min_size=1, max_size=4)
)
def test_combinations_are_all_and_once(listed: list[list[int]]) -> None:
    space = SearchSpace({f"o{i}": CategoricalDistribution(some) for i, some in enumerate(listed)})
    combinations = [tuple(one.values()) for one in space.combinations()]
    assert combinations == list(itertools.product(*listed))
    assert space.size == len(combinations) == len(set(combinations))


def test_what_optuna_draws_is_cleaned_of_rounding_errors() -> None:
    space = SearchSpace(
        {"b": FloatDistribution(0, 1, step=0.1), "a": CategoricalDistribution(["x", None])}
    )
    drawn = space.clean({"a": None, "b": 0.1 + 0.2})
    assert drawn == {"b": 0.3, "a": None} and list(drawn) == ["b", "a"]


def test_each_value_is_checked_once_at_least() -> None:
    space = read_search_space({"a": [1, 2, 3], "b": {"low": 0, "high": 9}}, as_written)
    assert [tuple(one.values()) for one in space.one_by_one()] == [
        (1, 0), (2, 0), (3, 0), (1, 0), (1, 9)
    ]  # fmt: skip
    assert list(space.corners()) == [{"a": a, "b": b} for a in (1, 2, 3) for b in (0, 9)]
