"""What turning texts into the inputs of a model has in common for all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility import input_limit

DEFAULT_LENGTH = 256
_TRUNCATED = "truncated"


class Encoded(NamedTuple):
    """The inputs of a model."""

    features: Dataset
    truncated: int
    """How many rows were longer than the longest input allowed, and were cut."""


def input_length(
    wanted: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    option: str = "max_length",
    default: int = DEFAULT_LENGTH,
    pair: bool = False,
) -> int:
    """The most tokens of an input.

    Args:
        wanted: by the user; by default ``default``, or fewer if the model takes fewer.
        tokenizer: knows what the model takes, often.
        model: the model.
        option: the name of ``wanted``, for the error.
        default: see ``wanted``.
        pair: an input is two texts.

    Raises:
        ValueError: the model does not take as many as wanted, or special tokens leave no room for
            text.
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
    what: str,
    *,
    with_indices: bool = False,
) -> Encoded:
    """Apply an encoding to all rows; the columns of ``rows`` are not kept.

    Args:
        rows: what to encode.
        encode: from a batch of rows to a batch of inputs, with a column ``truncated``.
        num_proc: processes to do it in; by default this one.
        what: the title of the progress bar.
        with_indices: give ``encode`` the places of the rows, too.
    """
    features = rows.map(
        encode,
        batched=True,
        with_indices=with_indices,
        remove_columns=rows.column_names,
        num_proc=num_proc,
        desc=what,
    )
    if len(features) == 0:
        return Encoded(features, 0)
    truncated = sum(features[_TRUNCATED])
    return Encoded(features.remove_columns(_TRUNCATED), truncated)


def truncations(encoding: Any) -> list[bool]:
    """For each text of a fast tokenizer's answer whether it was cut."""
    return [bool(one.overflowing) for one in encoding.encodings]
