"""Texts without labels, for what learns from a teacher's layers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.tasks.columns import (
    LABELS,
    TOKENS,
    checked_texts,
    checked_words,
    find_column,
    find_pair,
)
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length, truncations


def unlabelled_rows(
    table: Dataset,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """Pick the columns of texts.

    Args:
        table: any table.
        text_column: where the text is; guessed by default.
        text_pair_column: where the second text is, for pairs.
        label_column: what is no text, if it is there; guessed by default.

    Returns:
        The same rows, with the columns ``text`` and ``text_pair`` (for pairs).

    Raises:
        TaskDataError: a column cannot be found or does not hold texts, or all texts are empty.
    """
    guessed = (
        n for n in LABELS if n in table.column_names and n not in (text_column, text_pair_column)
    )
    label = label_column or next(guessed, "")
    found = find_pair(table, text_column, text_pair_column, taken=label)
    names = {}
    for column, name in zip(found, ("text", "text_pair"), strict=True):
        if column is not None:
            checked_texts(table, column, f"{name}_column")
            names[column] = name
    return table.select_columns(list(names)).rename_columns(
        {old: new for old, new in names.items() if old != new}
    )


def unlabelled_sentences(table: Dataset, *, text_column: str | None = None) -> Dataset:
    """Pick the column of lists of words, joined by spaces: ``text``.

    Raises:
        TaskDataError: it cannot be found or holds something else, or all rows are empty.
    """
    words = find_column(table, "text_column", text_column, TOKENS, "the list of words")
    checked_words(table, words)
    return Dataset.from_dict({"text": [" ".join(row or ()) for row in table[words]]})


def encode_unlabelled(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Encoded:
    """Turn texts into the inputs of a model.

    Args:
        rows: as from ``unlabelled_rows`` or ``unlabelled_sentences``.
        tokenizer: a fast one.
        model: says how long inputs may be.
        max_length: most tokens of an input, both texts of a pair together; what is longer is cut
            at the end, the longer text first. By default 256, or fewer if the model takes fewer.
        num_proc: processes that do it.

    Returns:
        One row a text: what the tokenizer gives. Not padded.

    Raises:
        ValueError: the model takes fewer than ``max_length`` tokens.
    """
    pair = "text_pair" in rows.column_names
    length = input_length(max_length, tokenizer, model, pair=pair)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts: list[Sequence[str]] = [batch[n] for n in ("text", "text_pair") if n in batch]
        encoding = tokenizer(*texts, truncation=True, max_length=length)
        return {**encoding, "truncated": truncations(encoding)}

    return encode_rows(rows, encode, num_proc, "Tokenising")
