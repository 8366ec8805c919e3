"""Which layers learn from each other."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.layers.mapping import LAYER_MAPPINGS, LayerPair, describe, layer_pairs

quick = settings(deadline=None, max_examples=100, derandomize=True)
# Layers of the student, and of a teacher with as many or more.
depths = st.tuples(st.integers(1, 40), st.integers(0, 60)).map(lambda ab: (ab[0], sum(ab)))


def teacher_layers(mapping: Any, student: int, teacher: int) -> list[int]:
    pairs = layer_pairs(mapping, student_layers=student, teacher_layers=teacher)
    assert all(isinstance(pair, LayerPair) for pair in pairs)
    assert [pair.student for pair in pairs] == list(range(student + 1))
    return [pair.teacher for pair in pairs]


@pytest.mark.parametrize(
    ("mapping", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, [0, 3, 6, 9, 12]),
        ("uniform", 6, 12, [0, 2, 4, 6, 8, 10, 12]),
        ("uniform", 5, 12, [0, 2, 5, 7, 10, 12]),
        ("uniform", 2, 3, [0, 2, 3]),
        ("uniform", 1, 12, [0, 12]),
        ("uniform", 3, 3, [0, 1, 2, 3]),
        ("last", 4, 12, [0, 9, 10, 11, 12]),
        ("first", 4, 12, [0, 1, 2, 3, 4]),
        (" last ", 1, 2, [0, 2]),
        ([2, 4, 6], 3, 6, [0, 2, 4, 6]),
        ((6, 6, 1), 3, 6, [0, 6, 6, 1]),
        ("2, 4,6", 3, 6, [0, 2, 4, 6]),
        ("[2, 4, 6]", 3, 6, [0, 2, 4, 6]),
        ("6", 1, 6, [0, 6]),
        ("1,1,2,2", 4, 2, [0, 1, 1, 2, 2]),
    ],
)
def test_by_hand(mapping: Any, student: int, teacher: int, expected: list[int]) -> None:
    assert teacher_layers(mapping, student, teacher) == expected


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({3: 6, 1: 2}, [(1, 2), (3, 6)]),
        ("3:6, 1:2", [(1, 2), (3, 6)]),
        ('{"3": 6, "1": 2}', [(1, 2), (3, 6)]),
        ({"1": 5}, [(1, 5)]),
        ({0: 0, 2: 3}, [(0, 0), (2, 3)]),
        ("0:0", [(0, 0)]),
    ],
)
def test_a_dict_says_all_there_is(mapping: Any, expected: list[tuple[int, int]]) -> None:
    assert layer_pairs(mapping, student_layers=3, teacher_layers=6) == expected


@quick
@given(depths=depths)
@pytest.mark.parametrize("name", LAYER_MAPPINGS)
def test_named_mappings_rise_within_the_teacher(name: str, depths: tuple[int, int]) -> None:
    student, teacher = depths
    layers = teacher_layers(name, student, teacher)
    assert layers[0] == 0
    assert all(low < high for low, high in pairwise(layers))
    assert layers[-1] <= teacher
    assert layers[-1] == teacher or name == "first"


@quick
@given(depths=depths)
def test_uniform_is_the_nearest_layer(depths: tuple[int, int]) -> None:
    student, teacher = depths
    for i, layer in enumerate(teacher_layers("uniform", student, teacher)):
        assert -Fraction(1, 2) < layer - Fraction(i * teacher, student) <= Fraction(1, 2)
        if teacher % student == 0:
            assert layer == i * teacher // student


@quick
@given(
    layers=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    chosen=st.dictionaries(st.integers(1, 6), st.integers(1, 9), min_size=1),
)
def test_texts_mean_the_same_as_what_they_write(layers: list[int], chosen: dict[int, int]) -> None:
    def read(mapping: Any, student: int) -> list[LayerPair]:
        return layer_pairs(mapping, student_layers=student, teacher_layers=9)

    expected = read(layers, len(layers))
    assert read(",".join(map(str, layers)), len(layers)) == expected
    assert read(json.dumps(layers), len(layers)) == expected
    expected = read(chosen, 6)
    assert read(",".join(f"{a}:{b}" for a, b in chosen.items()), 6) == expected
    assert read(json.dumps(chosen), 6) == expected
    # What was made can be given again.
    assert read(dict(expected), 6) == expected


@pytest.mark.parametrize("name", LAYER_MAPPINGS)
def test_student_deeper_than_the_teacher(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*teacher has 4 and the student 6") as caught:
        layer_pairs(name, student_layers=6, teacher_layers=4)
    # What the message says to use, works.
    for offer in ("1,1,2,3,3,4", "6:4"):
        assert f"layer_mapping='{offer}'" in str(caught.value)
        layer_pairs(offer, student_layers=6, teacher_layers=4)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("uniformly", "'uniformly' is no layer mapping.*'uniform', 'last', 'first'"),
        ("", "no layer mapping"),
        ("1:2,4", "no layer mapping"),
        ("1:2:3", "no layer mapping"),
        ("[2, 4", "no layer mapping"),
        ([2.0, 4.0, 6.0], "no layer mapping"),
        ([True, 2, 3], "no layer mapping"),
        ({"one": 2}, "no layer mapping"),
        ({1: None}, "no layer mapping"),
        (6, "no layer mapping"),
        ("1:2,1:3", "each student layer once"),
        ('{"1": 2, "1": 3}', "each student layer once"),
        ({1: 2, "1": 3}, "names a student layer twice"),
        ({}, "names no layer"),
        ("2,4", "names 2 teacher layers, but the student has 3 layers.*'3:6'"),
        ([0, 2, 4, 6], "names 4 teacher layers.*without the embeddings"),
        ("2,4,7", "layer 7 of the teacher, which has layers 1 to 6"),
        ("4:2", "layer 4 of the student, which has layers 1 to 3"),
        ("1:-1", "layer -1 of the teacher"),
        ([0, 2, 4], "student layer 1 with teacher layer 0"),
        ("0:2", "student layer 0 with teacher layer 2"),
    ],
)  # fmt: skip
def test_bad_mappings(mapping: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        layer_pairs(mapping, student_layers=3, teacher_layers=6)
    assert f"layer_mapping={mapping!r}" in str(caught.value)


@pytest.mark.parametrize(("student", "teacher"), [(0, 6), (3, 0)])
def test_models_without_layers(student: int, teacher: int) -> None:
    with pytest.raises(ValueError, match="_layers must be at least 1, but it is 0"):
        layer_pairs("uniform", student_layers=student, teacher_layers=teacher)


def test_description_says_when_depths_do_not_divide() -> None:
    def text(mapping: Any, student: int) -> str:
        pairs = layer_pairs(mapping, student_layers=student, teacher_layers=12)
        return describe(pairs, mapping, student_layers=student, teacher_layers=12)

    rounded = text("uniform", 5)
    assert "0 from 0, 1 from 2, 2 from 5, 3 from 7, 4 from 10, 5 from 12." in rounded
    assert "12 layers do not divide by the student's 5" in rounded
    for exact in (text("uniform", 6), text("last", 5), text("1:2", 5)):
        assert "divide" not in exact and "\n" not in exact
