from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from masked_lms import VECTORS, WORDS, masked_lm

from hf_distill.augmentation import WordSubstituter
from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.augmentation.word_vectors import open_word_vectors
from hf_distill.augmentation.words import ENGLISH_STOP_WORDS, read_stop_words

TEXT = "Paris is the big capital; the RIVER and castles, a green lake."


def by_word(substituter: WordSubstituter, text: str = TEXT) -> dict[str, list[str]]:
    (found,) = substituter.candidates([text])
    return {text[one.start : one.end]: list(one.words) for one in found}


def with_vectors(path: Path, **options: object) -> WordSubstituter:
    lm = MaskedLanguageModel(*masked_lm(), device="cpu")
    return WordSubstituter(lm, open_word_vectors(path), **options)


def test_words_of_one_token_from_the_model_others_from_vectors(vectors_file: Path) -> None:
    assert list(by_word(WordSubstituter(MaskedLanguageModel(*masked_lm(), device="cpu")))) == [
        "Paris", "big", "capital", "RIVER", "green",
    ]  # fmt: skip
    found = by_word(with_vectors(vectors_file))
    assert list(found) == ["Paris", "big", "capital", "RIVER", "green", "lake"]
    # No punctuation, and no plural for a singular.
    assert found["lake"][:2] == ["river", "sea"] and "lakes" not in found["lake"]
    assert all(len(found[word]) == 15 for word in list(found)[:-1])
    assert all(word.isupper() for word in found["RIVER"])
    assert all(word[0].isupper() and word[1:].islower() for word in found["Paris"])
    assert all(word.islower() for word in found["big"])
    assert not {"apple", "orange", "egg", "old", "hour"} & {*found["green"]}


def test_plurals_for_plurals_or_anything(vectors_file: Path) -> None:
    found = by_word(with_vectors(vectors_file), "lakes and palace")
    assert found["lakes"] == ["rivers"]
    assert found["palace"] == ["fortress", "castle", "sea", "lake", "river"]
    # Without a word of the same ending, any will do.
    vectors_file.write_text(VECTORS.replace("rivers", "fish"))
    assert by_word(with_vectors(vectors_file), "lakes")["lakes"][:2] == ["fish", "river"]


def test_the_number_of_candidates(vectors_file: Path) -> None:
    found = by_word(with_vectors(vectors_file, word_possibilities=2))
    assert {len(words) for words in found.values()} == {2}
    found = by_word(with_vectors(vectors_file, word_possibilities=1))
    assert {len(words) for words in found.values()} == {1}
    with pytest.raises(ValueError, match="word_possibilities=0"):
        with_vectors(vectors_file, word_possibilities=0)


def test_stop_words_are_neither_replaced_nor_put_in(vectors_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "stop.txt"
    path.write_text("\ufeff# mine\nPARIS\n\nriver\nbig\n", encoding="utf-8")
    stop = read_stop_words(path)
    assert stop == {"paris", "river", "big"}
    found = by_word(with_vectors(vectors_file, stop_words=stop, word_possibilities=80))
    assert list(found) == ["is", "the", "capital", "green", "lake"]
    assert not stop & {word for words in found.values() for word in words}
    assert by_word(with_vectors(vectors_file, stop_words=path, word_possibilities=80)) == found
    free = by_word(with_vectors(vectors_file, stop_words=[], word_possibilities=80))
    assert {"the", "is"} <= {*free["big"]} and "is" in free
    (tmp_path / "latin").write_bytes(b"gr\xf6\xdfe")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        read_stop_words(tmp_path / "latin")


def test_the_english_list() -> None:
    assert {"the", "can't", "ourselves"} <= ENGLISH_STOP_WORDS
    assert not {"not only", "house", "paris"} & ENGLISH_STOP_WORDS
    # Which scikit-learn's has.
    assert not {"fire", "system", "cry", "bill", "thick"} & ENGLISH_STOP_WORDS


def test_a_splitter_of_ones_own() -> None:
    lm = MaskedLanguageModel(*masked_lm(), device="cpu")
    substituter = WordSubstituter(lm, split_words=lambda text: [(0, 5)])
    assert list(by_word(substituter, "river town")) == ["river"]


def test_options_of_a_saved_model(
    saved_model: str, vectors_file: Path, tmp_path: Path, substituter: WordSubstituter
) -> None:
    stop, elsewhere = tmp_path / "stop.txt", tmp_path / "tokenizer"
    stop.write_text("paris\n")
    masked_lm()[1].save_pretrained(elsewhere)
    loaded = WordSubstituter.from_pretrained(
        saved_model, device="cpu", tokenizer=str(elsewhere), glove_path=str(vectors_file),
        stop_words=str(stop), word_possibilities=3, masking="single", batch_size=5,
        dtype="float32",
    )  # fmt: skip
    found = by_word(loaded)
    assert "lake" in found and "Paris" not in found and "Paris" in by_word(substituter)
    assert {len(words) for words in found.values()} <= {1, 2, 3}
    lm: Any = loaded._masked_lm
    assert (lm.masking, lm.batch_size) == ("single", 5)
    with pytest.raises((OSError, ValueError), match="nowhere"):
        WordSubstituter.from_pretrained(saved_model, tokenizer=str(tmp_path / "nowhere"))


def test_augment(substituter: WordSubstituter) -> None:
    text = " ".join(WORDS[:12])
    copies = substituter.augment(text, copies=5, keep=[(0, 5)])
    assert copies == substituter.augment(text, copies=5, keep=[(0, 5)])
    assert len({*copies, text}) == 6
    assert all(copy.startswith("river ") for copy in copies)
    assert all(len(copy.split()) == 12 for copy in copies)
    assert copies != substituter.augment(text, copies=5, keep=[(0, 5)], seed=1)
    assert substituter.augment(text, copies=5, replace_probability=0.0) == []
    assert substituter.augment("", copies=5) == []
    with pytest.raises(ValueError, match=r"replace_probability=1\.5"):
        substituter.augment(text, replace_probability=1.5)


def test_it_says_that_there_are_no_vectors(
    saved_model: str, vectors_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "hf_distill.augmentation.substitution.logger.warning", lambda text: said.append(text)
    )
    WordSubstituter.from_pretrained(saved_model, device="cpu", glove_path=str(vectors_file))
    assert said == []
    WordSubstituter.from_pretrained(saved_model, device="cpu")
    assert "hf-distill[glove]" in said[0]
    with pytest.raises(FileNotFoundError, match="glove_path='nowhere'"):
        WordSubstituter.from_pretrained(saved_model, glove_path="nowhere")
