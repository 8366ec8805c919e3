"""Lengths and tokenised rows, for all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility import input_limit

DEFAULT_LENGTH = 256


class Encoded(NamedTuple):
    """The inputs of a model."""

    features: Dataset
    truncated: int
    """How many rows were longer than allowed, and were cut."""


def input_length(
    wanted: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    option: str = "max_length",
    default: int = DEFAULT_LENGTH,
    pair: bool = False,
) -> int:
    """Return the most tokens of an input.

    Args:
        wanted: by the user; by default ``default``, or fewer if the model takes fewer.
        tokenizer: often knows what the model takes.
        model: the model.
        option: the name of ``wanted``, for the error.
        default: see ``wanted``.
        pair: an input is two texts.

    Raises:
        ValueError: the model takes fewer than wanted, or special tokens leave no room for text.
    """
    # Tokenizers that do not know say 10**30, and T5's relative positions have no limit (0, -1).
    limits = [n for n in (input_limit(model), tokenizer.model_max_length) if n and 0 < n < 10**9]
    most = int(min(limits)) if limits else None
    if wanted is None:
        return default if most is None else min(default, most)
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    least = max(2, special + 1 + pair)
    if wanted < least or (most is not None and wanted > most):
        upper = "" if most is None else f" and at most the {most} tokens that the model takes"
        raise ValueError(
            f"--{option} {wanted} must be at least {least} ({special} of them are special tokens)"
            f"{upper}."
        )
    return wanted


def encode_rows(
    rows: Dataset,
    encode: Callable[..., dict[str, list[Any]]],
    num_proc: int | None,
    *,
    with_indices: bool = False,
) -> Encoded:
    """Apply an encoding, which adds a column ``truncated``; the columns of ``rows`` are dropped."""
    features = rows.map(
        encode,
        batched=True,
        with_indices=with_indices,
        remove_columns=rows.column_names,
        num_proc=num_proc,
        desc="Tokenising",
    )
    if len(features) == 0:
        return Encoded(features, 0)
    return Encoded(features.remove_columns("truncated"), sum(features["truncated"]))
