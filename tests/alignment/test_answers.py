"""Answers over characters: windows, no answer, cached outputs, inputs that the teacher cuts."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabularies
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from other_ids import losses, run, shuffled, tokenizer, trained, with_other_ids
from tokenizers import Regex, normalizers
from transformers import BertForQuestionAnswering, DataCollatorWithPadding

from hf_distill import cache_teacher_outputs
from hf_distill.alignment import BothEncodings, TeacherReader
from hf_distill.alignment.characters import CharacterAlignment
from hf_distill.alignment.offsets import NOWHERE
from hf_distill.heads import QuestionAnsweringHead
from hf_distill.tasks.question_answering import prepare_eval_features, prepare_train_features

CONTEXTS = [
    "ada wrote the first program in 1843, for a machine that was never built.",
    "the cat sat on the mat; the dog - who was late - sat on the cat. both slept till noon.",
    "Łódź liegt 🍕 nicht am Meer. 東京は日本の首都です。 שלום עולם and back.",
]
ANSWERS = ["1843", "the dog", "🍕"]
LENGTHS: dict[str, Any] = {"max_length": 40, "doc_stride": 8}


def examples() -> Dataset:
    rows = [
        {
            "id": str(i),
            "question": question,
            "context": context,
            "answers": {"text": texts, "answer_start": [context.index(text) for text in texts]},
        }
        for i, (question, context, texts) in enumerate(
            [
                *(("which?", c, [a]) for c, a in zip(CONTEXTS, ANSWERS, strict=True)),
                ("who was it?", CONTEXTS[0], []),
            ]
        )
    ]
    return Dataset.from_list(rows)


@cache
def words(kind: str) -> Any:
    return getattr(vocabularies, kind)()


def model(kind: str, seed: int, **options: Any) -> Any:
    sizes = {"vocab_size": len(words(kind)), "pad_token_id": words(kind).pad_token_id}
    sizes["type_vocab_size"] = 1 + ("token_type_ids" in words(kind).model_input_names)
    return trained(BertForQuestionAnswering, seed, **sizes, **options)


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_other_ids_change_no_more_than_rounding(cached: bool, tmp_path: Path) -> None:
    ours = tokenizer()
    theirs, new_ids = shuffled(ours)
    # In windows that begin inside a word the teacher would read the whole of it.
    lengths = {"max_length": 150, "doc_stride": 8}
    sizes = {"max_position_embeddings": 160}
    teacher: Any = trained(BertForQuestionAnswering, 1, **sizes)
    student = trained(BertForQuestionAnswering, 2, layers=1, **sizes)
    rows = prepare_train_features(examples(), ours, **lengths)
    reader = TeacherReader(theirs, 160)
    both = prepare_train_features(examples(), ours, teacher=reader, **lengths)
    other: Any = with_other_ids(teacher, new_ids)
    given: dict[str, Any] = {"processing_class": ours, "temperature": 3.0}
    if cached:
        both = cache_teacher_outputs(
            other,
            both,
            output_dir=tmp_path / "cache",
            dtype="float32",
            use_cpu=True,
            processing_class=ours,
            teacher_processing_class=theirs,
        )
        other = None
    given |= {"teacher_check_samples": 0}
    expected = run(tmp_path, student, teacher_model=teacher, train_dataset=rows, **given)
    found = run(
        tmp_path,
        student,
        teacher_model=other,
        train_dataset=both,
        teacher_processing_class=theirs,
        **given,
    )
    for one, wanted in zip(losses(found), losses(expected), strict=True):
        assert one == pytest.approx(wanted, rel=2e-4, abs=1e-6)
    assert any("eval_loss_prediction" in entry for entry in losses(found))


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "characters"])
def test_live_equals_cached(kind: str, tmp_path: Path) -> None:
    ours, theirs = words("word_piece"), words(kind)
    teacher = model(kind, 1, max_position_embeddings=128)
    student = model("word_piece", 2, layers=1)
    rows = prepare_train_features(examples(), ours, teacher=TeacherReader(theirs, 128), **LENGTHS)
    stored = cache_teacher_outputs(
        teacher,
        rows,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
        processing_class=ours,
        teacher_processing_class=theirs,
    )
    given: dict[str, Any] = {
        "processing_class": ours,
        "teacher_processing_class": theirs,
        "teacher_check_samples": 0,
    }
    live = run(tmp_path, student, teacher_model=teacher, train_dataset=rows, **given)
    again = run(tmp_path, student, teacher_model=None, train_dataset=stored, **given)
    for one, wanted in zip(losses(again), losses(live), strict=True):
        assert one == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def batch_of(kind: str, limit: int, rows: slice = slice(None)) -> tuple[Any, Any, Any]:
    ours, theirs = words("word_piece"), words(kind)
    features = prepare_eval_features(
        examples(), ours, teacher=TeacherReader(theirs, limit), **LENGTHS
    )
    alignment = CharacterAlignment(QuestionAnsweringHead())
    kept = {*ours.model_input_names, "start_positions", "end_positions", *alignment.columns}
    columns = features.remove_columns([n for n in features.column_names if n not in kept])
    collate = BothEncodings(DataCollatorWithPadding(ours), theirs, alignment)
    return features, alignment, collate(list(columns)[rows])


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])
def test_a_teacher_that_is_sure_of_the_answer_teaches_the_label(kind: str) -> None:
    """Its starts and ends of the gold answer, in its own tokens, land on the student's labels."""
    features, alignment, batch = batch_of(kind, 128)
    read = alignment.teacher_batch(batch)
    assert len(features) > len(examples())  # windows
    certain = {}
    for side in ("start", "end"):
        logits = torch.full(read["input_ids"].shape, -30.0)
        logits.scatter_(1, read[f"{side}_positions"][:, None], 30.0)
        certain[f"{side}_logits"] = logits
    zeros = torch.zeros(batch["input_ids"].shape)
    nothing = {"start_logits": zeros, "end_logits": zeros}
    aligned = alignment.logits(batch, nothing, certain, 1.0)
    found = aligned.teacher.masked_fill(~aligned.class_mask, -torch.inf).argmax(-1)
    labels = torch.stack((batch["start_positions"], batch["end_positions"]), 1)
    # A window that ends inside a word shows the teacher the rest of it.
    assert torch.equal(found, labels)
    assert bool(aligned.row_mask.all())


