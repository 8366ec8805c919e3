"""Rows of language models encoded for the teacher, and cut into chunks with the student's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_distill.alignment.base import INPUT_IDS, PREFIX
from hf_distill.alignment.chunks import (
    UNALIGNED,
    TokenSpans,
    align_chunks,
    special_ids,
    token_spans,
)
from hf_distill.alignment.encoding import TeacherReader, check_texts
from hf_distill.alignment.language_models import CHUNKS, STUDENT_CHUNKS
from hf_distill.console import log_rank_0

_CONSTANT_INPUTS = {"attention_mask": 1, "token_type_ids": 0}
_REPORTED_ROWS = 1_000


def encode_block_for_teacher(
    text: str, student: TokenSpans, reader: TeacherReader, *, masked: bool
) -> dict[str, list[int]]:
    """Encode the text of a row of a language model for the teacher, and align the two.

    Where the student has a token between two texts, the teacher has its end-of-sequence token.

    Args:
        text: what the spans of the student's tokens are characters of; it may be longer.
        student: the tokens of the row.
        reader: the teacher's tokenizer, and how much the teacher reads.
        masked: whether the models are masked ones; a causal one has no probability for the first
            token, so its chunk is left out.

    Returns:
        The teacher's inputs and ``teacher_chunks`` (one number per teacher's token) and
        ``student_chunks`` (one per student's token).
    """
    tokenizer = reader.tokenizer
    begin, end = frame_of(tokenizer)
    stop = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids, parts = [*begin], [specials(len(begin))]
    for first, last in _texts(student):
        between = stop if len(ids) > len(begin) else []
        encoding = tokenizer([text[first:last]], add_special_tokens=False, verbose=False)
        ids += [*between, *encoding["input_ids"][0]]
        spans = token_spans(encoding, tokenizer)
        parts += [specials(len(between)), spans._replace(spans=spans.spans + first)]
    end = end if masked else []
    room = reader.length(None)
    kept = slice(None if room is None else room - len(end))
    teacher = joined([joined(parts).part(kept), specials(len(end))])
    ids = [*ids[kept], *end] or [*stop, tokenizer.pad_token_id or 0][:1]
    chunks = align_chunks(student, teacher)
    sides = [chunks.student, chunks.teacher]
    if not masked:
        unpredicted = [int(number) for side in sides for number in side[:1]]
        sides = [np.where(np.isin(side, unpredicted), UNALIGNED, side) for side in sides]
    found: dict[str, list[int]] = {
        INPUT_IDS: ids,
        CHUNKS: sides[1].tolist() or [UNALIGNED],
        STUDENT_CHUNKS: sides[0].tolist(),
    }
    constant = {f"{PREFIX}{name}": [one] * len(ids) for name, one in _CONSTANT_INPUTS.items()}
    return {name: (found | constant)[name] for name in teacher_columns(reader)}


def encode_texts_for_teacher(
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    teacher_processing_class: PreTrainedTokenizerBase,
    *,
    column: str = "text",
    masked: bool = False,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Add a teacher's own encoding of texts to a language model's data.

    Args:
        dataset: ``input_ids`` of the student, a text per row (cut or whole), and the texts.
        processing_class: the student's tokenizer, a fast one.
        teacher_processing_class: the teacher's, a fast one.
        column: the column of the texts.
        masked: whether the models are masked language models.
        max_length: the most tokens that the teacher takes; by default those of its tokenizer.
        num_proc: processes to work with; by default this one.

    Returns:
        ``dataset`` with ``teacher_input_ids``, ``teacher_attention_mask``, ``teacher_chunks`` and
        ``student_chunks``.

    Raises:
        ValueError: a column or a text is missing, a tokenizer is not a fast one, ``input_ids`` are
            not the tokens of the text, or the tokenizers have nothing in common.
    """
    check_texts(dataset, [column], f"column={column!r}")
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            "dataset has no column 'input_ids', only "
            f"{', '.join(dataset.column_names)}; encode the texts for the student, and keep them."
        )
    reader = TeacherReader(teacher_processing_class, max_length)
    closing = special_ids(processing_class)

    def encode(ids: list[int], text: str, row: int) -> dict[str, list[int]]:
        encoding = processing_class([text], verbose=False)
        spans = token_spans(encoding, processing_class)
        own = encoding["input_ids"][0]
        # What was cut may end with a special token.
        common = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), None)
        common = min(len(ids), len(own)) if common is None else common
        rest = [i for i in ids[common:] if i not in closing]
        if rest:
            raise ValueError(
                f"input_ids of row {row} of the data are not what processing_class makes of its "
                f"{column!r}: they differ at token {common}. Encode this text with this tokenizer, "
                "without joining texts, or name the column of the text."
            )
        student = joined([spans.part(slice(common)), specials(len(ids) - common)])
        return encode_block_for_teacher(text, student, reader, masked=masked)

    encoded = dataset.map(
        encode,
        input_columns=["input_ids", column],
        with_indices=True,
        num_proc=num_proc,
        desc="Aligning with the teacher's tokens",
    )
    report_aligned(encoded, masked=masked)
    return encoded


