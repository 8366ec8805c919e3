"""Schedules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.schedules import SCHEDULES, scheduled_value

numbers = st.floats(-1e6, 1e6)
shares = st.floats(0, 1)
quick = settings(deadline=None, max_examples=50, derandomize=True)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [4.0, 4.0, 4.0, 4.0, 4.0]),
        ("linear", [4.0, 3.5, 3.0, 2.5, 2.0]),
        ("cosine", [4.0, 3 + math.sqrt(0.5), 3.0, 3 - math.sqrt(0.5), 2.0]),
    ],
)
def test_by_hand(kind: str, expected: list[float]) -> None:
    values = [scheduled_value(kind, 4.0, 2.0, quarter / 4) for quarter in range(5)]
    assert values == pytest.approx(expected, abs=1e-15)


@quick
@given(start=numbers, end=numbers)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_ends_are_exact(kind: str, start: float, end: float) -> None:
    assert scheduled_value(kind, start, end, 0.0) == start
    assert scheduled_value(kind, start, end, 1.0) == end


@quick
@given(start=numbers, end=numbers, progress=shares)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_never_outside_start_and_end(kind: str, start: float, end: float, progress: float) -> None:
    value = scheduled_value(kind, start, end, progress)
    assert min(start, end) <= value <= max(start, end)
    assert isinstance(value, float)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_equal_ends_are_constant_to_the_last_bit(kind: str) -> None:
    values = {scheduled_value(kind, 0.1, 0.1, step / 997) for step in range(998)}
    assert values == {0.1}


@quick
@given(start=numbers, end=numbers, first=shares, second=shares)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_one_direction(kind: str, start: float, end: float, first: float, second: float) -> None:
    low, high = sorted((first, second))
    change = scheduled_value(kind, start, end, high) - scheduled_value(kind, start, end, low)
    assert change * math.copysign(1.0, end - start) >= -1e-9


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(
    ("outside", "inside"), [(-0.5, 0.0), (1.5, 1.0), (-math.inf, 0.0), (math.inf, 1.0)]
)
def test_progress_is_clamped(kind: str, outside: float, inside: float) -> None:
    assert scheduled_value(kind, 5.0, 1.0, outside) == scheduled_value(kind, 5.0, 1.0, inside)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("exponential", 1.0, 2.0, 0.5), r"kind .*constant, linear, cosine.*'exponential'"),
        (("linear", math.nan, 2.0, 0.5), r"start .*nan"),
        (("linear", 1.0, math.inf, 0.5), r"end .*inf"),
        (("linear", 1.0, 2.0, math.nan), r"progress .*NaN"),
    ],
)
def test_bad_values(values: tuple[str, float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduled_value(*values)