WORDS = sorted({word for context in CONTEXTS for word in context.split()} | {"</s>", "[SEP]"})


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["byte_level", "unigram", "byte_fallback", "word_piece"]),
    context=st.lists(st.sampled_from(WORDS), min_size=3, max_size=30),
    place=st.tuples(st.integers(0, 29), st.integers(1, 4)),
    stride=st.integers(0, 12),
)
def test_in_any_window_a_sure_teacher_teaches_the_label(
    kind: str, context: list[str], place: tuple[int, int], stride: int
) -> None:
    """Of answers of whole words, which every tokenizer begins with a token."""
    first, count = place[0] % len(context), place[1]
    answer = " ".join(context[first : first + count])
    start = len(" ".join([*context[:first], ""]))
    row = {"id": "0", "question": "which?", "context": " ".join(context)}
    data = Dataset.from_list([row | {"answers": {"text": [answer], "answer_start": [start]}}])
    ours, theirs = words("word_piece"), words(kind)
    features = prepare_train_features(
        data, ours, teacher=TeacherReader(theirs, 256), max_length=24, doc_stride=stride
    )
    for window in features:
        assert len(window["teacher_start_map"]) == len(window["teacher_input_ids"])
        for side in ("start", "end"):
            place, label = window[f"teacher_{side}_map"], window[f"{side}_positions"]
            # Of a word that the window cuts the teacher reads the rest, and may find the answer.
            assert label == 0 or place[window[f"teacher_{side}_positions"]] == label


def test_the_same_characters_are_read() -> None:
    features, alignment, batch = batch_of("byte_level", 128)
    read = alignment.teacher_batch(batch)
    contexts = {row["id"]: row["context"] for row in examples()}
    for row, window in enumerate(features):
        known = [span for span in window["offset_mapping"] if span is not None]
        shown = contexts[window["example_id"]][known[0][0] : known[-1][1]]
        ids = read["input_ids"][row][read["attention_mask"][row].bool()]
        assert shown in words("byte_level").decode(ids)


def test_what_the_teacher_did_not_see_is_not_compared() -> None:
    _, alignment, batch = batch_of("byte_level", 24)
    whole, _, full = batch_of("byte_level", 128)
    assert bool(full["teacher_seen"].bool().all())
    read = alignment.teacher_batch(batch)
    assert read["input_ids"].shape[1] == 24
    outputs = {n: torch.zeros(read["input_ids"].shape) for n in ("start_logits", "end_logits")}
    zeros = {n: torch.zeros(batch["input_ids"].shape) for n in outputs}
    aligned = alignment.logits(batch, zeros, outputs, 1.0)
    unseen = ~batch["teacher_seen"].bool()
    assert bool(unseen.any())
    assert not bool(aligned.class_mask[:, 0][unseen].any())
    # No answer is seen in every window.
    places = torch.tensor(whole["no_answer_position"])
    assert bool(aligned.class_mask[torch.arange(len(places)), :, places].all())
    assert bool(aligned.teacher[torch.arange(len(places)), :, places].isfinite().all())
    assert bool((batch["teacher_start_map"] < batch["input_ids"].shape[1]).all())


