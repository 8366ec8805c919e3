from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.augmentation.masking import passes, whole_tokens, windows


@given(st.integers(0, 500), st.integers(8, 90))
def test_windows_predict_every_token_once_and_with_context(length: int, longest: int) -> None:
    found = windows(length, longest)
    predicted = [token for w in found for token in range(w.first, w.last)]
    assert predicted == list(range(length))
    margin = longest // 4
    for w in found:
        assert 0 <= w.start <= w.first and w.last <= w.end <= length
        assert w.end - w.start == min(length, longest)
        assert w.first - w.start >= margin or w.start == 0
        assert w.end - w.last >= margin or w.end == length


@given(
    st.integers(1, 300).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)).map(sorted))
    ),
    st.integers(8, 90),
    st.sampled_from(["grouped", "single"]),
)
def test_passes_mask_every_place_once(
    text: tuple[int, list[int]], longest: int, masking: str
) -> None:
    length, places = text
    found = passes(7, length, places, longest=longest, masking=masking)
    assert sorted(token for one in found for token in one.tokens) == places
    for one in found:
        assert one.text == 7
        assert all(one.window.first <= token < one.window.last for token in one.tokens)
        if masking == "single":
            assert len(one.tokens) == 1
        else:
            share = len(one.tokens) / (one.window.end - one.window.start)
            assert share <= 0.15 or len(one.tokens) == 1


def test_grouped_masks_far_apart_words() -> None:
    found = passes(0, 100, list(range(0, 90, 2)), longest=128, masking="grouped")
    assert [len(one.tokens) for one in found] == [15, 15, 15]
    assert all(b - a == 6 for one in found for a, b in itertools.pairwise(one.tokens))


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [
        ("the town", [(0, 3), (3, 8)], {(0, 3): 0, (4, 8): 1}),
        ("ab", [(0, 1), (0, 1), (1, 2)], {(0, 1): 0, (1, 2): 2}),
        (" ", [(0, 1)], {}),
    ],
)
def test_whole_tokens(
    text: str, offsets: list[tuple[int, int]], expected: dict[tuple[int, int], int]
) -> None:
    assert whole_tokens(text, offsets) == expected
