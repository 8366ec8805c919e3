"""Chunks of a text between the cuts that two tokenizers have in common."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from language_models import language_model
from transformers import PreTrainedTokenizerFast
from vocabularies import KINDS, SENTENCES

from hf_distill.alignment import TeacherReader
from hf_distill.alignment.blocks import report_aligned
from hf_distill.alignment.chunks import (
    UNALIGNED,
    Chunks,
    TokenSpans,
    align_chunks,
    special_ids,
    token_spans,
)
from hf_distill.alignment.language_models import CHUNKS, STUDENT_CHUNKS
from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments

TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(" ".join(SENTENCES).split()), max_size=12).map(" ".join),
    st.lists(st.sampled_from(["</s>", "<mask>", "<unk>", "[SEP]", "hell", " "]), max_size=9).map(
        "".join
    ),
    st.text(alphabet="aé e\u0301\n  ШńŁ人😀👩\u200d\u05e9\u05dc\u05d5\u05dd", max_size=30),
)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


def spans_of(kind: str, text: str) -> TokenSpans:
    return token_spans(tokenizer(kind)([text]), tokenizer(kind))


def aligned(student: str, teacher: str, text: str) -> tuple[TokenSpans, TokenSpans, Chunks]:
    sides = spans_of(student, text), spans_of(teacher, text)
    return (*sides, align_chunks(*sides))


def made(*tokens: tuple[str, int, int], special: tuple[int, ...] = ()) -> TokenSpans:
    places = np.arange(len(tokens))
    spans = np.array([span for _, *span in tokens], dtype=np.int64).reshape(-1, 2)
    names = [name for name, *_ in tokens]
    return TokenSpans(names, spans, np.isin(places, special), np.zeros(len(tokens), dtype=bool))


@given(st.sampled_from(sorted(KINDS)), TEXTS)
def test_equal_tokenizers_have_a_chunk_per_token(kind: str, text: str) -> None:
    side, _, chunks = aligned(kind, kind, text)
    known = ~side.special
    if side.unknown.any():
        # Only what stands next to an unknown one in the same characters may go with it.
        assert (chunks.student[side.unknown] == UNALIGNED).all()
        known = chunks.student != UNALIGNED
    assert chunks.student[known].tolist() == list(range(known.sum()))
    assert np.array_equal(chunks.student, chunks.teacher)
    assert chunks.dropped == (~side.special & ~known).sum()


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)), TEXTS)
def test_chunks_are_in_order_and_stand_for_the_same_characters(
    student: str, teacher: str, text: str
) -> None:
    *sides, chunks = aligned(student, teacher, text)
    numbers = (chunks.student, chunks.teacher)
    count = chunks.student.max(initial=UNALIGNED) + 1
    for side, number in zip(sides, numbers, strict=True):
        inside = number[number != UNALIGNED]
        assert (np.diff(inside) >= 0).all()
        assert sorted({*inside.tolist()}) == list(range(count))
        assert not (number[side.special | side.unknown] != UNALIGNED).any()
    for chunk in range(count):
        parts = [side.spans[number == chunk] for side, number in zip(sides, numbers, strict=True)]
        assert parts[0][:, 1].max() == parts[1][:, 1].max()
        letters = [{i for b, e in part for i in range(b, e)} for part in parts]
        differing = sorted(letters[0] ^ letters[1])
        assert not any(b == a + 1 for a, b in pairwise(differing))


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)), TEXTS)
def test_swapping_the_sides_swaps_the_chunks(student: str, teacher: str, text: str) -> None:
    *_, one = aligned(student, teacher, text)
    *_, other = aligned(teacher, student, text)
    assert np.array_equal(one.student, other.teacher)
    assert np.array_equal(one.teacher, other.student)


def test_words_of_every_pair_meet() -> None:
    text = "hello helpful shell hell"
    for student in KINDS:
        for teacher in KINDS:
            side, _, chunks = aligned(student, teacher, text)
            assert chunks.student.max() + 1 >= 4, (student, teacher)
            assert chunks.dropped == 0, (student, teacher)
            assert len(side.tokens) >= 4


def test_chunks_by_hand() -> None:
    student = made(("[CLS]", 0, 0), ("new", 0, 3), ("york", 4, 8), ("##er", 8, 10), special=(0,))
    teacher = made(("n", 0, 1), ("ew", 1, 3), ("Ġyo", 3, 6), ("rker", 6, 10))
    chunks = align_chunks(student, teacher)
    assert chunks.student.tolist() == [UNALIGNED, 0, 1, 1]
    assert chunks.teacher.tolist() == [0, 0, 1, 1]
    assert chunks.dropped == 0


def test_chunks_are_as_short_as_can_be() -> None:
    student = made(("a", 0, 1), ("b", 1, 2), ("c", 2, 3), ("d", 3, 4))
    teacher = made(("ab", 0, 2), ("c", 2, 3), ("d", 3, 4))
    assert align_chunks(student, teacher).student.tolist() == [0, 0, 1, 2]


def test_pieces_of_one_character_are_a_chunk() -> None:
    student = made(("ð", 0, 1), ("Ł", 0, 1), ("ĺĢ", 0, 1), ("a", 1, 2))
    teacher = made(("😀", 0, 1), ("a", 1, 2))
    assert align_chunks(student, teacher).student.tolist() == [0, 0, 0, 1]
    assert align_chunks(student, student).student.tolist() == [0, 1, 2, 3]


def test_a_line_break_that_one_side_drops_costs_the_word_behind_it() -> None:
    text = "Paris\n\ncapital 987"
    side, _, chunks = aligned("byte_level", "continued", text)
    assert side.tokens[:5] == ["<s>", "Paris", "Ċ", "Ċ", "c"]
    assert chunks.student[1] == 0
    assert (chunks.student[2:5] == UNALIGNED).all()
    assert chunks.student[side.tokens.index("Ġ987")] == 1
    assert chunks.dropped == (chunks.student[~side.special] == UNALIGNED).sum() > 2
    *_, other = aligned("continued", "byte_level", text)
    assert other.dropped == 1


def test_a_text_that_was_cut_is_aligned_up_to_the_cut() -> None:
    whole = spans_of("byte_level", "hello helpful shell")
    short = TokenSpans(whole.tokens[:3], whole.spans[:3], whole.special[:3], whole.unknown[:3])
    chunks = align_chunks(whole, short)
    assert chunks.student.tolist()[:3] == chunks.teacher.tolist()
    assert (chunks.student[3:] == UNALIGNED).all()


def test_unknown_words_are_in_no_chunk() -> None:
    side, _, chunks = aligned("word_piece", "byte_level", "hello Ж hello")
    assert chunks.student[side.unknown].tolist() == [UNALIGNED]
    assert chunks.dropped == 1


def test_no_text_has_no_chunks() -> None:
    _, _, chunks = aligned("unigram", "byte_level", "")
    assert (chunks.student == UNALIGNED).all()
    assert chunks.dropped == 0
    empty = made()
    assert align_chunks(empty, empty).student.tolist() == []


def test_the_end_of_a_text_is_no_unknown_word() -> None:
    one = tokenizer("byte_level")
    assert one.unk_token_id not in special_ids(one)
    gpt2 = PreTrainedTokenizerFast(
        tokenizer_object=one.backend_tokenizer, unk_token="</s>", bos_token="</s>", eos_token="</s>"
    )
    assert special_ids(gpt2) == [gpt2.eos_token_id]


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="use_fast=True"):
        token_spans(Slow(), tokenizer("unigram"))


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_the_share_of_compared_tokens_is_written_once(
    masked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Dataset.from_dict(
        {
            # Alone on both sides are 1 and, in the second row, 0.
            STUDENT_CHUNKS: [[-1, 0, 0, 1, 2, -1], [0, 1, -1, -1]],
            CHUNKS: [[0, 1, 2, 2], [0, 1, 1]],
        }
    )
    report_aligned(found, masked=masked)
    written = capsys.readouterr().err
    assert written.count("%") == 1
    assert ("20.0%" if masked else "60.0%") in written


@pytest.mark.parametrize("task", ["text-generation", "fill-mask"])
def test_texts_in_which_nothing_is_compared_are_refused_by_the_task(task: str) -> None:
    ours, theirs = KINDS["word_piece"](), KINDS["byte_level"]()
    made = create_task(task, TaskArguments())
    model: Any = language_model("gpt2")
    for text, fits in ((" ".join(SENTENCES), True), ("ЖЖЩЩ ЪЪ", False)):
        rows = Dataset.from_dict({"text": [text] * 2})
        reader = TeacherReader(theirs, 64)
        with nullcontext() if fits else pytest.raises(ValueError, match="--teacher_model"):
            made.features(rows, ours, model, training=True, teacher=reader)