def report_aligned(dataset: Dataset, *, masked: bool) -> None:
    """Write which share of the student's tokens can be compared, in the first rows of data.

    Raises:
        ValueError: none can.
    """
    rows = dataset.select_columns([STUDENT_CHUNKS, CHUNKS])[:_REPORTED_ROWS]
    compared = np.concatenate(
        [
            _once(ours) & np.isin(ours, np.array(theirs)[_once(theirs)])
            if masked
            else np.array(ours) >= 0
            for ours, theirs in zip(rows[STUDENT_CHUNKS], rows[CHUNKS], strict=True)
        ]
    )
    if not compared.any():
        raise ValueError(
            "The two tokenizers have nothing in common in these texts, so nothing that the teacher "
            "predicts can be compared; check teacher_processing_class (or --teacher_model) and the "
            "column of the texts, or choose a teacher with the student's tokenizer."
        )
    what = (
        "one piece on both sides" if masked else "in a chunk of text that both tokenizers cut out"
    )
    log_rank_0(
        f"{compared.mean():.1%} of the student's tokens are {what}; the others are not compared "
        "with the teacher."
    )


def _once(chunks: Sequence[int]) -> NDArray[np.bool_]:
    """Return which tokens are alone in their chunk."""
    numbers, counts = np.unique(chunks, return_counts=True)
    return np.isin(chunks, numbers[(counts == 1) & (numbers >= 0)])


def frame_of(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text."""
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    for place in range(len(full) - len(bare) + 1):
        if full[place : place + len(bare)] == bare:
            return full[:place], full[place + len(bare) :]
    return [], []


def joined(parts: Sequence[TokenSpans]) -> TokenSpans:
    """Return the tokens of several parts, one after the other."""
    return TokenSpans(
        [token for part in parts for token in part.tokens],
        np.concatenate([part.spans for part in parts]),
        np.concatenate([part.special for part in parts]),
        np.concatenate([part.unknown for part in parts]),
    )


def spans_of_texts(
    texts: Sequence[str],
    encoding: BatchEncoding,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    *,
    join: bool,
) -> list[TokenSpans]:
    """Return the tokens of texts, up to certain lengths: what is longer ends with special tokens.

    With ``join`` they are one text, written one after the other.
    """
    found, before = [], 0
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        spans = token_spans(encoding, tokenizer, row)
        closing = specials(length - len(spans.tokens))
        found.append(joined([spans._replace(spans=spans.spans + before), closing]))
        before += len(text) if join else 0
    return [joined(found)] if join else found


def teacher_columns(reader: TeacherReader) -> list[str]:
    """Name the columns that ``encode_block_for_teacher`` returns."""
    inputs = [n for n in _CONSTANT_INPUTS if n in reader.tokenizer.model_input_names]
    return [INPUT_IDS, CHUNKS, STUDENT_CHUNKS, *(f"{PREFIX}{name}" for name in inputs)]


def specials(count: int) -> TokenSpans:
    """Return so many tokens that stand for no text."""
    nowhere = np.zeros((count, 2), dtype=np.int64)
    return TokenSpans([""] * count, nowhere, np.ones(count, bool), np.zeros(count, bool))


def _texts(spans: TokenSpans) -> list[tuple[int, int]]:
    """Return the ranges of characters between special tokens."""
    inside = np.flatnonzero(~spans.special)
    runs = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
    return [
        (int(spans.spans[run, 0].min()), int(spans.spans[run, 1].max())) for run in runs if len(run)
    ]
