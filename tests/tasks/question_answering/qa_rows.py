"""Rows to make windows of, and looks into the windows."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.tasks.question_answering.features import WindowCutter


def example(
    context: str, answer: tuple[int, int] | None, question: str = "Who wrote it?", name: str = "q"
) -> dict[str, Any]:
    answers: dict[str, list] = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [context[slice(*answer)]], "answer_start": [answer[0]]}
    return {"id": name, "context": context, "question": question, "answers": answers}


def dataset(*examples: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(examples))


def windows_of(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], max_length: int, doc_stride: int
) -> list[dict[str, Any]]:
    """What prepare_eval_features gives for one row, without the time that Dataset.map takes."""
    cutter = WindowCutter(tokenizer, max_length, doc_stride, for_evaluation=True)
    columns = cutter({name: [value] for name, value in row.items()})
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def tokens_of(tokenizer: PreTrainedTokenizerBase, context: str) -> list[tuple[int, int]]:
    """The characters of the context's tokens that stand for more than white space."""
    encoding = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    return [(s, e) for s, e in encoding["offset_mapping"] if context[s:e].strip()]


def context_tokens(row: dict[str, Any]) -> list[tuple[int, int]]:
    return [tuple(offset) for offset in row["offset_mapping"] if offset is not None]