def test_a_row_without_mass_has_no_loss() -> None:
    _, alignment, batch = batch_of("unigram", 128)
    batch["teacher_start_map"][:, 3] = NOWHERE
    lost = (
        torch.arange(batch["teacher_start_map"].shape[1]).expand_as(batch["teacher_start_map"]) == 3
    )
    outputs = {"start_logits": 30.0 * lost, "end_logits": torch.zeros(lost.shape)}
    zeros = {n: torch.zeros(batch["input_ids"].shape) for n in outputs}
    aligned = alignment.logits(batch, zeros, outputs, 1.0)
    assert not bool(aligned.row_mask[:, 0].any()) and bool(aligned.row_mask[:, 1].all())
    assert aligned.rows == 2 * len(lost)


def test_padding_takes_no_mass() -> None:
    _, alignment, batch = batch_of("unigram", 128)
    padding = ~batch["teacher_attention_mask"].bool()
    assert bool(padding.any())
    zeros = {n: torch.zeros(batch["input_ids"].shape) for n in ("start_logits", "end_logits")}
    aligned = alignment.logits(batch, zeros, dict.fromkeys(zeros, 30.0 * padding), 1.0)
    assert bool(aligned.row_mask.all())


def test_rows_without_mass_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    _, alignment, batch = batch_of("unigram", 128)
    outputs = {n: torch.zeros(batch["teacher_input_ids"].shape)
               for n in ("start_logits", "end_logits")}  # fmt: skip
    zeros = {n: torch.zeros(batch["input_ids"].shape) for n in outputs}
    alignment.logits(batch, zeros, outputs, 1.0)
    alignment.warn_of_lost_rows()
    assert not caplog.records
    for _ in range(2):
        alignment.logits(batch | {"teacher_end_map": torch.full_like(batch["teacher_end_map"], -1)},
                         zeros, outputs, 1.0)  # fmt: skip
    for _ in range(2):
        alignment.warn_of_lost_rows()
    assert len(caplog.records) == 1
    assert f"For {2 * len(batch['input_ids'])} starts or ends" in caplog.text


def test_windows_without_text_in_common_are_counted_or_refused(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A teacher whose tokenizer drops a text teaches nothing there, not "no answer"."""
    ours, theirs = words("word_piece"), vocabularies.byte_level()
    theirs.backend_tokenizer.normalizer = normalizers.Replace(Regex("[א-ת]"), "")
    row = {"question": "which?", "answers": {"text": ["שלום"], "answer_start": [0]}}
    hebrew = Dataset.from_list([{"id": str(i), "context": "שלום עולם", **row} for i in range(2)])
    both = Dataset.from_list([*examples(), *hebrew])
    given: dict[str, Any] = {
        "teacher_model": model("byte_level", 1, max_position_embeddings=128),
        "processing_class": ours,
        "teacher_processing_class": theirs,
        "teacher_check_samples": 0,
        "evaluate": False,
    }
    for rows, few in ((both, True), (hebrew, False)):
        data = prepare_train_features(rows, ours, teacher=TeacherReader(theirs, 128), **LENGTHS)
        lost = [max(row["teacher_start_map"]) < 0 for row in data]
        assert sum(lost) == 2
        caplog.clear()
        with nullcontext() if few else pytest.raises(ValueError, match="teacher_start_map"):
            run(tmp_path, model("word_piece", 2), train_dataset=data, **given)
        assert (f"2 of {len(data)} rows of train_dataset" in caplog.text) == few


def test_losses_without_a_limit_are_refused(tmp_path: Path) -> None:
    ours, theirs = words("word_piece"), words("byte_level")
    rows = prepare_train_features(examples(), ours, teacher=TeacherReader(theirs, 64), **LENGTHS)
    for name in ("mse", "reverse_kl"):
        with pytest.raises(ValueError, match=f"distillation_loss='{name}'.*js_div"):
            run(
                tmp_path,
                model("word_piece", 2),
                teacher_model=model("byte_level", 1),
                train_dataset=rows,
                processing_class=ours,
                teacher_processing_class=theirs,
                distillation_loss=name,
            )


def test_the_rows_of_a_batch_may_be_any() -> None:
    """Padding, of either tokenizer, changes nothing of a row."""
    _, alignment, batch = batch_of("byte_level", 128)
    torch.manual_seed(0)
    teacher, student = model("byte_level", 1, max_position_embeddings=128), model("word_piece", 2)

    def loss_inputs(batch: Any) -> Any:
        with torch.no_grad():
            read = alignment.teacher_batch(batch)
            theirs = teacher(
                **{
                    k: v
                    for k, v in read.items()
                    if "positions" not in k and not k.startswith("teacher")
                }
            )
            names = ("input_ids", "attention_mask", "token_type_ids")
            ours = student(**{n: batch[n] for n in names if n in batch})
        return alignment.logits(batch, ours, theirs, 2.0)

    together = loss_inputs(batch)
    for row in range(3):
        _, _, one = batch_of("byte_level", 128, slice(row, row + 1))
        alone = loss_inputs(one)
        length = alone.teacher.shape[-1]
        torch.testing.assert_close(
            alone.teacher[0], together.teacher[row, :, :length], rtol=1e-4, atol=1e-4
        )
