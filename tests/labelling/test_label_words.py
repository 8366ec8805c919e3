from __future__ import annotations

from typing import Any

import pytest

from hf_distill.labelling.words import check_label_words, read_label_words


def test_words_of_labels() -> None:
    items = ["positive=good, very good", "negative=bad", "neutral"]
    found = read_label_words(items)
    assert found == {
        "positive": ["good", "very good"],
        "negative": ["bad"],
        "neutral": ["neutral"],
    }
    assert check_label_words(found) == found
    assert list(found) == ["positive", "negative", "neutral"]


@pytest.mark.parametrize(
    ("items", "fragments"),
    [
        (["positive=good"], ["1 labels", "positive"]),
        (["a=x", "a=y"], ["'a'", "twice"]),
        (["a=x,,y", "b=z"], ["'a'", "empty"]),
        (["a=", "b=z"], ["'a'", "empty"]),
        (["=x", "b=z"], ["without a name"]),
        (["a=x,y", "b=y"], ["'y'", "'a'", "'b'"]),
        (["a=x,x", "b=y"], ["'x'", "'a'"]),
    ],
)
def test_bad_words(items: list[str], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match="label_words") as error:
        check_label_words(read_label_words(items))
    assert all(fragment in str(error.value) for fragment in fragments)


@pytest.mark.parametrize(
    "words",
    [{"a": "x", "b": ["y"]}, {"a": [" x"], "b": ["y"]}, {"a": [], "b": ["y"]}, {}],
    ids=["text", "space", "no words", "none"],
)
def test_bad_words_in_python(words: Any) -> None:
    with pytest.raises(ValueError, match="label_words"):
        check_label_words(words)
