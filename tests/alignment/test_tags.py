"""Tags by words: the first token of a word, whatever the tokenizers make of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabularies
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from other_ids import losses, run, shuffled, tokenizer, trained, with_other_ids
from transformers import BertForTokenClassification

from hf_distill import cache_teacher_outputs
from hf_distill.alignment import BothEncodings, TeacherReader
from hf_distill.alignment.words import TOKEN_MAP, WordAlignment, first_tokens, word_map
from hf_distill.heads import TokenClassificationHead
from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments

SENTENCES = [
    ["Ada", "lives", "in", "Paris,", "not", "Łódź"],
    ["hello", "hellos", "🍕", "東京は", "שלום", "עולם"],
    ["1,5", "km²"],
    ["unhelpful", "people", "of", "the", "river", "Seine", "and", "e-mail@example.org"],
] * 2
TAGS = [[(i + j) % 3 for j, _ in enumerate(words)] for i, words in enumerate(SENTENCES)]
NAMES = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}


@cache
def words(kind: str) -> Any:
    return tokenizer() if kind == "tiny" else getattr(vocabularies, kind)()


def features(ours: Any, theirs: Any, student: Any, *, labelled: bool = True) -> Dataset:
    columns = {"tokens": SENTENCES, "tags": [[NAMES["id2label"][t] for t in row] for row in TAGS]}
    task = create_task("token-classification", TaskArguments())
    rows = task.rows(Dataset.from_dict(columns), labelled=labelled)
    reader = None if theirs is None else TeacherReader(theirs, 64)
    found = task.features(rows, ours, student, training=True, labelled=labelled, teacher=reader)
    return found.features


def model(kind: str, seed: int, **options: Any) -> Any:
    one = words(kind)
    sizes = {"vocab_size": len(one), "pad_token_id": one.pad_token_id, **NAMES}
    sizes["type_vocab_size"] = 1 + ("token_type_ids" in one.model_input_names)
    return trained(BertForTokenClassification, seed, **sizes, **options)


def collator(tokenizer: Any) -> Any:
    return create_task("token-classification", TaskArguments()).data_collator(tokenizer, None)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_other_ids_change_nothing_of_tags(cached: bool, labelled: bool, tmp_path: Path) -> None:
    ours = words("tiny")
    theirs, new_ids = shuffled(ours)
    teacher, student = model("tiny", 1), model("tiny", 2, layers=1)
    rows = features(ours, None, student)
    both = features(ours, theirs, student, labelled=labelled)
    other: Any = with_other_ids(teacher, new_ids)
    given: dict[str, Any] = {"processing_class": ours, "data_collator": collator(ours)}
    if cached:
        both = cache_teacher_outputs(
            other,
            both,
            output_dir=tmp_path / "cache",
            dtype="float32",
            use_cpu=True,
            teacher_processing_class=theirs,
            **given,
        )
        other = None
    given |= {"teacher_check_samples": 0, "distillation_loss_weight": 1.0}
    expected = run(tmp_path, student, teacher_model=teacher, train_dataset=rows, **given)
    found = run(
        tmp_path,
        student,
        teacher_model=other,
        train_dataset=both,
        teacher_processing_class=theirs,
        **given,
    )
    # Without labels the first tokens of words count all the same.
    kept = [
        [{k: v for k, v in entry.items() if "prediction" in k} for entry in losses(trainer)]
        for trainer in (found, expected)
    ]
    assert len(kept[0]) == len(kept[1]) == 4
    for one, wanted in zip(*kept, strict=True):
        assert one == (pytest.approx(wanted, rel=1e-5) if cached else wanted)
    if not cached:
        weights = zip(found.model.parameters(), expected.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "continued"])
def test_live_equals_cached_tags(kind: str, tmp_path: Path) -> None:
    ours, theirs = words("word_piece"), words(kind)
    teacher, student = model(kind, 1), model("word_piece", 2, layers=1)
    rows = features(ours, theirs, student)
    given: dict[str, Any] = {
        "processing_class": ours,
        "teacher_processing_class": theirs,
        "data_collator": collator(ours),
    }
    stored = cache_teacher_outputs(
        teacher, rows, output_dir=tmp_path / "cache", dtype="float32", use_cpu=True, **given
    )
    given["teacher_check_samples"] = 8
    live = run(
        tmp_path, student, teacher_model=teacher, train_dataset=rows, eval_dataset=rows, **given
    )
    again = run(tmp_path, student, teacher_model=None, train_dataset=stored, **given)
    for one, wanted in zip(losses(again), losses(live), strict=True):
        assert one == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    sentence=st.lists(
        st.one_of(
            st.sampled_from([word for words in SENTENCES for word in words]),
            st.text(
                st.characters(exclude_categories=["Z", "C"], codec="utf-8"), min_size=1, max_size=6
            ),
        ),
        min_size=1,
        max_size=6,
    ),
    pair=st.tuples(*[st.sampled_from(["word_piece", "byte_level", "unigram", "characters"])] * 2),
)
def test_each_word_goes_to_itself(sentence: list[str], pair: tuple[str, str]) -> None:
    text = " ".join(sentence)
    encoded = [words(kind)(text) for kind in pair]
    firsts = [first_tokens(sentence, one.encodings[0].offsets) for one in encoded]
    length = len(encoded[0]["input_ids"])
    found = word_map(*firsts, length)
    for word, token in firsts[0].items():
        assert found[token] == firsts[1].get(word, -1)
    assert sum(place >= 0 for place in found) == len(firsts[0].keys() & firsts[1].keys())
    if pair[0] == pair[1]:
        assert all(place in (-1, token) for token, place in enumerate(found))


def test_padding_on_the_left_moves_the_places_of_words_along() -> None:
    ours, theirs = vocabularies.word_piece(), vocabularies.byte_level()
    rows = features(ours, theirs, model("word_piece", 2)).select(range(4))
    alignment = WordAlignment(TokenClassificationHead(None))
    kept = {*ours.model_input_names, "labels", *alignment.columns}
    rows = rows.remove_columns([name for name in rows.column_names if name not in kept])
    found = []
    for side in ("right", "left"):
        ours.padding_side = theirs.padding_side = side
        batch = BothEncodings(collator(ours), theirs, alignment)(list(rows))
        row, token = (batch[TOKEN_MAP] >= 0).nonzero(as_tuple=True)
        place = batch[TOKEN_MAP][row, token]
        found.append([batch["input_ids"][row, token], batch["teacher_input_ids"][row, place]])
    assert len(found[0][0]) > 4
    assert all(torch.equal(right, left) for right, left in zip(*found, strict=True))


def test_the_first_token_of_a_word_is_found_by_its_characters() -> None:
    #          special  ab      (space)c d      cut off
    offsets = [(0, 0), (0, 1), (1, 2), (2, 4), (4, 5), (0, 0)]
    assert first_tokens(["ab", "cd", "e"], offsets) == {0: 1, 1: 3}
    # A token of white space alone belongs to no word, and a word that is dropped has none.
    assert first_tokens(["a", "b", "c"], [(0, 1), (1, 2), (4, 5)]) == {0: 0, 2: 2}
    assert first_tokens(["a", "b"], [(1, 2), (2, 3)]) == {1: 1}


def test_words_that_the_teacher_cuts_off_do_not_count() -> None:
    ours, theirs = words("word_piece"), words("byte_level")
    student = model("word_piece", 2)
    task = create_task("token-classification", TaskArguments())
    rows = task.rows(
        Dataset.from_dict({"tokens": [["river"] * 30], "tags": [["x"] * 30]}), labelled=True
    )
    found = task.features(rows, ours, student, training=True, teacher=TeacherReader(theirs, 16))
    row = found.features[0]
    begins = [token for token, label in enumerate(row["labels"]) if label != -100]
    there = [row[TOKEN_MAP][token] >= 0 for token in begins]
    assert any(there) and not all(there) and there == sorted(there, reverse=True)
    assert len(row["teacher_input_ids"]) == 16


def test_rows_without_a_word_in_common_are_counted_or_refused(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    ours, theirs = words("word_piece"), words("byte_level")
    student = model("word_piece", 2)
    rows = features(ours, theirs, student)
    lost = rows.map(lambda row: {TOKEN_MAP: [-1] * len(row["input_ids"])})
    given: dict[str, Any] = {
        "teacher_model": model("byte_level", 1),
        "processing_class": ours,
        "teacher_processing_class": theirs,
        "data_collator": collator(ours),
        "teacher_check_samples": 0,
        "evaluate": False,
    }
    some = concatenate_datasets([lost.select(range(3)), rows.select(range(3, 8))])
    run(tmp_path, student, train_dataset=some, **given)
    assert "3 of 8 rows of train_dataset" in caplog.text and TOKEN_MAP in caplog.text
    for data in (lost, lost.select([2, 1])):
        with pytest.raises(ValueError, match=f"{TOKEN_MAP}.*--teacher_model"):
            run(tmp_path, student, train_dataset=data, **given)


def test_words_without_a_label_do_not_count() -> None:
    alignment = WordAlignment(TokenClassificationHead(None))
    batch = {
        TOKEN_MAP: torch.tensor([[-1, 2, -1, 1]]),
        "labels": torch.tensor([[-100, 1, -100, -100]]),
        "teacher_input_ids": torch.zeros(1, 4, dtype=torch.long),
    }
    assert int(alignment.count_rows(batch)) == 1
    assert alignment.teacher_batch(batch)["labels"].tolist() == [[-100, -100, 1, -100]]
    del batch["labels"]
    assert int(alignment.count_rows(batch)) == 2
    assert alignment.teacher_batch(batch)["labels"].tolist() == [[-100, 0, 0, -100]]
