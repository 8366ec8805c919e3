"""Sentences of words with a tag each, such as named entities."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.heads.base import IGNORED
from hf_distill.tasks.cells import read_labels
from hf_distill.tasks.columns import (
    TAGS,
    TOKENS,
    checked_words,
    describe,
    find_column,
    is_list,
    kind_of,
)
from hf_distill.tasks.encoding import Encoded, encode_rows, input_length, truncations
from hf_distill.tasks.errors import MissingLabelsError, TaskDataError
from hf_distill.tasks.labels import LabelMap, model_labels


def tagged_rows(
    table: Dataset, *, text_column: str | None = None, label_column: str | None = None
) -> Dataset:
    """Pick the columns of tagged sentences.

    Args:
        table: any table.
        text_column: where the lists of words are; guessed by default.
        label_column: where the lists of tags are; guessed by default.

    Returns:
        The same rows, with the columns ``tokens``, ``tags`` and ``row``, the place in ``table``.

    Raises:
        TaskDataError: a column cannot be found or holds something else, a row has more or fewer
            tags than words, or no row has any word.
    """
    words = find_column(table, "text_column", text_column, TOKENS, "the list of words")
    tags = find_column(
        table,
        "label_column",
        label_column,
        TAGS,
        "the list of tags",
        taken=[words],
        error=MissingLabelsError,
    )
    checked_words(table, words)
    feature = table.features[tags]
    if not is_list(feature) or kind_of(feature) not in ("name", "number"):
        raise TaskDataError(
            f"The column {tags!r} holds {describe(feature)}, not lists of tags; choose another one "
            "with label_column."
        )
    for row, (some_words, some_tags) in enumerate(zip(table[words], table[tags], strict=True)):
        if some_words is None or some_tags is None or len(some_words) != len(some_tags):
            raise TaskDataError(
                f"Row {row} has {len(some_words or ())} words ({words}) and "
                f"{len(some_tags or ())} tags ({tags}); each word needs one tag."
            )
    names = {words: "tokens", tags: "tags"}
    kept = table.select_columns(list(names)).rename_columns(
        {old: new for old, new in names.items() if old != new}
    )
    return read_labels(kept, "tags").add_column("row", list(range(len(kept))))


def tag_numbers(rows: Dataset, config: Any) -> list[list[int]]:
    """The tags of all sentences as the model numbers them.

    Args:
        rows: as from ``tagged_rows``.
        config: the model's configuration, with its label names.

    Raises:
        TaskDataError: a tag is missing or not the model's; names the row.
    """
    return LabelMap(model_labels(config), rows, "tags").all_numbers()


def encode_tagged(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Encoded:
    """Turn tagged sentences into the inputs of a model.

    The words are joined by spaces and tokenised as any text is, so that every tokenizer encodes
    them as it does in use. The first token of a word has the word's label, all others -100.

    Args:
        rows: as from ``tagged_rows``.
        tokenizer: a fast one.
        model: its label names say how tags are numbered.
        max_length: most tokens of a sentence; what is longer is cut. By default 256, or fewer if
            the model takes fewer.
        num_proc: processes that do it.

    Returns:
        One row a sentence: what the tokenizer gives, ``labels``, and ``words``: for each label
        that is not -100 the index of its word. Not padded.

    Raises:
        TaskDataError: a tag is missing or not the model's.
        ValueError: the model takes fewer than ``max_length`` tokens.
    """
    length = input_length(max_length, tokenizer, model)
    numbers = tag_numbers(rows, model.config)
    rows = rows.remove_columns("tags").add_column("tags", numbers)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoding = tokenizer(
            [" ".join(tokens) for tokens in batch["tokens"]],
            truncation=True,
            max_length=length,
            return_offsets_mapping=True,
        )
        offsets = encoding.pop("offset_mapping")
        places = [
            first_tokens(tokens, spans)
            for tokens, spans in zip(batch["tokens"], offsets, strict=True)
        ]
        labels = [
            _labels(len(spans), found, tags)
            for spans, found, tags in zip(offsets, places, batch["tags"], strict=True)
        ]
        words = [list(found) for found in places]
        return {
            **encoding,
            "labels": labels,
            "words": words,
            "truncated": truncations(encoding),
        }

    return encode_rows(rows, encode, num_proc, "Tokenising")


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The first token of each word of a text, in which spaces join the words.

    Args:
        words: the words.
        offsets: for each token its first character and the one after its last; special tokens
            have none (two equal numbers).

    Returns:
        The token by the word, in order. A word that was cut off, or of which the tokenizer keeps
        nothing, is left out.
    """
    begins = []
    place = 0
    for word in words:
        begins.append(place)
        place += len(word) + 1
    found: dict[int, int] = {}
    for token, (begin, end) in enumerate(offsets):
        # Its last character: some tokenizers count the space before a word in.
        index = bisect_right(begins, end - 1) - 1
        if end > begin and end - 1 < begins[index] + len(words[index]):
            found.setdefault(index, token)
    return found


def _labels(length: int, places: dict[int, int], tags: Sequence[int]) -> list[int]:
    labels = [IGNORED] * length
    for word, token in places.items():
        labels[token] = tags[word]
    return labels
