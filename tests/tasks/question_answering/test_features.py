"""Windows: what is in them, what is labelled, and that nothing is lost."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example as explicit
from hypothesis import given, settings
from hypothesis import strategies as st
from qa_rows import context_tokens, dataset, example, tokens_of, windows_of
from qa_tokenizers import TEXT, TOKENIZERS
from tokenizers import processors
from transformers import DataCollatorWithPadding

from hf_distill.tasks.question_answering import (
    QuestionAnsweringDataError,
    is_v2,
    postprocess,
    prepare_eval_features,
    prepare_train_features,
)

# Special tokens before the context without the question's, and after it.
SPECIALS = {
    "bert": (2, 1),
    "roberta": (3, 1),
    "untrimmed": (1, 0),
    "sentencepiece": (3, 1),
    "left_padding": (0, 3),
}
EVERY = pytest.mark.parametrize("kind", list(TOKENIZERS))


CONTEXTS = st.lists(
    st.sampled_from(
        ["Paris", "the", "Größe", "1,5", "km²", "987.", "12.50", "€", "naïve", "Seine", "漢字", "x"]
    ),
    min_size=1,
    max_size=40,
).flatmap(
    lambda words: st.lists(
        st.sampled_from([" ", " ", " ", "  ", "\n", "-", ", ", "\t"]),
        min_size=len(words),
        max_size=len(words),
    ).map(lambda gaps: "".join(w + g for w, g in zip(words, gaps, strict=True)))
)


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    context = draw(CONTEXTS)
    start = draw(st.integers(0, len(context) - 1))
    end = draw(st.integers(start + 1, min(len(context), start + 25)))
    answer = (start, end) if context[start:end].strip() else None
    return example(context, answer, draw(st.sampled_from(["Who?", "  Where does it lie?", ""])))


@EVERY
@given(row=questions(), max_length=st.integers(24, 40), doc_stride=st.integers(0, 8))
@settings(max_examples=60)
def test_windows_cover_the_context_and_label_the_answer(
    kind: str, row: dict[str, Any], max_length: int, doc_stride: int
) -> None:
    tokenizer = TOKENIZERS[kind]
    windows = windows_of(tokenizer, row, max_length, doc_stride)
    whole = tokens_of(tokenizer, row["context"])
    assert {token for window in windows for token in context_tokens(window)} == set(whole)

    text = row["answers"]["text"][0] if row["answers"]["text"] else ""
    start = row["answers"]["answer_start"][0] + len(text) - len(text.lstrip()) if text else 0
    end = start + len(text.strip())
    wanted = [token for token in whole if token[0] < end and token[1] > start]
    for window in windows:
        first, last = window["start_positions"], window["end_positions"]
        assert len(window["input_ids"]) <= max_length
        assert 0 <= first <= last < len(window["input_ids"])
        if wanted and set(wanted) <= set(context_tokens(window)):
            labelled = window["offset_mapping"][first : last + 1]
            assert [tuple(token) for token in labelled if token] == wanted
            if tokenizer is not TOKENIZERS["bert"]:  # it has no token for some characters
                assert labelled[0][0] <= start
                assert labelled[-1][1] >= end
        else:
            assert first == last == window["no_answer_position"]
    if wanted and len(wanted) <= doc_stride:
        assert any(w["start_positions"] != w["no_answer_position"] for w in windows)


@pytest.mark.parametrize("letter", range(8))
def test_a_window_that_begins_or_ends_within_a_letter_does_not_hold_it(letter: int) -> None:
    # two tokens of one byte for each letter, of which windows hold an odd number
    context = "ÄÄÄÄÄÄÄÄ"
    tokenizer = TOKENIZERS["untrimmed"]
    windows = windows_of(tokenizer, example(context, (letter, letter + 1), "?"), 7, 2)
    tokens = [context_tokens(window) for window in windows]
    assert len(tokens[0]) == 5 and {token for row in tokens for token in row} == {
        (index, index + 1) for index in range(8)
    }
    labels = [(row["start_positions"], row["end_positions"]) for row in windows]
    for row, (first, last) in zip(windows, labels, strict=True):
        covered = [i for i, o in enumerate(row["offset_mapping"]) if o == (letter, letter + 1)]
        assert (first, last) == (tuple(covered) if len(covered) == 2 else (0, 0))
    assert any(first != last for first, last in labels)


@EVERY
def test_consecutive_windows_share_doc_stride_tokens(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    context = " ".join(TEXT)
    features = prepare_eval_features(
        dataset(example(context, None)), tokenizer, max_length=48, doc_stride=7
    )
    before, after = SPECIALS[kind]
    asked = len(tokenizer("Who wrote it?", add_special_tokens=False)["input_ids"])
    parts = [
        [ids for ids, mask in zip(row["input_ids"], row["attention_mask"], strict=True) if mask]
        for row in features
    ]
    if kind == "left_padding":
        parts = [part[: -asked - after] for part in parts]
    else:
        parts = [part[before + asked : len(part) - after] for part in parts]
    assert len(parts) > 3
    for left, right in itertools.pairwise(parts):
        assert left[-7:] == right[:7]
    full = tokenizer(context, add_special_tokens=False)["input_ids"]
    assert parts[0] + [ids for part in parts[1:] for ids in part[7:]] == full


@EVERY
def test_the_no_answer_position_is_the_classification_token_or_0(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    features = prepare_eval_features(
        dataset(example(" ".join(TEXT), None)), tokenizer, max_length=48, doc_stride=8
    )
    for row in features:
        position = row["no_answer_position"]
        if tokenizer.cls_token_id is None:
            assert position == 0
        else:
            assert row["input_ids"][position] == tokenizer.cls_token_id
        assert row["start_positions"] == row["end_positions"] == position
        assert row["offset_mapping"][position] is None or tokenizer.cls_token_id is None
    assert (kind == "left_padding") == (position == 47)


@EVERY
def test_labels_still_hold_after_the_collator_has_padded(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    contexts = [TEXT[0], TEXT[0] + " " + TEXT[1], TEXT[3]]
    rows = [
        example(context, (context.index(word), context.index(word) + len(word)), name=word)
        for context, word in zip(contexts, ["Seine", "Oktober", "about"], strict=True)
    ]
    features = prepare_train_features(dataset(*rows), tokenizer, max_length=160, doc_stride=16)
    assert len(features) == 3
    batch = DataCollatorWithPadding(tokenizer)(list(features))
    for index, row in enumerate(rows):
        span = slice(batch["start_positions"][index], batch["end_positions"][index] + 1)
        text = tokenizer.decode(batch["input_ids"][index, span])
        text = text.replace("#", "").replace(" ", "").lower()
        assert text == row["answers"]["text"][0].lower()


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("<s> $A $B", "<s>"),  # as Llama: context, then question
        ("$A $B", "question"),  # as GPT-2, whose padding is the same token as its first one
    ],
)
def test_no_answer_of_decoders_padded_on_the_left_is_a_token_that_counts(
    template: str, wanted: str
) -> None:
    tokenizer = copy.deepcopy(TOKENIZERS["left_padding"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=template, special_tokens=[("<s>", 0)]
    )
    tokenizer.cls_token = tokenizer.sep_token = None
    tokenizer.bos_token = "<s>"
    if wanted == "question":
        tokenizer.pad_token = tokenizer.bos_token
    rows = Dataset.from_dict(
        {
            "id": ["0", "1"],
            "context": [TEXT[0], TEXT[0] * 3],
            "question": ["Who?", "Who?"],
            "answers": [{"text": [], "answer_start": []}] * 2,
        }
    )
    features = prepare_eval_features(rows, tokenizer, max_length=48, doc_stride=8)
    assert len(features) > 2 and not all(map(all, features["attention_mask"]))
    for row in features:
        position, mask = row["no_answer_position"], row["attention_mask"]
        assert row["start_positions"] == row["end_positions"] == position
        assert mask[position] == 1 and row["offset_mapping"][position] is None
        if wanted == "<s>":
            assert position == mask.index(1) and row["input_ids"][position] == 0
        else:
            last = max(i for i, offset in enumerate(row["offset_mapping"]) if offset is not None)
            assert position == last + 1  # the first token of the question


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answers", None, "id 'b'.answers is null"),
        ("answers", {"text": [None], "answer_start": [0]}, r"answers\[0\].text must be str"),
        ("answers", {"text": ["a"], "answer_start": [None]}, "answer_start must be int"),
        ("answers", {"text": ["a"], "answer_start": []}, "1 text and 0 answer_start"),
        ("answers", {"text": ["a"], "answer_start": [-3]}, "answer_start=-3 of 'a' is negative"),
        ("context", None, "id 'b'.context must be str"),
        ("question", None, "id 'b'.question must be str"),
    ],
)
def test_bad_cells_are_named(column: str, value: Any, message: str) -> None:
    good = {"context": "a b", "question": "c?", "answers": {"text": ["a"], "answer_start": [0]}}
    rows = Dataset.from_list([{"id": "a", **good}, {"id": "b", **good, column: value}])
    with pytest.raises(QuestionAnsweringDataError, match=message):
        prepare_eval_features(rows, TOKENIZERS["bert"], max_length=32, doc_stride=4)


def test_rows_are_not_padded_unless_the_tokenizer_pads_on_the_left() -> None:
    rows = dataset(example("Paris", None), example(TEXT[0], None, name="r"))
    for kind, tokenizer in TOKENIZERS.items():
        features = prepare_train_features(rows, tokenizer, max_length=120, doc_stride=8)
        lengths = {len(ids) for ids in features["input_ids"]}
        assert (lengths == {120}) == (kind == "left_padding")
        assert ("token_type_ids" in features.column_names) == (kind == "bert")


def test_train_and_eval_features_agree_and_train_has_only_model_inputs_and_labels() -> None:
    rows = dataset(example(TEXT[1], (4, 9)), example(TEXT[0], None, name="r"))
    train = prepare_train_features(rows, TOKENIZERS["bert"], max_length=40, doc_stride=8)
    evaluation = prepare_eval_features(rows, TOKENIZERS["bert"], max_length=40, doc_stride=8)
    assert sorted(train.column_names) == [
        "attention_mask",
        "end_positions",
        "input_ids",
        "start_positions",
        "token_type_ids",
    ]
    assert evaluation.select_columns(train.column_names).to_list() == train.to_list()
    assert set(evaluation["example_id"]) == {"q", "r"}


def test_a_window_with_half_the_answer_is_labelled_no_answer() -> None:
    context = " ".join(["x"] * 40)
    # [CLS] who ? [SEP] 12 tokens [SEP]: the answer, tokens 10 to 13, lies across the first border
    features = prepare_eval_features(
        dataset(example(context, (20, 27), "x?")),
        TOKENIZERS["bert"],
        max_length=17,
        doc_stride=2,
    )
    first, second, *others = features
    assert context_tokens(first)[-1] == (22, 23)
    assert context_tokens(second)[0] == (20, 21)
    assert first["start_positions"] == first["end_positions"] == first["no_answer_position"]
    assert (second["start_positions"], second["end_positions"]) == (4, 7)
    assert all(row["start_positions"] == row["no_answer_position"] for row in others)


def test_an_answer_beside_characters_without_token_is_labelled() -> None:
    # BERT drops the zero-width space and the control character
    context = "\u200b\x00Paris lies on the Seine\x00"
    features = prepare_eval_features(
        dataset(example(context, (1, 7)), example(context, (20, 26), name="end")),
        TOKENIZERS["bert"],
        max_length=64,
        doc_stride=8,
    )
    for row, text in zip(features, ["Paris", "Seine"], strict=True):
        offsets = row["offset_mapping"]
        span = context[offsets[row["start_positions"]][0] : offsets[row["end_positions"]][1]]
        assert span.strip("\u200b\x00") == text


@EVERY
@pytest.mark.parametrize("words", [30, 200])
def test_a_long_question_is_cut_and_the_context_still_fully_read(kind: str, words: int) -> None:
    tokenizer = TOKENIZERS[kind]
    context = " ".join(TEXT[:4])
    row = example(context, None, " ".join(["river", "Größe,", "x"] * words))
    features = prepare_eval_features(dataset(row), tokenizer, max_length=64, doc_stride=16)
    read = {token for window in features for token in context_tokens(window)}
    assert read == set(tokens_of(tokenizer, context))
    for window in features:
        assert len(window["input_ids"]) <= 64
    [alone] = windows_of(tokenizer, {**row, "context": ""}, 64, 16)
    asked = sum(alone["attention_mask"]) - tokenizer.num_special_tokens_to_add(pair=True)
    most = 64 - tokenizer.num_special_tokens_to_add(pair=True) - 16 - 64 // 16
    # cutting between the bytes of a letter loses the letter
    assert most - 3 <= asked <= most


def test_a_question_that_fits_is_not_cut() -> None:
    question = " ".join(["x"] * 41)
    # 64 tokens = 3 special + 41 + 16 shared + 4 new
    for text, kept in ((question, 41), (question + " x", 41)):
        features = prepare_train_features(
            dataset(example(TEXT[0], None, text)),
            TOKENIZERS["bert"],
            max_length=64,
            doc_stride=16,
        )
        assert features[0]["token_type_ids"].index(1) == kept + 2


def test_white_space_before_the_question_is_dropped() -> None:
    for tokenizer in TOKENIZERS.values():
        plain, spaced = (
            prepare_train_features(
                dataset(example("Paris", None, question)), tokenizer, max_length=64, doc_stride=8
            ).to_list()
            for question in ("Who?", " \n Who?")
        )
        assert plain == spaced


def test_unlabelled_data_gives_features_without_labels() -> None:
    rows = dataset(example("Paris", None)).remove_columns("answers")
    features = prepare_eval_features(rows, TOKENIZERS["bert"], max_length=64, doc_stride=8)
    assert "start_positions" not in features.column_names
    with pytest.raises(ValueError, match="no column answers; it has id, context, question"):
        prepare_train_features(rows, TOKENIZERS["bert"])


@pytest.mark.parametrize("prepare", [prepare_train_features, prepare_eval_features])
def test_an_answer_that_is_elsewhere_is_refused(prepare: Callable[..., Dataset]) -> None:
    rows = dataset(example("Wien", (0, 4)), example("Wien", (0, 4), "Wo?", "r"))
    moved = rows.map(
        lambda row: {"answers": {"text": ["Wien"], "answer_start": [int(row["id"] == "r")]}}
    )
    assert len(prepare(rows, TOKENIZERS["bert"])) == 2
    with pytest.raises(
        QuestionAnsweringDataError,
        match="id 'r': expected 'Wien' at answer_start=1 but found 'ien'; validate_answers",
    ):
        prepare(moved, TOKENIZERS["bert"])


@pytest.mark.parametrize("prepare", [prepare_train_features, prepare_eval_features])
def test_answers_may_be_lists_of_objects(prepare: Callable[..., Dataset]) -> None:
    rows = dataset(example("Wien an der Donau", (12, 17)), example("Wien", None, name="r"))
    listed = [[{"text": "Donau", "answer_start": 12}], []]
    assert rows["answers"][0] == {"text": ["Donau"], "answer_start": [12]}
    in_lists = Dataset.from_list(
        [{**row, "answers": one} for row, one in zip(rows, listed, strict=True)]
    )
    features = prepare(in_lists, TOKENIZERS["bert"])
    assert features.to_dict() == prepare(rows, TOKENIZERS["bert"]).to_dict()
    assert is_v2(in_lists) and not is_v2(in_lists.select([0]))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["Wien"]}, "answers has no field 'answer_start'; it has 'text'"),
        ([{"text": "Wien"}], r"answers\[0\] has no field 'answer_start'; it has 'text'"),
        (["Wien"], r"answers\[0\] must be an object, not 'Wien'"),
        ({"text": "Wien", "answer_start": 0}, "answers.text must be list, not 'Wien'"),
        ("Wien", "answers must be dict or list, not 'Wien'"),
    ],
)
def test_answers_of_other_layouts_are_refused(answers: Any, message: str) -> None:
    rows = dataset({**example("Wien", None), "answers": answers})
    with pytest.raises(QuestionAnsweringDataError, match=f"The row with the id 'q'.{message}"):
        prepare_train_features(rows, TOKENIZERS["bert"])


def test_training_needs_no_ids() -> None:
    rows = dataset(example("Wien", (0, 4))).remove_columns("id")
    assert len(prepare_train_features(rows, TOKENIZERS["bert"])) == 1
    with pytest.raises(ValueError, match="no column id"):
        prepare_eval_features(rows, TOKENIZERS["bert"])


def test_contexts_without_tokens_come_first_and_do_not_settle_the_type() -> None:
    rows = dataset(*(example("", None, name=str(i)) for i in range(1100)), example("Wien", (0, 4)))
    features = prepare_eval_features(rows, TOKENIZERS["bert"], max_length=40, doc_stride=8)
    assert len(features) == 1101
    assert features[0]["offset_mapping"] == [None] * len(features[0]["input_ids"])
    assert context_tokens(features[1100])[0][0] == 0


def test_many_processes_give_the_same_rows() -> None:
    rows = dataset(*(example(text, (0, 3), name=str(i)) for i, text in enumerate(TEXT)))
    one, two = (
        prepare_eval_features(
            rows, TOKENIZERS["roberta"], max_length=40, doc_stride=8, num_proc=num_proc
        ).to_list()
        for num_proc in (None, 2)
    )
    assert one == two
    assert len(one) > len(rows)


def test_the_second_run_comes_from_the_cache_whatever_the_tokenizer_did_before(tmp_path) -> None:
    dataset(example(TEXT[0], (0, 5))).save_to_disk(tmp_path / "data")
    rows = Dataset.load_from_disk(tmp_path / "data")
    tokenizer = TOKENIZERS["bert"]
    first = prepare_train_features(rows, tokenizer, max_length=40, doc_stride=8)
    tokenizer(["a b c", "a"], truncation=True, max_length=3, padding="max_length")
    second = prepare_train_features(rows, tokenizer, max_length=40, doc_stride=8)
    third = prepare_train_features(rows, tokenizer, max_length=41, doc_stride=8)
    assert first.cache_files == second.cache_files
    assert first.cache_files != third.cache_files


def test_the_callers_tokenizer_is_left_as_it_was() -> None:
    tokenizer = TOKENIZERS["roberta"]
    tokenizer.truncation_side = "left"
    try:
        before = tokenizer("a b c d e")["input_ids"]
        features = prepare_eval_features(
            dataset(example(" ".join(TEXT), (0, 5))), tokenizer, max_length=64, doc_stride=8
        )
        assert tokenizer.truncation_side == "left"
        assert tokenizer("a b c d e")["input_ids"] == before
    finally:
        tokenizer.truncation_side = "right"
    assert context_tokens(features[0])[0][0] == 0
    assert features[0]["start_positions"] != features[0]["no_answer_position"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doc_stride": -1}, "doc_stride=-1 must be at least 0"),
        ({"max_length": 64, "doc_stride": 57}, "max_length=64 is too small for doc_stride=57"),
        ({"max_length": 0, "doc_stride": 0}, "max_length=0 is too small.*at least 5"),
    ],
)
def test_lengths_that_cannot_work_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_train_features(dataset(example("x", None)), TOKENIZERS["bert"], **options)


def test_the_smallest_lengths_that_are_accepted_work() -> None:
    row = example(" ".join(["x"] * 30), (4, 5), "x x x x x x x x")
    features = prepare_eval_features(dataset(row), TOKENIZERS["bert"], max_length=64, doc_stride=56)
    assert len({token for window in features for token in context_tokens(window)}) == 30


def test_a_slow_tokenizer_and_an_empty_data_set_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TypeError, match="Slow is not a fast tokenizer"):
        prepare_train_features(dataset(example("x", None)), Slow())
    with pytest.raises(ValueError, match="dataset is empty"):
        prepare_train_features(dataset(example("x", None)).select([]), TOKENIZERS["bert"])


# "untrimmed" cuts the first ö into two tokens, and the second window begins between them
BROKEN_LETTER = example("1,5 1,5 x Paris  Seine  x  Größe Größe ", (29, 30), "  Where does it lie?")


@EVERY
@given(row=questions())
@explicit(row=BROKEN_LETTER)
@settings(max_examples=40)
def test_logits_that_say_the_labels_give_the_answer_back(kind: str, row: dict[str, Any]) -> None:
    rows = dataset(row)
    features = Dataset.from_list(windows_of(TOKENIZERS[kind], row, 40, 8))
    width = max(len(ids) for ids in features["input_ids"])
    start, end = (np.full((len(features), width), -50.0) for _ in range(2))
    for index, window in enumerate(features):
        start[index, window["start_positions"]] = 10.0
        end[index, window["end_positions"]] = 10.0
    [prediction] = postprocess(rows, features, start, end, max_answer_length=64)
    labelled = [w for w in features if w["start_positions"] != w["no_answer_position"]]
    if not labelled and TOKENIZERS[kind].cls_token_id is not None:
        assert prediction.text == ""
    for window in labelled:
        offsets = window["offset_mapping"]
        span = slice(offsets[window["start_positions"]][0], offsets[window["end_positions"]][1])
        assert prediction.answers[0].text == row["context"][span].strip()
