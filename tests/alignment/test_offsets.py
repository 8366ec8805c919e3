"""Spans and mass: every character, every script, every kind of tokenizer."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.alignment.offsets import NOWHERE, move_mass, span_maps, trimmed_spans

TEXTS = [
    "Paris has been the capital of France since 987. It lies on the river Seine.",
    "  spaces   and\ttabs\n\nand lines  ",
    "Die Größe beträgt 1,5 km² – über 80 % der Łódź.",
    "Ich mag 🍕, 👨‍👩‍👧‍👦 und 🇩🇪!",
    "人口は二百万人です。東京は日本の首都です。",
    "שלום עולם, this is mixed עם עברית 123.",
    "مرحبا بالعالم",
    "é is e + ́; ﬁ ligature; İstanbul; ﷺ",
    "a </s> in the text, <mask>[SEP] and <|endoftext|>",
    "hello hellos helloes hell shell shells unhelpful",
]
KINDS = ["word_piece", "byte_level", "characters", "continued", "byte_fallback", "unigram"]


@cache
def made(kind: str) -> Any:
    return getattr(vocabularies, kind)()


def spans(kind: str, text: str) -> list[tuple[int, int] | None]:
    encoding = made(kind)(text, return_offsets_mapping=True)
    inside = [side is not None for side in encoding.sequence_ids(0)]
    return trimmed_spans(text, encoding["offset_mapping"], inside)


texts = st.one_of(
    st.sampled_from(TEXTS),
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3).map(" ".join),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_equal_tokenizers_give_the_identity(kind: str, text: str) -> None:
    own = spans(kind, text)
    expected = [NOWHERE if span is None else token for token, span in enumerate(own)]
    assert span_maps(own, own) == (expected, expected)


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", ["word_piece", "byte_level", "unigram"])
@settings(max_examples=15, deadline=None)
@given(text=texts)
def test_answers_start_and_end_where_the_students_labels_would(
    kind: str, other: str, text: str
) -> None:
    """A token of the teacher, as an answer, lands on the tokens that the student is labelled by."""
    theirs, ours = spans(kind, text), spans(other, text)
    starts, ends = span_maps(theirs, ours)
    for span, start, end in zip(theirs, starts, ends, strict=True):
        covering = [
            token
            for token, one in enumerate(ours)
            if span is not None and one is not None and one[0] < span[1] and one[1] > span[0]
        ]
        if not covering:
            assert (start, end) == (NOWHERE, NOWHERE)
            continue
        assert start in covering and end in covering
        twins = [token for token in covering if ours[token] == span]
        if not twins:
            assert (start, end) == (covering[0], covering[-1])
        else:
            assert start in twins and end in twins


def test_the_rule_by_hand() -> None:
    ours = [None, (0, 5), (6, 8), (8, 12), (13, 14), (13, 14)]
    theirs = [(0, 2), (2, 5), (5, 9), (6, 12), None, (13, 14), (13, 14), (20, 21)]
    starts, ends = span_maps(theirs, ours)
    # Inside a longer token; over two; a token that begins inside one of the teacher's gets no
    # start; bytes of one character in their order; beyond the window.
    assert starts == [1, 1, 2, 2, NOWHERE, 4, 5, NOWHERE]
    assert ends == [1, 1, 3, 3, NOWHERE, 4, 5, NOWHERE]
    assert span_maps([(13, 14)], ours) == ([4], [5])
    assert span_maps([(13, 14)] * 3, ours) == ([4] * 3, [5] * 3)


def test_white_space_is_no_part_of_a_token() -> None:
    found = trimmed_spans("a  bc ", [(0, 1), (1, 5), (2, 3), (5, 6), (0, 0)], [True] * 5)
    assert found == [(0, 1), (3, 5), None, None, None]
    assert trimmed_spans("ab", [(0, 2)], [False]) == [None]
    # All of it, however much there is, and nothing else.
    assert trimmed_spans("x   abc  y", [(1, 9), (1, 4), (4, 7)], [True] * 3) == [
        (4, 7),
        None,
        (4, 7),
    ]


def reference(
    logits: list[float], target: list[int], size: int, temperature: float
) -> tuple[list[float], float]:
    mass = [math.exp(z / temperature) for z in logits]
    total = sum(mass)
    moved = [0.0] * size
    for m, place in zip(mass, target, strict=True):
        if place >= 0:
            moved[place] += m / total
    kept = sum(moved)
    return [m / kept for m in moved], kept


@settings(max_examples=60, deadline=None)
@given(data=st.data(), temperature=st.floats(0.5, 10.0))
def test_mass_is_moved_and_kept(data: Any, temperature: float) -> None:
    length, size = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    logits = data.draw(st.lists(st.floats(-8, 8), min_size=length, max_size=length))
    place = st.integers(NOWHERE, size - 1)
    target = data.draw(st.lists(place, min_size=length, max_size=length))
    moved, kept = move_mass(
        torch.tensor([logits]), torch.tensor([target]), size, temperature=temperature
    )
    if all(one == NOWHERE for one in target):
        assert float(kept) == 0 and moved.tolist() == [[0.0] * size]
        return
    expected, share = reference(logits, target, size, temperature)
    found = (moved[0] / temperature).softmax(dim=-1)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert float(kept) == pytest.approx(share, rel=1e-4)
    assert float(found.sum()) == pytest.approx(1.0)


def test_large_logits_impossible_ones_and_faults() -> None:
    logits = torch.tensor([[1e4, -1e4, -torch.inf], [torch.nan, 0.0, 0.0], [-1e4, 1e4, 0.0]])
    target = torch.tensor([[0, 1, 1], [0, 1, 1], [0, NOWHERE, NOWHERE]])
    moved, kept = move_mass(logits, target, 3, temperature=2.0)
    assert (moved[0] / 2).softmax(-1).tolist() == [1.0, 0.0, 0.0]
    assert bool(moved[1].isnan().any()) and bool(kept[1].isnan())
    assert float(kept[2]) == 0.0 and not bool(moved[2].isnan().any())
