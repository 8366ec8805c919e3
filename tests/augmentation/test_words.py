from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.augmentation.words import (
    Fit,
    article_before,
    case_pattern,
    ending,
    fit_case,
    is_replaceable,
    sounds_like_a_vowel,
    word_spans,
)

TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(
            ["can't", "U.S.", '"river"', "``", "''", '"', "e-mail", "a@b.com", "(town)", "3.14",
             "北京大学", "שלום", "😀", "the", "\u200d", "don’t", "http://x.org/a", "naïve", "\n"]
        )
    ).map(" ".join),
)  # fmt: skip


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Paris lies on the Seine. It is big.", "Paris lies on the Seine It is big"),
        ("(The) \"old\" 'stone' bridge, yes!", "The old stone bridge yes"),
        ("He can't, won't and they've gone", "He and gone"),
        ("the king's crown and the dogs’ bowl", "the king crown and the dogs bowl"),
        ("the U.S. army, e.g. at 5pm or 3.14", "the army at or"),
        ("mail me@home.org or http://www.home.org/a or www.home.org", "mail or or"),
        ("a well-known e-mail, state-of-the-art", "well-known e-mail state-of-the-art"),
        ("and/or snake_case #tag @name C++", ""),
        ("path\\name king's/town lake's_x river-x/y -river w-river", "river w-river"),
        ("naïve Café Größe", "naïve Café Größe"),
        ("שלום עולם и мир", "שלום עולם мир"),
        ("北京大学在北京 東京タワー ภาษาไทย", ""),
        ("서울은 수도이다", "서울은 수도이다"),
        ("😀 smile😀 now", "smile now"),
        ("he said ``go'' and \"stay\" ''", "he said go and stay"),
        ("", ""),
    ],
)
def test_words_that_stand_alone(text: str, words: str) -> None:
    assert found(text) == words.split()


def test_texts_that_the_tokenizer_fails_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def span_tokenize(self, text: str) -> Iterator[tuple[int, int]]:
            yield 0, 1
            raise ValueError("substring not found")

    monkeypatch.setattr("hf_distill.augmentation.words._TOKENIZER", Failing())
    text = " a river\tin  a town a"
    places = [(start, text[start:end]) for start, end in word_spans(text)]
    assert places == [(3, "river"), (9, "in"), (15, "town")]


@given(TEXTS)
def test_words_are_in_order_and_bounded(text: str) -> None:
    spans = word_spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    for start, end in spans:
        assert end - start >= 2
        assert not any(c.isspace() or c.isdigit() for c in text[start:end])
        for beside in (text[start - 1 : start], text[end : end + 1]):
            assert not beside or unicodedata.category(beside)[0] not in "LMN"


@pytest.mark.parametrize(
    ("word", "pattern", "candidate", "fitted"),
    [
        ("town", "lower", "city", "city"),
        ("town", "lower", "Paris", None),
        ("Town", "title", "city", "City"),
        ("TOWN", "upper", "city", "CITY"),
        ("iPhone", "mixed", "city", "city"),
        ("שלום", "none", "עולם", "עולם"),
        ("Straße", "title", "ßa", "Ssa"),
    ],
)
def test_case(word: str, pattern: str, candidate: str, fitted: str | None) -> None:
    assert case_pattern(word) == pattern
    assert fit_case(candidate, pattern) == fitted


@pytest.mark.parametrize(
    ("text", "article"),
    [("a river", "a"), ("An\n apple", "an"), ("the river", None), ("river", None),
     ("vitamin-a river", None), ("pa river", None), ("(a river", "a"), ("a, river", None)],
)  # fmt: skip
def test_article(text: str, article: str | None) -> None:
    start = max(text.rfind("river"), text.rfind("apple"))
    assert article_before(text, start) == article


@pytest.mark.parametrize("word", ["apple", "hour", "honest", "unimportant", "Umbrella", "egg"])
def test_vowel_sounds(word: str) -> None:
    assert sounds_like_a_vowel(word)


@pytest.mark.parametrize("word", ["river", "unit", "European", "one", "user", "house"])
def test_consonant_sounds(word: str) -> None:
    assert not sounds_like_a_vowel(word)


def test_ending() -> None:
    words = ["running", "walked", "slowly", "towns", "cars", "glass", "town", "bed"]
    assert [ending(word) for word in words] == ["ing", "ed", "ly", "s", "s", "", "", ""]


@pytest.mark.parametrize(
    ("text", "word", "candidates", "left"),
    [
        ("a river", "river", ["town", "egg", "hour", "unit"], ["town", "unit"]),
        ("an apple", "apple", ["town", "egg", "hour"], ["egg", "hour"]),
        # Not English: `a` before a word that would take `an` says nothing.
        ("a água", "água", ["água", "egg", "town"], ["egg", "town"]),
        ("the River", "River", ["river", "RIVER", "town"], ["Town"]),
        ("the river", "river", ["the", "x", "co2", "up-to", "Paris", "##er", "."], []),
    ],
)
def test_fit(text: str, word: str, candidates: list[str], left: list[str]) -> None:
    start = text.index(word)
    fit = Fit.of(text, (start, start + len(word)), {"the"})
    assert [f for c in candidates if (f := fit(c))] == left


def test_what_is_not_replaced() -> None:
    stop = frozenset({"the", "can't"})
    words = ["town", "The", "CAN’T", "iPhone", "NASA", "Paris"]
    assert [is_replaceable(word, stop) for word in words] == [True, False, False, False, True, True]
