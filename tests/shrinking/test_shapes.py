"""Shapes that a student can have, and the choice among them with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import model_for
from zoo import zoo_model

from hf_distill import create_student
from hf_distill.shrinking.shapes import (
    TIMED_AT_ONCE,
    Candidates,
    Shape,
    Target,
    candidate_shapes,
    choose_shape,
    random_model,
)

TASK = "question-answering"
TEACHER_MS = 100.0


class Clock:
    """Times shapes by a function; the teacher always takes as long."""

    def __init__(self, milliseconds: Callable[[Shape], float]) -> None:
        self.milliseconds = milliseconds
        self.calls: list[list[Shape]] = []

    def __call__(self, shapes: Sequence[Shape]) -> dict[Shape, tuple[float, float]]:
        self.calls.append(list(shapes))
        return {shape: (self.milliseconds(shape), TEACHER_MS) for shape in shapes}


@pytest.fixture(scope="module")
def teacher() -> Any:
    return model_for(
        TASK, seed=0, layers=6, width=64, num_attention_heads=8, intermediate_size=128
    ).eval()


@pytest.fixture(scope="module")
def candidates(teacher: Any) -> Candidates:
    return candidate_shapes(teacher, length=16)


def honest(candidates: Candidates) -> Clock:
    """A machine that takes as long as arithmetic says, and 5 ms more."""
    return Clock(lambda s: 5 + 95 / candidates.estimate(s))


def by_size(shape: Shape) -> float:
    """A divergence that is smaller for wider students, whatever their depth."""
    return 1.0 / shape.hidden_size


def test_every_candidate_is_a_student_with_the_promised_number_of_parameters(
    teacher: Any, candidates: Candidates
) -> None:
    assert candidates.teacher == Shape(6, 64, 128, 8)
    assert candidates.teacher not in candidates.shapes
    assert len(set(candidates.shapes)) == len(candidates.shapes) > 20
    depths = {shape.num_hidden_layers for shape in candidates.shapes}
    widths = {shape.hidden_size for shape in candidates.shapes}
    assert depths == {6, 4, 3, 2} and {64, 48, 32, 16} <= widths
    for shape in candidates.shapes[::5]:
        model = random_model(teacher, shape)
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert counted == candidates.parameters[shape]
        assert candidates.megabytes[shape] == pytest.approx(4 * counted / 1e6)
        config: Any = model.config
        assert (
            Shape(
                config.num_hidden_layers,
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
            )
            == shape
        )
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).start_logits
        assert torch.isfinite(logits).all()


def test_create_student_makes_the_shape(teacher: Any, candidates: Candidates) -> None:
    shape = next(s for s in candidates.shapes if (s.num_hidden_layers, s.hidden_size) == (3, 32))
    options = shape.options(candidates.teacher)
    rows = [{"input_ids": list(range(5, 5 + 16))} for _ in range(64)]
    student: Any = create_student(teacher, **options, calibration_data=rows, calibration_tokens=512)
    assert student.num_parameters() == candidates.parameters[shape]
    assert candidates.teacher.options(candidates.teacher) == {}


def test_the_slowest_come_first(candidates: Candidates) -> None:
    estimates = [candidates.estimate(shape) for shape in candidates.shapes]
    assert estimates == sorted(estimates) and estimates[0] > 1
    half = Shape(3, 64, 128, 8)
    assert candidates.estimate(half) == pytest.approx(2.0)


def test_families_that_cannot_be_narrowed_only_lose_layers() -> None:
    longt5 = zoo_model("summarization", "longt5", seed=0, layers=4, num_decoder_layers=4)
    found = candidate_shapes(longt5, length=8)
    assert [shape.num_hidden_layers for shape in found.shapes] == [3, 2, 1]
    assert {shape.hidden_size for shape in found.shapes} == {found.teacher.hidden_size}
    with pytest.raises(ValueError, match="hidden_size=8"):
        candidate_shapes(longt5, 8, {"hidden_size": 8})


def test_a_shorter_decoder_bounds_the_layers() -> None:
    bart = zoo_model("summarization", "bart", seed=0, layers=4, decoder_layers=2)
    found = candidate_shapes(bart, length=8).shapes
    assert {s.num_hidden_layers for s in found if s.hidden_size == 16} == {4, 2, 1}
    assert {s.num_hidden_layers for s in found if s.hidden_size == 8} == {4, 2, 1}
    kept = random_model(bart, next(s for s in found if s.num_hidden_layers == 4)).config
    assert (kept.encoder_layers, kept.decoder_layers) == (4, 2)


def test_a_gated_network_costs_as_many_maps_as_it_has() -> None:
    plain, gated = (
        candidate_shapes(
            zoo_model("summarization", "t5", seed=0, layers=2, feed_forward_proj=kind), 8
        )
        for kind in ("relu", "gated-gelu")
    )
    more = 2 * 16 * 32  # two layers have one more map of (16, 32)
    assert gated.costs[gated.teacher] - plain.costs[plain.teacher] == more


def test_a_teacher_that_cannot_be_cut() -> None:
    longt5 = zoo_model("summarization", "longt5", seed=0, layers=1, num_decoder_layers=1)
    found = candidate_shapes(longt5, length=8)
    with pytest.raises(ValueError, match="cannot be made smaller"):
        choose_shape(found, Target(2.0), honest(found), by_size)
    with pytest.raises(ValueError, match="albert"):
        candidate_shapes(zoo_model("text-classification", "albert", seed=0), 8)


def test_sizes_by_hand(teacher: Any) -> None:
    found = candidate_shapes(teacher, 8, {"num_hidden_layers": 2})
    assert {s.num_hidden_layers for s in found.shapes} == {2} and len(found.shapes) > 5
    only = candidate_shapes(teacher, 8, {"num_hidden_layers": 2, "hidden_size": 32}, search=False)
    assert only.shapes == [Shape(2, 32, 64, 4)]
    for name, value in (("hidden_size", 30), ("num_hidden_layers", 7), ("intermediate_size", 500)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            candidate_shapes(teacher, 8, {name: value}, search=False)
    with pytest.raises(ValueError, match="num_hidden_layers=6: these are the sizes of the teacher"):
        candidate_shapes(teacher, 8, {"num_hidden_layers": 6}, search=False)


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0])
def test_the_choice_reaches_the_target_and_is_the_nearest(
    speedup: float, candidates: Candidates
) -> None:
    clock = honest(candidates)
    best, table = choose_shape(candidates, Target(speedup), clock, by_size)
    assert best.speedup >= speedup
    made = [one for one in table if one.divergence is not None]
    assert 1 < len(made) <= 4 and best in made
    assert best.divergence == min(one.divergence or 0 for one in made)
    depths = [one.shape.num_hidden_layers for one in made]
    assert max(depths.count(depth) for depth in depths) <= 2
    skipped = [one for one in table if one.divergence is None and one.speedup >= speedup]
    for one in skipped:
        assert len(made) == 4 or depths.count(one.shape.num_hidden_layers) == 2
    assert all(len(shapes) <= TIMED_AT_ONCE for shapes in clock.calls)
    costs = [candidates.costs[one.shape] for one in table]
    assert costs == sorted(costs, reverse=True)


def test_few_are_timed(candidates: Candidates) -> None:
    clock = honest(candidates)
    choose_shape(candidates, Target(2.0), clock, by_size)
    timed = {shape for shapes in clock.calls for shape in shapes}
    assert len(timed) <= 2 * TIMED_AT_ONCE < len(candidates.shapes)


def test_a_machine_that_is_slower_than_arithmetic_is_timed_on(candidates: Candidates) -> None:
    clock = Clock(lambda s: 30 + 70 / candidates.estimate(s))
    best, _ = choose_shape(candidates, Target(2.0), clock, by_size)
    assert best.speedup >= 2.0 and len(clock.calls) > 1


def test_two_shallow_shapes_are_not_enough(candidates: Candidates) -> None:
    """The first that reach the target are shallow and far from the teacher; deeper ones follow."""

    def milliseconds(shape: Shape) -> float:
        narrow = shape.hidden_size * shape.intermediate_size <= 32 * 32
        return 40.0 if shape.num_hidden_layers == 2 or narrow else 60.0

    clock, calls_until = Clock(milliseconds), {}

    def divergence(shape: Shape) -> float:
        calls_until[shape] = len(clock.calls)
        return 1.0 / shape.num_hidden_layers

    best, table = choose_shape(candidates, Target(2.0), clock, divergence)
    assert best.shape.num_hidden_layers > 2
    assert sum(one.divergence is not None for one in table) == 4
    # Nothing depends on the times of further shapes of two layers.
    shallow = [calls for shape, calls in calls_until.items() if shape.num_hidden_layers == 2]
    later = [shape for shapes in clock.calls[max(shallow) :] for shape in shapes]
    assert len(shallow) == 2 and later
    assert all(shape.num_hidden_layers > 2 for shape in later)


def test_luck_does_not_count(candidates: Candidates) -> None:
    """A shape that is fast once is timed again, and the second time is what is predicted."""
    seen: set[Shape] = set()

    def lucky(shape: Shape) -> float:
        own = 5 + 95 / candidates.estimate(shape)
        first = shape not in seen
        seen.add(shape)
        return 0.8 * own if first else own

    best, table = choose_shape(candidates, Target(2.0), Clock(lucky), by_size)
    own = 5 + 95 / candidates.estimate(best.shape)
    assert best.milliseconds == pytest.approx(own) and best.speedup >= 2.0
    assert any(one.divergence is None and one.speedup < 2.0 for one in table)


def test_a_shape_that_only_just_reaches_the_target_is_not_chosen(candidates: Candidates) -> None:
    just, clearly = candidates.shapes[-2:]
    clock = Clock({just: 100 / 2.15, clearly: 100 / 2.19}.__getitem__)
    narrowed = replace(candidates, shapes=[just, clearly])
    nearer = {just: 0.1, clearly: 0.2}
    with pytest.raises(ValueError, match=r"speedup=2.*10% to spare.*2\.19"):
        choose_shape(narrowed, Target(2.0), clock, nearer.__getitem__)
    clock = Clock({just: 100 / 2.15, clearly: 100 / 2.25}.__getitem__)
    best, _ = choose_shape(narrowed, Target(2.0), clock, nearer.__getitem__)
    assert best.shape == clearly


def test_a_target_that_no_shape_reaches_names_the_fastest(candidates: Candidates) -> None:
    fastest = candidates.shapes[-1]
    clock = Clock(lambda s: 40.0 if s == fastest else 60.0)
    with pytest.raises(ValueError, match="speedup=3") as raised:
        choose_shape(candidates, Target(3.0), clock, by_size)
    assert str(fastest) in str(raised.value) and "2.50" in str(raised.value)
    with pytest.raises(ValueError, match="speedup=1000"):  # not even by arithmetic
        choose_shape(candidates, Target(1000.0), clock, by_size)


def test_a_refusal_names_the_sizes_that_were_given(teacher: Any) -> None:
    """Without them there might be a student."""
    found = candidate_shapes(teacher, 16, {"num_hidden_layers": 3, "hidden_size": 64})
    given = "with num_hidden_layers=3, hidden_size=64"
    for target in (Target(99.0), Target(max_parameters=10)):
        with pytest.raises(ValueError, match=f"teacher {given}") as raised:
            choose_shape(found, target, honest(found), by_size)
        assert "leave num_hidden_layers and hidden_size out, or" in str(raised.value)

    def never(shape: Shape) -> float:
        raise ValueError("too few tokens")

    for target, reaching in ((Target(), ""), (Target(1.2), " of a shape that reaches the target")):
        with pytest.raises(ValueError, match=f"^No student {given}{reaching} can be made: too few"):
            choose_shape(found, target, honest(found), never)


def test_equal_divergences_have_an_order(candidates: Candidates) -> None:
    best, table = choose_shape(candidates, Target(2.0), honest(candidates), lambda _: 0.5)
    made = [one.shape for one in table if one.divergence is not None]
    assert best.shape == max(made)


def test_a_shape_of_which_no_student_can_be_made_is_left_out(candidates: Candidates) -> None:
    def divergence(shape: Shape) -> float:
        if shape.hidden_size < 64:
            raise ValueError("calibration_data has 3 tokens")
        return 2.0

    best, table = choose_shape(candidates, Target(2.0), honest(candidates), divergence)
    assert best.shape.hidden_size == 64
    assert {one.left_out for one in table} >= {"calibration_data has 3 tokens"}

    def never(shape: Shape) -> float:
        raise ValueError("calibration_data has 3 tokens")

    with pytest.raises(ValueError, match="3 tokens"):
        choose_shape(candidates, Target(2.0), honest(candidates), never)


def test_bounds_on_the_size(candidates: Candidates) -> None:
    most = candidates.parameters[Shape(3, 48, 96, 6)]
    best, table = choose_shape(candidates, Target(max_parameters=most), honest(candidates), by_size)
    assert all(one.parameters <= most for one in table)
    assert most in [one.parameters for one in table]
    megabytes = 4 * most / 1e6
    same, _ = choose_shape(candidates, Target(max_size_mb=megabytes), honest(candidates), by_size)
    assert same == best
    both, _ = choose_shape(candidates, Target(5.0, most), honest(candidates), by_size)
    assert both.speedup >= 5 and both.parameters <= most
    least = min(candidates.parameters.values())
    with pytest.raises(ValueError, match=f"max_parameters=10.*{least:,}"):
        choose_shape(candidates, Target(max_parameters=10), honest(candidates), by_size)
    with pytest.raises(ValueError, match=r"^max_size_mb=0\.001"):
        target = Target(max_parameters=most, max_size_mb=0.001)
        choose_shape(candidates, target, honest(candidates), by_size)


def test_without_enough_rows_for_a_narrow_student_a_shallow_one_is_chosen(
    candidates: Candidates,
) -> None:
    """Copies of layers are reached although all that is faster cannot be made."""

    def divergence(shape: Shape) -> float:
        if shape.options(candidates.teacher).keys() - {"num_hidden_layers"}:
            raise ValueError("too few tokens")
        return 1.0

    best, _ = choose_shape(candidates, Target(2.0), honest(candidates), divergence)
    assert set(best.shape.options(candidates.teacher)) == {"num_hidden_layers"}
