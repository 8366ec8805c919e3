"""A teacher's own encoding of texts, as columns next to the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_distill.alignment.base import INPUTS, PREFIX
from hf_distill.loading import fewest_tokens


class TeacherReader(NamedTuple):
    """The tokenizer of a teacher, and how much it reads."""

    tokenizer: PreTrainedTokenizerBase
    limit: int | None = None
    """The most tokens that the teacher takes; ``None`` if it is not limited."""

    def length(self, wanted: int | None) -> int | None:
        """Return the most tokens of an input, at most ``wanted``; ``None`` for any number."""
        return fewest_tokens(wanted, self.limit, self.tokenizer.model_max_length)

    def encode(
        self, texts: Sequence[Sequence[str]], length: int | None, **options: Any
    ) -> tuple[dict[str, list[Any]], Any]:
        """Return texts (a list of them, or two for pairs) as columns, and what they came from.

        Args:
            texts: as a tokenizer takes them.
            length: most tokens of an input, if the teacher takes as many.
            **options: for the tokenizer.
        """
        most = self.length(length)
        encoding = self.tokenizer(*texts, truncation=most is not None, max_length=most, **options)
        return teacher_inputs(encoding), encoding


def teacher_inputs(encoding: BatchEncoding) -> dict[str, list[Any]]:
    """Return the inputs of a model in an encoding, as the columns of the teacher."""
    return {f"{PREFIX}{name}": encoding[name] for name in INPUTS if name in encoding}


def check_texts(dataset: Dataset, columns: Sequence[str], argument: str) -> None:
    """Check that columns hold texts, and that none is missing.

    Args:
        dataset: the data.
        columns: their names.
        argument: what named them, for errors.

    Raises:
        ValueError: names the column, and the row.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__} and must be a datasets.Dataset: choose a "
            "split, or make one of a stream with Dataset.from_generator."
        )
    for name in columns:
        if name not in dataset.column_names:
            raise ValueError(
                f"{argument}: the data has no column {name!r}, only "
                f"{', '.join(dataset.column_names)}; name that of the texts."
            )
        kind = getattr(dataset.features[name], "dtype", type(dataset.features[name]).__name__)
        if kind not in ("string", "large_string"):
            raise ValueError(
                f"{argument}: the column {name!r} holds {kind} values; name that of the texts."
            )
        texts = dataset.with_format(None)[name]
        missing = next((row for row, text in enumerate(texts) if text is None), None)
        if missing is not None:
            raise ValueError(
                f"Row {missing} has nothing in the column {name!r}; remove the row, or write ''."
            )


def encode_for_teacher(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Sequence[str] = ("text",),
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Add a teacher's own encoding of texts to data that is encoded for the student.

    For labels, several labels and numbers of texts and pairs of texts, where nothing has to be
    aligned.

    Args:
        dataset: the student's columns, and the texts.
        tokenizer: the teacher's.
        columns: the column of the texts, or the two of pairs.
        max_length: the most tokens that the teacher takes; by default those of its tokenizer.
        num_proc: processes to work with; by default this one.

    Returns:
        ``dataset`` with ``teacher_input_ids``, ``teacher_attention_mask`` and, if the tokenizer
        gives them, ``teacher_token_type_ids``.

    Raises:
        ValueError: a column is missing or does not hold texts, a text is missing, or there are more
            columns than two.
    """
    if isinstance(columns, str) or not 1 <= len(columns) <= 2:
        raise ValueError(
            f"columns={columns!r} must be a list with the column of the texts, or the two of pairs."
        )
    check_texts(dataset, columns, f"columns={list(columns)}")
    reader = TeacherReader(tokenizer, max_length)

    def encode(*texts: list[str]) -> dict[str, list[Any]]:
        return reader.encode(texts, max_length)[0]

    return dataset.map(
        encode,
        input_columns=list(columns),
        batched=True,
        num_proc=num_proc,
        desc="Tokenising for the teacher",
    )
